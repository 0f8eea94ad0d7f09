//! A pass over a matrix that hands out inner products, a stretch of a row at a time.
//!
//! [`super::update`] fuses everything into one kernel and serves the plain merge. What needs more of an element than
//! to be written (its old bits, its delta, the norm of its row) goes through here: the kernels leave inner products
//! in a first-level cache, and a [`RowSink`] does the rest.

use super::Kernels;
use super::control::FloatControl;
use super::exponents::pairs_are_exact;
use super::matrix::Matrix;
use super::pack::{ColumnPack, Order, RowPack};
use super::scratch::{Scratch, with_task};
use super::storage::Format;
use super::tile::{PANELS_AHEAD, Tile, TileFn};
use infer_accel_tensor::threads::parallel_for;
use std::ops::Range;
use std::sync::Mutex;

/// Elements of a row that go through all passes together. The digest of a matrix depends on it.
pub(crate) const SEGMENT: usize = 256;

/// Bytes of packed columns that all rows of a task pass over; they stay in a second-level cache.
const COLUMN_BYTES: usize = 256 << 10;

/// Bytes of packed rows that a task holds.
const ROW_BYTES: usize = 512 << 10;

/// Elements below which a second thread costs more than it brings.
const THREAD_ELEMENTS: usize = 1 << 14;

/// Tasks for each thread.
const TASKS_PER_THREAD: usize = 4;

/// One low-rank product.
#[derive(Clone, Copy)]
pub(crate) struct Factors {
    /// `[rows, rank]`
    pub(crate) rows: Matrix,
    /// `[rank, columns]`
    pub(crate) columns: Matrix,
}

/// A stretch of a row, and its inner products.
pub(crate) struct Segment {
    /// The row.
    pub(crate) row: usize,
    /// The first column.
    pub(crate) column: usize,
    /// Columns, at most [`SEGMENT`].
    pub(crate) count: usize,
    /// Whether this is the first stretch of the panel of rows that are worked on together.
    pub(crate) is_first_of_panel: bool,
    /// Rows since the panel's first.
    pub(crate) within_panel: usize,
    sums: *const f32,
    stride: usize,
}

impl Segment {
    /// The inner products of one pair of factors: `count` numbers.
    #[inline(always)]
    pub(crate) fn sums(&self, part: usize) -> *const f32 {
        self.sums.wrapping_add(part * self.stride)
    }
}

/// What is done with the inner products.
pub(crate) trait RowSink: Sync {
    /// What a task keeps.
    type State: Send;

    /// Whether the inner products come in the order of a tile of bfloat16, even columns apart from odd ones.
    fn wants_split(&self) -> bool {
        false
    }

    /// The state of a task before its first segment.
    fn begin(&self) -> Self::State;

    /// Takes a segment. Those of a row come from left to right, all in one task if tasks are whole rows.
    ///
    /// # Safety
    ///
    /// The processor has the tier of the sweep; each segment is handed out once.
    unsafe fn segment(&self, state: &mut Self::State, segment: &Segment);
}

/// A pass over all elements of a matrix.
pub(crate) struct Sweep<'a> {
    /// The kernels that are used.
    pub(crate) kernels: &'static Kernels,
    /// The matrix that the sink reads: its lines are asked for in time.
    pub(crate) touched: Matrix,
    /// What is multiplied; none has rank 0.
    pub(crate) factors: &'a [Factors],
    /// Whether tasks must be whole rows.
    pub(crate) whole_rows: bool,
    /// The most threads to use.
    pub(crate) threads: usize,
}

// SAFETY: holds addresses of memory that is borrowed for as long as the sweep runs and that it only reads.
unsafe impl Sync for Sweep<'_> {}

/// How a pair of factors is multiplied.
struct Plan {
    factors: Factors,
    kernel: TileFn,
    order: Order,
    steps: usize,
    /// Steps of the pairs before this one.
    before: usize,
}

// SAFETY: as for the sweep.
unsafe impl Sync for Plan {}

