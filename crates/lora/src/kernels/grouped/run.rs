//! Cutting a mixed batch into tiles and tasks.

use super::super::control::FloatControl;
use super::super::matrix::Matrix;
use super::super::scratch::{Scratch, with_call, with_task};
use super::super::shrink::PARTS;
use super::super::storage::Format;
use super::expand::ExpandJob;
use super::shrink::ShrinkJob;
use super::{GroupedKernels, PANEL, PackedPair, ROWS};
use infer_accel_tensor::simd::Tier;
use infer_accel_tensor::threads::parallel_for;
use infer_accel_tensor::{TensorMut, TensorRef};
use std::ops::Range;
use std::sync::Arc;

/// Numbers that a tile of tokens passes over at once, 18 KiB: with a pair of ranks they stay in a first-level cache
/// while all pairs go by. A full tile passes 768 features, a token alone as many as most layers have, so that the ranks
/// come in as long streams.
const FEATURE_NUMBERS: usize = 768 * ROWS;

/// Runs of features from the one at work to the one whose ranks are asked for, a kilobyte of bfloat16.
const RUNS_AHEAD: usize = 16;

/// Multiplications below which a second thread costs more than it brings.
const THREAD_WORK: usize = 1 << 18;

/// Tiles for each thread from which on a tile is one task, shrunk and expanded; fewer tiles are cut across.
const TILES_PER_THREAD: usize = 4;

/// A packed pair of matrices and the outputs that it adds to.
#[derive(Clone)]
pub(crate) struct Part {
    pub(crate) pair: Arc<PackedPair>,
    /// The column of the target that its first output is.
    pub(crate) first_column: usize,
    /// What its product is multiplied by.
    pub(crate) scaling: f32,
}

/// Tokens of one adapter.
pub(crate) struct Segment<'a> {
    /// What is applied to them; the columns of two parts lie apart.
    pub(crate) parts: &'a [Part],
    /// Which tokens: a range of the call's order.
    pub(crate) tokens: Range<usize>,
}

/// Up to [`ROWS`] tokens of one segment.
struct Tile<'a> {
    parts: &'a [Part],
    tokens: &'a [usize],
    /// Where its inner products begin.
    hidden: usize,
}

struct Call<'a> {
    kernels: &'static GroupedKernels,
    out: Matrix,
    x: Matrix,
    tiles: Vec<Tile<'a>>,
}

// SAFETY: holds addresses of memory that is borrowed for as long as it is used; tasks write disjoint parts of the
// target and of the inner products, and only read the rest.
unsafe impl Sync for Call<'_> {}

