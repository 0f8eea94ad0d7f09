//! `target = source + scaling · rows · columns`, cut into tasks, blocks and tiles.

use super::control::FloatControl;
use super::exponents::pairs_are_exact;
use super::matrix::Matrix;
use super::pack::{ColumnPack, Order, RowPack};
use super::scratch::{Scratch, with_task};
use super::staged;
use super::storage::Format;
use super::tile::{ONE_PANELS, PANELS_AHEAD, Tile, TileSet};
use super::{CallSettings, Kernels};
use crate::slab::Delta;
use infer_accel_tensor::threads::parallel_for;
use infer_accel_tensor::{TensorMut, TensorRef};
use std::ops::Range;

/// Bytes of packed columns that all rows of a task pass over; they stay in a second-level cache.
const COLUMN_BYTES: usize = 256 << 10;

/// The same where a tile or less takes all rows: used once, the columns need not outlive a first-level cache.
const COLUMN_BYTES_ONCE: usize = 16 << 10;

/// Bytes of packed rows that a task holds; read once per block of columns, from any cache.
const ROW_BYTES: usize = 512 << 10;

/// Panels from which on aligning a block pays for the two narrow tiles that it costs each row of tiles.
const HEAD_PANELS: usize = 16;

/// Multiplications below which a second thread costs more than it brings.
const THREAD_WORK: usize = 1 << 18;

/// Tasks for each thread: the last one to finish keeps the others waiting for a fraction of its share.
const TASKS_PER_THREAD: usize = 4;

/// One update of a matrix.
#[derive(Clone, Copy)]
pub(crate) struct Update {
    /// What is read.
    pub(crate) source: Matrix,
    /// What is written: the source itself, or memory apart from it, of the same shape and format.
    pub(crate) target: Matrix,
    /// `[source.rows, rank]`
    pub(crate) rows: Matrix,
    /// `[rank, source.columns]`
    pub(crate) columns: Matrix,
    /// What inner products are multiplied by.
    pub(crate) scaling: f32,
}

// SAFETY: an update holds addresses of memory that is borrowed for as long as the update runs; tasks write
// disjoint parts of the target and only read the rest.
unsafe impl Sync for Update {}

/// How the ranks of an update are accumulated.
struct Plan {
    kernels: &'static Kernels,
    tiles: TileSet,
    order: Order,
    steps: usize,
    width: usize,
}

/// Merges an adapter: `target = source + scaling · lora_b · lora_a`, or in place where `source` is `None`.
///
/// # Panics
///
/// Where shapes, dtypes or dimensions do not fit each other; the caller has checked them.
pub(crate) fn merge(
    target: &mut TensorMut<'_>,
    source: Option<&TensorRef<'_>>,
    lora_a: &TensorRef<'_>,
    lora_b: &TensorRef<'_>,
    settings: &CallSettings,
) {
    let update = Update::of(target, source, lora_a, lora_b, settings.scaling);
    // SAFETY: the tensors are borrowed for this call; the target mutably, hence apart from the others; what the
    // matrices describe is what the tensors hold, and it fits together.
    unsafe { update.run(Kernels::of(settings.tier), settings.threads) }
}

/// Merges deltas into weights, in place: each weight with its delta and the scaling of it.
///
/// # Panics
///
/// As [`merge`].
pub(crate) fn merge_all(
    layers: &mut [(TensorMut<'_>, Delta<'_>)],
    scalings: &[f32],
    settings: &CallSettings,
) {
    let update = |((weight, delta), &scaling): (&mut (TensorMut<'_>, Delta<'_>), &f32)| {
        Update::of(weight, None, &delta.lora_a, &delta.lora_b, scaling)
    };
    let updates = layers.iter_mut().zip(scalings).map(update).collect();
    // SAFETY: as in `merge`; the caller has checked that the weights do not meet.
    unsafe { run_all(updates, Kernels::of(settings.tier), settings.threads) }
}

