#![allow(unsafe_code)] // Follows the addresses of a checked plan.
//! Carries a checked plan out: cuts it into tasks and copies runs.

use super::mapping::Row;
use super::plan::{Axis, LayerPlan};
use crate::error::KvCacheError;
use crate::kernels::copy::RunKernel;
use infer_accel_tensor::simd::Tier;
use infer_accel_tensor::threads;
use std::ops::Range;

/// From this many bytes on a copy goes past the cache: what it reads and writes would drive everything else out
/// of a last cache of 32 MiB, and be gone itself before anybody reads it.
const MIN_STREAMED_COPY_BYTES: usize = 16 << 20;
/// A task is at least this long, so that handing it out costs nothing beside it …
const MIN_TASK_BYTES: usize = 256 << 10;
/// … and at most this long, so that Ctrl-C is heard and no thread ends long after the others.
const MAX_TASK_BYTES: usize = 16 << 20;
/// Tasks for each thread, where the copy is long enough for as many.
const TASKS_PER_THREAD: usize = 8;

/// Some rows of one layer, or a part of the run of one row.
struct Task {
    layer: usize,
    rows: Range<usize>,
    /// Within each run; everything unless a page was cut.
    bytes: Range<usize>,
}

struct Job<'a> {
    layers: &'a [LayerPlan],
    rows: &'a [Row],
    tasks: Vec<Task>,
    kernel: RunKernel,
}

// SAFETY: the plans' addresses come from views that are readable and writable from any thread, and no two tasks
// write the same byte or write what another reads: that is what `mapping` and `overlap` have proved.
unsafe impl Sync for Job<'_> {}

pub(super) fn run(
    tier: Tier,
    layers: &[LayerPlan],
    rows: &[Row],
    threads: usize,
    stop: &dyn Fn() -> bool,
) -> Result<(), KvCacheError> {
    let total: usize = layers.iter().map(|layer| layer.page_bytes().saturating_mul(rows.len())).sum();
    let kernel = RunKernel::new(tier, total >= MIN_STREAMED_COPY_BYTES);
    let share = if threads == 1 { MAX_TASK_BYTES } else { total / (threads * TASKS_PER_THREAD) };
    let tasks = cut(layers, rows.len(), share.clamp(MIN_TASK_BYTES, MAX_TASK_BYTES));
    let job = Job { layers, rows, tasks, kernel };
    let job = &job;
    threads::parallel_for_interruptible(threads, job.tasks.len(), stop, |index| job.run_task(index))?;
    Ok(())
}

/// Cuts the copy into tasks of about `task_bytes`.
fn cut(layers: &[LayerPlan], num_rows: usize, task_bytes: usize) -> Vec<Task> {
    let mut tasks = Vec::new();
    for (layer, plan) in layers.iter().enumerate().filter(|(_, plan)| plan.page_bytes() > 0) {
        let rows_per_task = (task_bytes / plan.page_bytes()).max(1);
        let piece =
            if plan.axes().is_empty() && plan.run_bytes > task_bytes { task_bytes } else { plan.run_bytes };
        for first in (0..num_rows).step_by(rows_per_task) {
            let rows = first..(first + rows_per_task).min(num_rows);
            for start in (0..plan.run_bytes).step_by(piece) {
                let bytes = start..(start + piece).min(plan.run_bytes);
                tasks.push(Task { layer, rows: rows.clone(), bytes });
            }
        }
    }
    tasks
}

impl Job<'_> {
    fn run_task(&self, index: usize) {
        let task = &self.tasks[index];
        let plan = &self.layers[task.layer];
        let offset = task.bytes.start as isize;
        let source =
            |row: Row| plan.source.wrapping_offset(row.source as isize * plan.source_stride + offset);
        let target =
            |row: Row| plan.target.wrapping_offset(row.target as isize * plan.target_stride + offset);
        let joins = plan.pages_join() && task.bytes.len() == plan.run_bytes;
        let rows = &self.rows[task.rows.clone()];
        let mut first = 0;
        while first < rows.len() {
            let follows = |pair: &[Row]| joins && pair[0].is_followed_by(pair[1]);
            let count = 1 + rows[first..].windows(2).take_while(|pair| follows(pair)).count();
            let row = rows[first];
            let next = rows.get(first + count).copied().unwrap_or(row);
            let run = Run { kernel: self.kernel, bytes: task.bytes.len() * count };
            // SAFETY: `mapping` has checked that both pages exist, `plan` that their runs lie within the views,
            // `overlap` that nothing read is written; joined pages lie one behind the other on both sides.
            unsafe { run.copy_page(plan.axes(), source(row), target(row), source(next)) };
            first += count;
        }
        self.kernel.finish();
    }
}

/// The contiguous piece that is copied at every point of a page's axes.
#[derive(Clone, Copy)]
struct Run {
    kernel: RunKernel,
    bytes: usize,
}

impl Run {
    /// Copies a run at every point of `axes`; `next` is where the source after that begins.
    ///
    /// # Safety
    /// At every point of `axes` the run can be read from `source` and written to `target`, and none is read that
    /// is written.
    unsafe fn copy_page(self, axes: &[Axis], source: *const u8, target: *mut u8, next: *const u8) {
        let Some((axis, inner)) = axes.split_first() else {
            // SAFETY: the caller's promise.
            return unsafe { self.kernel.copy(source, target, self.bytes, next) };
        };
        if inner.is_empty() {
            let copy = match self.bytes {
                1 => Some(copy_elements::<u8> as unsafe fn(Axis, *const u8, *mut u8)),
                2 => Some(copy_elements::<u16> as _),
                4 => Some(copy_elements::<u32> as _),
                8 => Some(copy_elements::<u64> as _),
                _ => None,
            };
            if let Some(copy) = copy {
                // SAFETY: the caller's promise; the type is as long as a run.
                return unsafe { copy(*axis, source, target) };
            }
        }
        for index in 0..axis.extent {
            let from = source.wrapping_offset(index as isize * axis.source_stride);
            let to = target.wrapping_offset(index as isize * axis.target_stride);
            let after = if index + 1 < axis.extent { from.wrapping_offset(axis.source_stride) } else { next };
            // SAFETY: the caller's promise, at this entry of the axis.
            unsafe { self.copy_page(inner, from, to, after) };
        }
    }
}

/// Copies an axis whose entries are single elements somewhere.
///
/// # Safety
/// Every entry of the axis can be read from `source` and written to `target`.
unsafe fn copy_elements<T>(axis: Axis, source: *const u8, target: *mut u8) {
    for index in 0..axis.extent as isize {
        let from = source.wrapping_offset(index * axis.source_stride).cast::<T>();
        let to = target.wrapping_offset(index * axis.target_stride).cast::<T>();
        // SAFETY: the caller's promise; nothing is said about alignment.
        unsafe { to.write_unaligned(from.read_unaligned()) };
    }
}