/// Applies segments to a batch; the result does not depend on the number of threads.
///
/// # Panics
///
/// Where shapes, dtypes or token numbers do not fit each other; the caller has checked them.
pub(crate) fn apply_segments(
    out: &mut TensorMut<'_>,
    x: &TensorRef<'_>,
    order: &[usize],
    segments: &[Segment<'_>],
    (tier, threads): (Tier, usize),
) {
    let parts = Matrix::of(&out.as_ref()).zip(Matrix::of(x));
    let (written, x) = parts.unwrap_or_else(|| panic!("an application of unchecked tensors"));
    let out = Matrix { base: out.as_mut_ptr(), ..written };
    let mut seen = vec![false; out.rows];
    let fits = out.rows == x.rows
        && segments.iter().all(|segment| {
            let tokens = order.get(segment.tokens.clone()).unwrap_or(&[usize::MAX]);
            tokens.iter().all(|&token| token < out.rows && !std::mem::replace(&mut seen[token], true))
                && segment.parts.iter().all(|part| {
                    let last = part.first_column.checked_add(part.pair.out_features());
                    part.pair.in_features() == x.columns && last.is_some_and(|last| last <= out.columns)
                })
        });
    assert!(fits, "an application of unchecked segments");
    // SAFETY: the tensors are borrowed for this call, `out` mutably, hence apart from the others; what the matrices
    // describe is what the tensors hold; every token appears once.
    unsafe { run(GroupedKernels::of(tier), out, x, order, segments, threads) }
}

/// Applies segments of `order` to `out`.
///
/// # Safety
///
/// All elements of the matrices are readable, those of `out` writable, no two at one address, and apart from the
/// others; shapes fit; tokens are rows, each named once; the processor has the tier of the kernels.
pub(in super::super) unsafe fn run(
    kernels: &'static GroupedKernels,
    out: Matrix,
    x: Matrix,
    order: &[usize],
    segments: &[Segment<'_>],
    threads: usize,
) {
    let mut tiles = Vec::new();
    let (mut hidden_len, mut work) = (0_usize, 0_usize);
    for segment in segments {
        let ranks: usize = segment.parts.iter().map(|part| 2 * part.pair.pair_count()).sum();
        if ranks == 0 || x.columns == 0 {
            continue; // nothing to add: the bits stay
        }
        for tokens in order[segment.tokens.clone()].chunks(ROWS) {
            tiles.push(Tile { parts: segment.parts, tokens, hidden: hidden_len });
            hidden_len += ranks * ROWS;
        }
        let multiplications =
            segment.parts.iter().map(|part| part.pair.byte_len()).fold(0, usize::saturating_add);
        work = work.saturating_add(multiplications.saturating_mul(segment.tokens.len()));
    }
    let call = Call { kernels, out, x, tiles };
    let count = call.tiles.len();
    let pieces = if threads == 1 { 1 } else { (work / 2 / THREAD_WORK).clamp(1, threads) };
    if pieces == 1 || count >= pieces * TILES_PER_THREAD {
        parallel_for(pieces, count, |index| {
            let _control = FloatControl::ieee();
            let tile = &call.tiles[index];
            with_task(|scratch| {
                let hidden = scratch.ranks.numbers(tile.hidden_len());
                // SAFETY: the caller vouches for the matrices; tasks take disjoint tiles.
                unsafe {
                    call.shrink(tile, (0, 1), hidden, scratch);
                    call.expand(tile, (0, 1), hidden);
                }
            });
        });
        return;
    }
    let cuts = (pieces * TILES_PER_THREAD).div_ceil(count.max(1));
    with_call(|buffer| {
        let shared = Shared(buffer.numbers(hidden_len));
        let shared = &shared;
        parallel_for(pieces, count * cuts, |index| {
            let _control = FloatControl::ieee();
            let tile = &call.tiles[index / cuts];
            let hidden = shared.at(tile.hidden);
            with_task(|scratch| {
                // SAFETY: the caller vouches for the matrices; tasks take disjoint ranks.
                unsafe { call.shrink(tile, (index % cuts, cuts), hidden, scratch) }
            });
        });
        parallel_for(pieces, count * cuts, |index| {
            let _control = FloatControl::ieee();
            let tile = &call.tiles[index / cuts];
            // SAFETY: the caller vouches for the matrices; tasks take disjoint outputs.
            unsafe { call.expand(tile, (index % cuts, cuts), shared.at(tile.hidden)) };
        });
    });
}

/// The inner products of all tiles.
struct Shared(*mut f32);

// SAFETY: tasks write disjoint parts, and read only after all of them have been written.
unsafe impl Sync for Shared {}

impl Shared {
    fn at(&self, offset: usize) -> *mut f32 {
        self.0.wrapping_add(offset)
    }
}

impl Tile<'_> {
    fn hidden_len(&self) -> usize {
        self.parts.iter().map(|part| 2 * part.pair.pair_count() * ROWS).sum()
    }
}

/// The part of `count` things that falls to one cut of several.
fn cut(count: usize, (index, cuts): (usize, usize)) -> Range<usize> {
    count * index / cuts..count * (index + 1) / cuts
}

impl Call<'_> {
    /// Shrinks the tokens of a tile to some of the ranks of its parts.
    ///
    /// # Safety
    ///
    /// As [`run`]; `hidden` is writable for the inner products of the tile.
    unsafe fn shrink(&self, tile: &Tile<'_>, piece: (usize, usize), hidden: *mut f32, scratch: &mut Scratch) {
        let features = self.x.columns;
        let block = FEATURE_NUMBERS / tile.tokens.len() / PARTS * PARTS;
        let stride = block.min(features.next_multiple_of(PARTS));
        let tokens = scratch.columns.numbers(tile.tokens.len() * stride);
        let is_one_block = features <= block;
        let pairs: usize = tile.parts.iter().map(|part| cut(part.pair.pair_count(), piece).len()).sum();
        let token_sums = tile.tokens.len() * 2 * PARTS;
        let sums = scratch.rows.numbers(if is_one_block { 0 } else { pairs * token_sums });
        for first in (0..features).step_by(block) {
            let columns = first..features.min(first + block);
            let mut widened = None;
            let (mut sums, mut hidden) = (sums, hidden);
            for part in tile.parts {
                let pair = &*part.pair;
                let range = cut(pair.pair_count(), piece);
                let is_split = pair.a_format() == Format::Bf16 && self.kernels.splits();
                // SAFETY: the caller vouches for the tokens and the tier; the buffers are as long as the job says.
                unsafe {
                    if !range.is_empty() && widened != Some(is_split) {
                        self.widen(tile.tokens, columns.clone(), is_split, (tokens, stride));
                        widened = Some(is_split);
                    }
                    let job = ShrinkJob {
                        tokens,
                        token_stride: stride,
                        token_count: tile.tokens.len(),
                        pairs: pair.pairs().wrapping_add(
                            range.start * pair.pair_stride() + first / PARTS * pair.run_bytes(),
                        ),
                        pair_stride: pair.pair_stride(),
                        pair_count: range.len(),
                        runs: columns.len().div_ceil(PARTS),
                        ahead: RUNS_AHEAD,
                        is_first: first == 0,
                        is_last: columns.end == features,
                        sums,
                        hidden: hidden.wrapping_add(2 * range.start * ROWS),
                    };
                    (self.kernels.shrink[pair.a_format() as usize])(&job);
                }
                sums = sums.wrapping_add(range.len() * token_sums);
                hidden = hidden.wrapping_add(2 * pair.pair_count() * ROWS);
            }
        }
    }

    /// Widens some features of tokens, filled up with zeros to whole runs.
    ///
    /// # Safety
    ///
    /// As [`run`]; `target` is writable for the runs at its stride.
    unsafe fn widen(
        &self,
        tokens: &[usize],
        columns: Range<usize>,
        is_split: bool,
        (target, stride): (*mut f32, usize),
    ) {
        let whole = if self.x.has_dense_rows() { columns.len() / PARTS } else { 0 };
        let kernel = self.kernels.widen[usize::from(is_split)][self.x.format as usize];
        for (index, &token) in tokens.iter().enumerate() {
            let target = target.wrapping_add(index * stride);
            // SAFETY: the caller vouches for the elements and the target.
            unsafe {
                kernel(self.x.at(token, columns.start), target, whole);
                for first in (whole * PARTS..columns.len()).step_by(PARTS) {
                    let mut run = [0.0; PARTS];
                    for feature in 0..PARTS.min(columns.len() - first) {
                        let place = if is_split { feature % 2 * (PARTS / 2) + feature / 2 } else { feature };
                        run[place] = self.x.format.read(self.x.at(token, columns.start + first + feature));
                    }
                    target.add(first).cast::<[f32; PARTS]>().write(run);
                }
            }
        }
    }

    /// Expands the tokens of a tile to some of the outputs of its parts.
    ///
    /// # Safety
    ///
    /// As [`run`]; `hidden` holds the inner products of the tile.
    unsafe fn expand(&self, tile: &Tile<'_>, piece: (usize, usize), hidden: *const f32) {
        let width = 2 * self.kernels.lanes;
        let mut hidden = hidden;
        for part in tile.parts {
            let pair = &*part.pair;
            let tiles = cut(pair.out_features().div_ceil(width), piece);
            let whole = if self.out.has_dense_rows() { pair.out_features() / width } else { 0 };
            let job_at = |first: usize, count: usize| ExpandJob {
                panels: pair.panels().wrapping_add(first * width / PANEL * pair.panel_bytes()),
                panel_bytes: pair.panel_bytes(),
                rank: pair.rank(),
                hidden,
                rows: tile.tokens.len(),
                targets: std::array::from_fn(|row| {
                    let token = tile.tokens[row.min(tile.tokens.len() - 1)];
                    self.out.at(token, part.first_column + first * width).cast_mut()
                }),
                tiles: count,
                scaling: part.scaling,
            };
            let kernel = self.kernels.expand[pair.b_format() as usize][self.out.format as usize];
            let staged = tiles.start.max(whole)..tiles.end;
            if tiles.start < whole && !pair.is_empty() {
                // SAFETY: the caller vouches for tier, panels and targets, which hold whole tiles.
                unsafe { kernel(&job_at(tiles.start, whole.min(tiles.end) - tiles.start)) };
            }
            for index in staged {
                let columns = index * width..pair.out_features().min((index + 1) * width);
                // SAFETY: as above; the kernel works on a copy.
                unsafe {
                    self.expand_staged(tile, part, columns, |targets| {
                        kernel(&ExpandJob { targets, ..job_at(index, 1) });
                    });
                };
            }
            hidden = hidden.wrapping_add(2 * pair.pair_count() * ROWS);
        }
    }

    /// Runs a kernel on a dense copy of outputs that are fewer than a tile, or that lie apart.
    ///
    /// # Safety
    ///
    /// As [`run`]; the columns are outputs of the part.
    #[inline(never)]
    unsafe fn expand_staged(
        &self,
        tile: &Tile<'_>,
        part: &Part,
        columns: Range<usize>,
        kernel: impl Fn([*mut u8; ROWS]),
    ) {
        if part.pair.is_empty() {
            return;
        }
        let mut stage = Stage([0; ROWS * STAGE_BYTES]);
        let stage = stage.0.as_mut_ptr();
        let size = self.out.format.size();
        let each = |step: &dyn Fn(*mut u8, *mut u8)| {
            for (row, &token) in tile.tokens.iter().enumerate() {
                for (place, column) in columns.clone().enumerate() {
                    let staged = stage.wrapping_add(row * STAGE_BYTES + place * size);
                    step(self.out.at(token, part.first_column + column).cast_mut(), staged);
                }
            }
        };
        // SAFETY: the elements exist and may be written, and the stage holds a full tile.
        each(&|element, staged| unsafe { staged.copy_from_nonoverlapping(element, size) });
        kernel(std::array::from_fn(|row| stage.wrapping_add(row * STAGE_BYTES)));
        // SAFETY: as above.
        each(&|element, staged| unsafe { element.copy_from_nonoverlapping(staged, size) });
    }
}

/// Bytes of a row of the widest tile: 32 columns of binary32.
const STAGE_BYTES: usize = 32 * 4;

#[repr(align(64))]
struct Stage([u8; ROWS * STAGE_BYTES]);