impl Update {
    /// # Panics
    ///
    /// As [`merge`].
    fn of(
        target: &mut TensorMut<'_>,
        source: Option<&TensorRef<'_>>,
        lora_a: &TensorRef<'_>,
        lora_b: &TensorRef<'_>,
        scaling: f32,
    ) -> Self {
        let parts = (|| {
            let written = Matrix { base: target.as_mut_ptr(), ..Matrix::of(&target.as_ref())? };
            let source = source.map_or(Some(written), Matrix::of)?;
            let (rows, columns) = (Matrix::of(lora_b)?, Matrix::of(lora_a)?);
            Some(Self { source, target: written, rows, columns, scaling })
        })();
        parts.filter(Self::fits).unwrap_or_else(|| panic!("a merge of unchecked tensors"))
    }

    fn fits(&self) -> bool {
        let Self { source, target, rows, columns, .. } = self;
        source.format == target.format
            && (source.rows, source.columns) == (target.rows, target.columns)
            && (rows.rows, columns.columns) == (target.rows, target.columns)
            && rows.columns == columns.rows
    }

    /// Runs the update on at most `threads` threads; the result does not depend on how many.
    ///
    /// # Safety
    ///
    /// All elements of the four matrices are readable, those of the target writable and no two at one address; the
    /// target is the source or apart from it, and apart from the others; the shapes fit; the processor has the tier.
    pub(crate) unsafe fn run(self, kernels: &'static Kernels, threads: usize) {
        // SAFETY: the caller vouches for all of it.
        unsafe {
            let Some(cut) = self.cut(kernels, threads) else { return };
            parallel_for(threads.min(cut.tasks), cut.tasks, |task| cut.run(task));
        }
    }

    /// Cuts the update into tasks; `None` if there is nothing to multiply, and all is done.
    ///
    /// # Safety
    ///
    /// As [`Self::run`].
    unsafe fn cut(mut self, kernels: &'static Kernels, threads: usize) -> Option<Cut> {
        if self.target.is_empty() {
            return None;
        }
        if !self.target.has_dense_rows() && self.target.has_dense_columns() {
            // A transposed view. A product does not depend on which factor comes first.
            (self.rows, self.columns) = (self.columns.transposed(), self.rows.transposed());
            (self.source, self.target) = (self.source.transposed(), self.target.transposed());
        }
        if self.columns.rows == 0 {
            // Nothing to add: the bits stay, whatever they are.
            if self.source.base != self.target.base {
                // SAFETY: the caller vouches for source and target.
                unsafe { self.source.copy_to(&self.target) };
            }
            return None;
        }
        let plan = self.plan(kernels);
        let (rows, columns) = (self.target.rows, self.target.columns);
        let work = rows.saturating_mul(columns).saturating_mul(plan.steps + 8);
        let pieces = if threads == 1 { 1 } else { (work / THREAD_WORK).clamp(1, threads * TASKS_PER_THREAD) };
        // The longer side is cut: each task packs the whole of the other one.
        let (row_piece, column_piece) = if rows >= columns {
            (rows.div_ceil(pieces).next_multiple_of(kernels.panel_rows), columns)
        } else {
            (rows, columns.div_ceil(pieces).next_multiple_of(plan.width))
        };
        let column_pieces = columns.div_ceil(column_piece);
        let tasks = rows.div_ceil(row_piece) * column_pieces;
        Some(Cut { update: self, plan, row_piece, column_piece, column_pieces, tasks })
    }

    fn plan(&self, kernels: &'static Kernels) -> Plan {
        let is_bf16 = self.rows.format == Format::Bf16 && self.columns.format == Format::Bf16;
        let paired = if is_bf16 { kernels.paired.as_ref() } else { None };
        // SAFETY: as `run`: every element of the adapter's matrices is readable.
        let paired = paired.filter(|_| unsafe { pairs_are_exact(&self.rows, &self.columns) });
        let order = match (is_bf16, paired) {
            (false, _) => Order::Ascending,
            (true, None) => Order::OddFirst,
            (true, Some(_)) => Order::Pairs,
        };
        Plan {
            kernels,
            tiles: paired.unwrap_or(&kernels.fused)[self.target.format as usize],
            order,
            steps: order.steps(self.columns.rows),
            width: 2 * kernels.lanes,
        }
    }

