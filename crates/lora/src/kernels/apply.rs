//! `out += scaling · (x · lora_aᵀ) · lora_bᵀ`: tokens are shrunk to the rank, then expanded by an [`Update`].

use super::control::FloatControl;
use super::matrix::Matrix;
use super::scratch::{Scratch, with_call, with_task};
use super::shrink::{PARTS, ShrinkTile, total};
use super::storage::Format;
use super::update::Update;
use super::{CallSettings, Kernels};
use infer_accel_tensor::threads::parallel_for;
use infer_accel_tensor::{TensorMut, TensorRef};
use std::ops::Range;

/// Tokens that go through both steps together: what lies between the steps stays in a cache, and its memory does
/// not grow with the batch.
const ROUND_TOKENS: usize = 512;

/// Features that a tile of tokens passes over at once: a few kilobytes, which stay in a first-level cache while
/// all ranks go by.
const FEATURE_BLOCK: usize = 1024;

/// Multiplications below which a second thread costs more than it brings.
const THREAD_WORK: usize = 1 << 18;

/// Tokens by features, and what they are multiplied with.
#[derive(Clone, Copy)]
struct Shrink {
    /// `[tokens, features]`
    tokens: Matrix,
    /// `[rank, features]`
    ranks: Matrix,
    /// `[tokens, rank]`, dense.
    shrunk: *mut f32,
}

// SAFETY: holds addresses of memory that is borrowed for as long as it is used; tasks write disjoint parts of
// `shrunk` and only read the rest.
unsafe impl Sync for Shrink {}

/// Applies an adapter to tokens.
///
/// # Panics
///
/// Where shapes, dtypes or dimensions do not fit each other; the caller has checked them.
pub(crate) fn apply(
    out: &mut TensorMut<'_>,
    x: &TensorRef<'_>,
    lora_a: &TensorRef<'_>,
    lora_b: &TensorRef<'_>,
    settings: &CallSettings,
) {
    let parts = (|| {
        let written = Matrix { base: out.as_mut_ptr(), ..Matrix::of(&out.as_ref())? };
        Some((written, Matrix::of(x)?, Matrix::of(lora_a)?, Matrix::of(lora_b)?))
    })();
    let parts = parts.filter(|(out, x, a, b)| {
        (out.rows, out.columns, x.columns, a.rows) == (x.rows, b.rows, a.columns, b.columns)
    });
    let (out, x, a, b) = parts.unwrap_or_else(|| panic!("an application of unchecked tensors"));
    // SAFETY: the tensors are borrowed for this call, `out` mutably, hence apart from the others; what the matrices
    // describe is what the tensors hold, and it fits together.
    unsafe { run(Kernels::of(settings.tier), out, [x, a, b], settings.scaling, settings.threads) }
}

/// Applies `[x, lora_a, lora_b]` to `out`, a round of tokens at a time.
///
/// # Safety
///
/// All elements of the matrices are readable, those of `out` writable, no two at one address, and apart from the
/// others; the shapes fit; the processor has the tier of the kernels.
pub(super) unsafe fn run(
    kernels: &'static Kernels,
    out: Matrix,
    [x, a, b]: [Matrix; 3],
    scaling: f32,
    threads: usize,
) {
    if out.is_empty() || a.is_empty() {
        return; // nothing to add
    }
    let (rank, format) = (a.rows, Format::F32);
    let stride = format.size() as isize;
    with_call(|buffer| {
        let shrunk = buffer.numbers(ROUND_TOKENS.min(x.rows) * rank);
        for first in (0..x.rows).step_by(ROUND_TOKENS) {
            let rows = ROUND_TOKENS.min(x.rows - first);
            let target = Matrix { base: out.at(first, 0), rows, ..out };
            let shrink = Shrink { tokens: Matrix { base: x.at(first, 0), rows, ..x }, ranks: a, shrunk };
            let hidden = Matrix {
                base: shrunk.cast(),
                format,
                rows,
                columns: rank,
                row_stride: rank as isize * stride,
                column_stride: stride,
            };
            let expand = Update { source: target, target, rows: hidden, columns: b.transposed(), scaling };
            // SAFETY: the caller vouches for the matrices; the buffer is as long as one round needs.
            unsafe {
                shrink.run(kernels, threads);
                expand.run(kernels, threads);
            }
        }
    });
}