impl Sweep<'_> {
    /// Runs the sweep and gives back what its tasks kept, in order.
    ///
    /// # Safety
    ///
    /// All elements of the factors are readable, and their shapes fit the matrix; the processor has the tier.
    pub(crate) unsafe fn run<S: RowSink>(&self, sink: &S) -> Vec<S::State> {
        let (rows, columns) = (self.touched.rows, self.touched.columns);
        if self.touched.is_empty() {
            return Vec::new();
        }
        // SAFETY: the caller vouches for the factors.
        let plans = unsafe { self.plans() };
        let work = (rows.saturating_mul(columns) / THREAD_ELEMENTS).max(1);
        let pieces = if self.threads == 1 { 1 } else { work.min(self.threads * TASKS_PER_THREAD) };
        let (row_piece, column_piece) = if rows >= columns || self.whole_rows {
            (rows.div_ceil(pieces).next_multiple_of(self.kernels.panel_rows), columns)
        } else {
            (rows, columns.div_ceil(pieces).next_multiple_of(SEGMENT))
        };
        let column_pieces = columns.div_ceil(column_piece);
        let tasks = rows.div_ceil(row_piece) * column_pieces;
        let states: Vec<Mutex<Option<S::State>>> = (0..tasks).map(|_| Mutex::new(None)).collect();
        parallel_for(self.threads.min(pieces), tasks, |task| {
            let (row, column) = (task / column_pieces * row_piece, task % column_pieces * column_piece);
            let _control = FloatControl::ieee();
            let mut state = sink.begin();
            let rows = row..rows.min(row + row_piece);
            let columns = column..columns.min(column + column_piece);
            // SAFETY: the caller vouches for the factors and the tier.
            with_task(|scratch| unsafe { self.run_task(&plans, rows, columns, scratch, sink, &mut state) });
            if let Some(slot) = states.get(task) {
                // A poisoned lock means that a task has panicked, and the panic goes on by itself.
                *slot.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(state);
            }
        });
        let state = |slot: Mutex<_>| slot.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        states.into_iter().filter_map(state).collect()
    }

    /// # Safety
    ///
    /// As [`Self::run`].
    unsafe fn plans(&self) -> Vec<Plan> {
        let mut before = 0;
        let plan = |factors: &Factors| {
            let is_bf16 = factors.rows.format == Format::Bf16 && factors.columns.format == Format::Bf16;
            let paired = if is_bf16 { self.kernels.paired_sums } else { None };
            // SAFETY: the caller vouches for the factors.
            let paired = paired.filter(|_| unsafe { pairs_are_exact(&factors.rows, &factors.columns) });
            let order = match (is_bf16, paired) {
                (false, _) => Order::Ascending,
                (true, None) => Order::OddFirst,
                (true, Some(_)) => Order::Pairs,
            };
            let steps = order.steps(factors.columns.rows);
            before += steps;
            let kernel = paired.unwrap_or(self.kernels.sums);
            Plan { factors: *factors, kernel, order, steps, before: before - steps }
        };
        self.factors.iter().map(plan).collect()
    }

    /// Takes a part of the matrix, packing what it needs.
    ///
    /// # Safety
    ///
    /// As [`Self::run`].
    unsafe fn run_task<S: RowSink>(
        &self,
        plans: &[Plan],
        rows: Range<usize>,
        columns: Range<usize>,
        scratch: &mut Scratch,
        sink: &S,
        state: &mut S::State,
    ) {
        let panel_rows = self.kernels.panel_rows;
        let steps = plans.iter().map(|plan| plan.steps).sum::<usize>();
        let step_bytes = size_of::<f32>() * steps.max(1);
        let row_block = (ROW_BYTES / step_bytes / panel_rows).max(1) * panel_rows;
        let column_block = (COLUMN_BYTES / step_bytes / SEGMENT).max(1) * SEGMENT;
        let sums = scratch.ranks.numbers(panel_rows * SEGMENT * plans.len());
        for row in rows.clone().step_by(row_block) {
            let count = row_block.min(rows.end - row);
            let height = count.next_multiple_of(panel_rows);
            let packed_rows = scratch.rows.numbers(height * steps);
            for plan in plans {
                let panels = packed_rows.wrapping_add(height * plan.before);
                let job = RowPack { matrix: plan.factors.rows, order: plan.order, first: row, count, panels };
                // SAFETY: the caller vouches for tier and elements; the buffer is as long as all panels.
                unsafe { (self.kernels.pack_rows)(&job) };
            }
            for column in columns.clone().step_by(column_block) {
                let width = column_block.min(columns.end - column);
                let padded = width.next_multiple_of(2 * self.kernels.lanes);
                let packed_columns = scratch.columns.numbers(padded * steps);
                for plan in plans {
                    let job = ColumnPack {
                        matrix: plan.factors.columns,
                        order: plan.order,
                        is_split: sink.wants_split(),
                        first: column,
                        count: width,
                        panels: packed_columns.wrapping_add(padded * plan.before),
                    };
                    // SAFETY: as above.
                    unsafe { (self.kernels.pack_columns)(&job) };
                }
                let block = Block { packed_rows, height, packed_columns, padded, sums };
                let (rows, columns) = (row..row + count, column..column + width);
                // SAFETY: as above; the block holds all rows and columns, and the sums of a panel.
                unsafe { self.run_block(plans, &block, rows, columns, sink, state) };
            }
        }
    }

    /// Takes a block whose rows and columns are packed.
    ///
    /// # Safety
    ///
    /// As [`Self::run`]; the block holds the rows and the columns.
    unsafe fn run_block<S: RowSink>(
        &self,
        plans: &[Plan],
        block: &Block,
        rows: Range<usize>,
        columns: Range<usize>,
        sink: &S,
        state: &mut S::State,
    ) {
        let panel_rows = self.kernels.panel_rows;
        for panel in rows.clone().step_by(panel_rows) {
            for first in columns.clone().step_by(SEGMENT) {
                let stretch = first..columns.end.min(first + SEGMENT);
                for (index, plan) in plans.iter().enumerate() {
                    let sums = block.sums.wrapping_add(index * panel_rows * SEGMENT);
                    // SAFETY: the caller vouches for the block.
                    unsafe { self.multiply(plan, block, (&rows, panel), (&columns, &stretch), sums) };
                }
                for (within_panel, row) in (panel..rows.end.min(panel + panel_rows)).enumerate() {
                    let segment = Segment {
                        row,
                        column: first,
                        count: stretch.len(),
                        is_first_of_panel: first == columns.start && within_panel == 0,
                        within_panel,
                        sums: block.sums.wrapping_add(within_panel * SEGMENT),
                        stride: panel_rows * SEGMENT,
                    };
                    // SAFETY: the caller vouches for the tier; blocks are disjoint, and so are their segments.
                    unsafe { sink.segment(state, &segment) };
                }
            }
        }
    }

    /// Leaves the inner products of a panel of rows and a stretch of columns in `sums`.
    ///
    /// # Safety
    ///
    /// As [`Self::run_block`].
    #[inline(always)]
    unsafe fn multiply(
        &self,
        plan: &Plan,
        block: &Block,
        (rows, panel): (&Range<usize>, usize),
        (columns, stretch): (&Range<usize>, &Range<usize>),
        sums: *mut f32,
    ) {
        let (width, steps) = (2 * self.kernels.lanes, plan.steps);
        let packed_rows = block.packed_rows.wrapping_add(block.height * plan.before);
        let packed_columns = block.packed_columns.wrapping_add(block.padded * plan.before);
        let row_panel = packed_rows.wrapping_add((panel - rows.start) * steps);
        let right = self.touched.offset(0, PANELS_AHEAD * width);
        let below = self.touched.offset(self.kernels.panel_rows, 0) - self.touched.offset(0, columns.len());
        let tile = Tile {
            panels: stretch.len().div_ceil(width),
            columns: packed_columns.wrapping_add((stretch.start - columns.start) * steps),
            rows: row_panel,
            steps,
            source: self.touched.at(panel, stretch.start),
            source_stride: self.touched.row_stride,
            target: sums.cast(),
            target_stride: (SEGMENT * size_of::<f32>()) as isize,
            ahead: right,
            ahead_below: if stretch.end < columns.end { right } else { below + right },
            scaling: 1.0,
        };
        // SAFETY: the caller vouches for tier and panels; the buffer has a full tile's rows, each as long as a segment, a
        // multiple of the width of a tile; the kernel only asks for the lines of the source.
        unsafe { (plan.kernel)(&tile) };
    }
}

/// Packed factors, and room for the inner products of a panel.
struct Block {
    packed_rows: *const f32,
    /// Rows that are packed, filled up to whole panels.
    height: usize,
    packed_columns: *const f32,
    /// Columns that are packed, filled up to whole panels.
    padded: usize,
    sums: *mut f32,
}