    /// Updates a part of the target, packing what it needs.
    ///
    /// # Safety
    ///
    /// As [`Self::run`], for the part; the processor has the tier of the plan.
    unsafe fn run_task(&self, plan: &Plan, rows: Range<usize>, columns: Range<usize>, scratch: &mut Scratch) {
        let is_split = self.target.format.is_split();
        let step_bytes = size_of::<f32>() * plan.steps.max(1);
        let panel_rows = plan.kernels.panel_rows;
        let row_block = (ROW_BYTES / step_bytes / panel_rows).max(1) * panel_rows;
        let column_bytes = if rows.len() > panel_rows { COLUMN_BYTES } else { COLUMN_BYTES_ONCE };
        let column_block = (column_bytes / step_bytes / plan.width).max(1) * plan.width;
        for row in rows.clone().step_by(row_block) {
            let count = row_block.min(rows.end - row);
            let packed_rows = scratch.rows.numbers(count.next_multiple_of(panel_rows) * plan.steps);
            let job =
                RowPack { matrix: self.rows, order: plan.order, first: row, count, panels: packed_rows };
            // SAFETY: the caller vouches for the tier and the elements; the buffer is as long as the panels.
            unsafe { (plan.kernels.pack_rows)(&job) };
            let mut column = columns.start;
            while column < columns.end {
                let head = if column == columns.start { self.head(plan, &rows, &columns) } else { 0 };
                let width = (head + column_block).min(columns.end - column);
                let lead = if head > 0 { plan.width } else { 0 };
                let panels = scratch
                    .columns
                    .numbers((lead + (width - head).next_multiple_of(plan.width)) * plan.steps);
                let job = |first: usize, count: usize, panels: *mut f32| ColumnPack {
                    matrix: self.columns,
                    order: plan.order,
                    is_split,
                    first,
                    count,
                    panels,
                };
                // SAFETY: as above.
                unsafe {
                    (plan.kernels.pack_columns)(&job(column, head, panels));
                    let body = panels.wrapping_add(lead * plan.steps);
                    (plan.kernels.pack_columns)(&job(column + head, width - head, body));
                    let packed = Packed { rows: packed_rows, head, columns: panels };
                    self.run_block(plan, row..row + count, column..column + width, &packed);
                }
                column += width;
            }
        }
    }

    /// Columns before the first whose elements begin a register: a tile that lies across cache lines takes a fifth
    /// longer at rank 8. Zero where rows differ in that, or where there is little to gain.
    fn head(&self, plan: &Plan, rows: &Range<usize>, columns: &Range<usize>) -> usize {
        let size = self.target.format.size();
        let panel_bytes = plan.width * size;
        let is_worth_it = rows.len() > plan.kernels.panel_rows
            && columns.len() >= HEAD_PANELS * plan.width
            && self.target.has_dense_rows()
            && self.target.row_stride.unsigned_abs().is_multiple_of(panel_bytes);
        let missing = self.target.at(rows.start, columns.start).addr().wrapping_neg() % panel_bytes;
        if is_worth_it && missing.is_multiple_of(size) { missing / size } else { 0 }
    }