impl Shrink {
    /// Fills `shrunk` on at most `threads` threads; the result does not depend on how many.
    ///
    /// # Safety
    ///
    /// All elements of the matrices are readable, `shrunk` is writable and apart from them; the processor has the
    /// tier of the kernels.
    unsafe fn run(&self, kernels: &'static Kernels, threads: usize) {
        let (tokens, ranks) = (self.tokens.rows, self.ranks.rows);
        let work = tokens.saturating_mul(ranks).saturating_mul(self.ranks.columns);
        let pieces = if threads == 1 { 1 } else { (work / THREAD_WORK).clamp(1, threads) };
        let token_piece = tokens.div_ceil(pieces).next_multiple_of(kernels.shrink_tokens);
        let token_pieces = tokens.div_ceil(token_piece);
        // A few tokens for many threads: the ranks are cut as well.
        let rank_piece = ranks.div_ceil(pieces / token_pieces).next_multiple_of(8);
        let tasks = token_pieces * ranks.div_ceil(rank_piece);
        parallel_for(threads.min(pieces), tasks, |task| {
            let (token, rank) = (task % token_pieces * token_piece, task / token_pieces * rank_piece);
            let _control = FloatControl::ieee();
            with_task(|scratch| {
                let ranks = rank..ranks.min(rank + rank_piece);
                for first in (token..tokens.min(token + token_piece)).step_by(kernels.shrink_tokens) {
                    let last = tokens.min(first + kernels.shrink_tokens);
                    // SAFETY: the caller vouches for the memory; tasks fill disjoint parts.
                    unsafe { self.run_tile(kernels, first..last, ranks.clone(), scratch) }
                }
            });
        });
    }

    /// Shrinks a few tokens to some ranks.
    ///
    /// # Safety
    ///
    /// As [`Self::run`].
    unsafe fn run_tile(
        &self,
        kernels: &Kernels,
        tokens: Range<usize>,
        ranks: Range<usize>,
        scratch: &mut Scratch,
    ) {
        let features = self.ranks.columns;
        let token_stride = FEATURE_BLOCK.min(features.next_multiple_of(PARTS));
        let widened = scratch.columns.numbers(tokens.len() * token_stride);
        let sum_count = tokens.len() * ranks.len() * PARTS;
        let sums = scratch.rows.numbers(sum_count);
        // SAFETY: the buffer holds the sums.
        unsafe { sums.write_bytes(0, sum_count) };
        for first in (0..features).step_by(FEATURE_BLOCK) {
            let count = FEATURE_BLOCK.min(features - first);
            let whole = if self.ranks.has_dense_rows() { count / PARTS * PARTS } else { 0 };
            let mut tile = ShrinkTile {
                tokens: widened,
                token_stride,
                token_count: tokens.len(),
                ranks: self.ranks.at(ranks.start, first),
                rank_stride: self.ranks.row_stride,
                rank_count: ranks.len(),
                runs: whole / PARTS,
                sums,
            };
            // SAFETY: the caller vouches for the elements and the tier; the buffers are as long as the tile says:
            // features that do not fill a run are staged together with zeros, for the tokens and for the ranks.
            unsafe {
                for (index, token) in tokens.clone().enumerate() {
                    let target = widened.add(index * token_stride);
                    widen_row(kernels, &self.tokens, token, first..first + count, target);
                }
                (kernels.shrink[self.ranks.format as usize])(&tile);
                if whole < count {
                    let stride = (count - whole).next_multiple_of(PARTS);
                    let staged = scratch.ranks.numbers(ranks.len() * stride);
                    for (index, rank) in ranks.clone().enumerate() {
                        let target = staged.add(index * stride);
                        widen_row(kernels, &self.ranks, rank, first + whole..first + count, target);
                    }
                    tile.tokens = widened.add(whole);
                    tile.ranks = staged.cast();
                    tile.rank_stride = (stride * size_of::<f32>()) as isize;
                    tile.runs = stride / PARTS;
                    (kernels.shrink[Format::F32 as usize])(&tile);
                }
            }
        }
        for (index, token) in tokens.enumerate() {
            for (part, rank) in ranks.clone().enumerate() {
                // SAFETY: the sums are those of the tile, and `shrunk` has a place for each token and rank.
                unsafe {
                    let parts = sums.add((index * ranks.len() + part) * PARTS).cast::<[f32; PARTS]>().read();
                    self.shrunk.add(token * self.ranks.rows + rank).write(total(parts));
                }
            }
        }
    }
}

/// Widens some columns of a row and fills up with zeros to a whole number of [`PARTS`].
///
/// # Safety
///
/// The elements are readable; `target` is writable for them and the zeros; the processor has the tier.
unsafe fn widen_row(kernels: &Kernels, matrix: &Matrix, row: usize, columns: Range<usize>, target: *mut f32) {
    let count = columns.len();
    // SAFETY: the caller vouches for the elements, the target and the tier.
    unsafe {
        if matrix.has_dense_rows() {
            (kernels.widen[matrix.format as usize])(matrix.at(row, columns.start), target, count);
        } else {
            for (index, column) in columns.enumerate() {
                target.add(index).write(matrix.format.read(matrix.at(row, column)));
            }
        }
        target.add(count).write_bytes(0, count.next_multiple_of(PARTS) - count);
    }
}