    /// Updates a block whose rows and columns are packed, panel of rows by panel of rows.
    ///
    /// # Safety
    ///
    /// As [`Self::run_task`]; `packed` holds the rows and the columns of the block.
    unsafe fn run_block(&self, plan: &Plan, rows: Range<usize>, columns: Range<usize>, packed: &Packed) {
        let is_dense = self.target.has_dense_rows() && self.source.has_dense_rows();
        let mut row = rows.start;
        while row < rows.end {
            let within = (row - rows.start) % plan.kernels.panel_rows;
            let left = (plan.kernels.panel_rows - within).min(rows.end - row);
            let (kernel, count) = plan.tiles.largest(left, plan.kernels.panel_rows);
            let row_panel = packed.rows.wrapping_add((row - rows.start - within) * plan.steps + within);
            let body = columns.start + packed.head;
            let whole = if is_dense { (columns.end - body) / plan.width } else { 0 };
            let wide = if count == 1 { whole / ONE_PANELS } else { 0 };
            let single = whole - wide * ONE_PANELS;
            let below =
                self.source.offset(count, 0) - ((columns.end - body) * self.source.format.size()) as isize;
            let right = self.source.offset(0, PANELS_AHEAD * plan.width);
            let lead = if packed.head > 0 { plan.width } else { 0 };
            let tile = |column: usize, panels: usize| Tile {
                panels,
                columns: packed.columns.wrapping_add(if column < body {
                    0
                } else {
                    (lead + column - body) * plan.steps
                }),
                rows: row_panel,
                steps: plan.steps,
                source: self.source.at(row, column),
                source_stride: self.source.row_stride,
                target: self.target.at(row, column).cast_mut(),
                target_stride: self.target.row_stride,
                ahead: right,
                ahead_below: below + right,
                scaling: self.scaling,
            };
            let staged = |column: usize, end: usize| {
                let places = (&self.source, &self.target);
                // SAFETY: the caller vouches for the tier, the elements and the packed panels.
                unsafe {
                    staged::run(kernel, tile(column, 1), places, row..row + count, column..end, plan.width);
                }
            };
            if packed.head > 0 {
                staged(columns.start, body);
            }
            let mut column = body;
            // SAFETY: the caller vouches for the tier, the elements and the packed panels; a kernel that reaches
            // beyond the block works on a copy.
            unsafe {
                if wide > 0 {
                    (plan.tiles.one_wide)(&tile(column, wide));
                    column += wide * ONE_PANELS * plan.width;
                }
                if single > 0 {
                    kernel(&tile(column, single));
                    column += single * plan.width;
                }
            }
            while column < columns.end {
                let end = columns.end.min(column + plan.width);
                staged(column, end);
                column = end;
            }
            row += count;
        }
    }
}

/// Runs updates whose targets do not meet, all of their tasks together on at most `threads` threads.
///
/// # Safety
///
/// As [`Update::run`] for each; no target meets what another update reads or writes.
pub(super) unsafe fn run_all(updates: Vec<Update>, kernels: &'static Kernels, threads: usize) {
    // SAFETY: the caller vouches for the updates.
    let cuts: Vec<Cut> =
        updates.into_iter().filter_map(|update| unsafe { update.cut(kernels, threads) }).collect();
    let mut first_tasks = Vec::with_capacity(cuts.len());
    let mut tasks = 0;
    for cut in &cuts {
        first_tasks.push(tasks);
        tasks += cut.tasks;
    }
    parallel_for(threads.min(tasks), tasks, |task| {
        let index = first_tasks.partition_point(|&first| first <= task) - 1;
        // SAFETY: the caller vouches for the updates; each task is run once.
        unsafe { cuts[index].run(task - first_tasks[index]) };
    });
}

/// An update in tasks.
struct Cut {
    update: Update,
    plan: Plan,
    row_piece: usize,
    column_piece: usize,
    column_pieces: usize,
    tasks: usize,
}

impl Cut {
    /// Runs a task.
    ///
    /// # Safety
    ///
    /// As [`Update::run`]; each task once.
    unsafe fn run(&self, task: usize) {
        let row = task / self.column_pieces * self.row_piece;
        let column = task % self.column_pieces * self.column_piece;
        let rows = row..self.update.target.rows.min(row + self.row_piece);
        let columns = column..self.update.target.columns.min(column + self.column_piece);
        let _control = FloatControl::ieee();
        // SAFETY: the caller vouches for the matrices; tasks take disjoint parts of the target.
        with_task(|scratch| unsafe { self.update.run_task(&self.plan, rows, columns, scratch) });
    }
}

/// Packed rows and columns of a block.
struct Packed {
    rows: *const f32,
    /// Columns of the first panel, where it is not full because the others begin at a multiple of their bytes.
    head: usize,
    columns: *const f32,
}
