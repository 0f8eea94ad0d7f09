//! Inner products of a few tokens with packed pairs of ranks.

use super::super::shrink::PARTS;
use super::super::storage::{Format, Storage};
use super::super::vector::Vector;
use super::{LINE_BYTES, ROWS};

/// Some tokens and pairs of ranks over a block of features.
#[derive(Clone, Copy)]
pub(crate) struct ShrinkJob {
    /// The first token's features, as binary32; even ones of each run first where the tier splits the ranks' format.
    pub(crate) tokens: *const f32,
    /// Numbers from a token to the next.
    pub(crate) token_stride: usize,
    /// Tokens, at most [`ROWS`].
    pub(crate) token_count: usize,
    /// The first pair's ranks at the first run: sixteen features of one rank, then of the other, run after run.
    pub(crate) pairs: *const u8,
    /// Bytes from a pair to the next.
    pub(crate) pair_stride: usize,
    /// Pairs.
    pub(crate) pair_count: usize,
    /// Runs of [`PARTS`] features.
    pub(crate) runs: usize,
    /// Runs from the one at work to the one whose lines are asked for.
    pub(crate) ahead: usize,
    /// Whether sums begin at zero instead of in `sums`.
    pub(crate) is_first: bool,
    /// Whether the parts are added up and go to `hidden` instead of to `sums`.
    pub(crate) is_last: bool,
    /// Partial sums between two blocks: `[pair][token][rank of the pair][PARTS]`.
    pub(crate) sums: *mut f32,
    /// The inner products: `[rank][ROWS]`.
    pub(crate) hidden: *mut f32,
}

/// Whether registers of this many lanes take runs of this format with even features apart from odd ones.
#[inline(always)]
pub(super) const fn is_split<V: Vector, S: Storage>() -> bool {
    matches!(S::FORMAT, Format::Bf16) && 2 * V::LANES == PARTS
}

/// Runs a job. Tokens pass in tiles of up to `TOKENS`; a token that comes alone takes `ALONE` pairs at once, to have
/// chains enough to hide the latency of an FMA.
///
/// # Safety
///
/// The processor has the tier of `V`, and the pointers of the job cover what its fields say.
#[inline(always)]
pub(crate) unsafe fn run<V: Vector, S: Storage, const TOKENS: usize, const ALONE: usize>(job: &ShrinkJob) {
    let mut pair = 0;
    while pair < job.pair_count {
        // SAFETY: the caller vouches for tier and pointers; each call takes tokens and pairs that are still left.
        unsafe {
            if job.token_count == 1 && job.pair_count - pair >= ALONE {
                block::<V, S, 1, ALONE>(job, 0, pair);
                pair += ALONE;
                continue;
            }
            let mut token = 0;
            while token < job.token_count {
                token += match job.token_count - token {
                    left if left >= TOKENS && left != TOKENS + 1 => {
                        block::<V, S, TOKENS, 1>(job, token, pair)
                    }
                    2.. => block::<V, S, 2, 1>(job, token, pair),
                    _ => block::<V, S, 1, 1>(job, token, pair),
                }
            }
        }
        pair += 1;
    }
}

/// Keeps the partial sums of `TOKENS` tokens and `PAIRS` pairs in registers. Returns `TOKENS`.
///
/// # Safety
///
/// As [`run`]; `token + TOKENS` and `pair + PAIRS` are within the job.
#[inline(always)]
unsafe fn block<V: Vector, S: Storage, const TOKENS: usize, const PAIRS: usize>(
    job: &ShrinkJob,
    token: usize,
    pair: usize,
) -> usize {
    let registers = PARTS / V::LANES;
    let run_bytes = PARTS * S::SIZE;
    // SAFETY: the caller vouches for the tier and the pointers, and offsets stay inside what the fields describe.
    unsafe {
        let sums_at = |t: usize, p: usize, rank: usize| {
            job.sums.add((((pair + p) * job.token_count + token + t) * 2 + rank) * PARTS)
        };
        let mut sums = [[[[V::splat(0.0); 2]; 2]; PAIRS]; TOKENS];
        if !job.is_first {
            for (t, sums) in sums.iter_mut().enumerate() {
                for (p, sums) in sums.iter_mut().enumerate() {
                    for (rank, sums) in sums.iter_mut().enumerate() {
                        for (part, sum) in sums.iter_mut().enumerate().take(registers) {
                            *sum = V::load(sums_at(t, p, rank).add(part * V::LANES));
                        }
                    }
                }
            }
        }
        let tokens = job.tokens.add(token * job.token_stride);
        let pairs = job.pairs.add(pair * job.pair_stride);
        // The compiler would keep what it read for the first half of a run until the second, in registers that the
        // sums need; it is cheaper to read twice.
        let sources = [pairs, V::alias(pairs)];
        for run in 0..job.runs {
            if token == 0 {
                // The first tile of tokens brings the ranks in: of these pairs, or of those that come next.
                let soon = run + job.ahead;
                let is_here = soon < job.runs;
                let next = if is_here { 0 } else { PAIRS * job.pair_stride };
                let offset = next + 2 * run_bytes * if is_here { soon } else { soon - job.runs };
                for p in 0..PAIRS {
                    for line in (0..2 * run_bytes).step_by(LINE_BYTES) {
                        V::prefetch(pairs.wrapping_add(p * job.pair_stride + offset + line));
                    }
                }
            }
            // A constant number of registers: unrolled, so that `part` does not send the sums to memory.
            for part in 0..registers {
                let mut factors = [[V::splat(0.0); 2]; PAIRS];
                for (p, factors) in factors.iter_mut().enumerate() {
                    for (rank, factor) in factors.iter_mut().enumerate() {
                        let source = sources[part].add(p * job.pair_stride + (2 * run + rank) * run_bytes);
                        *factor = if is_split::<V, S>() {
                            S::load_split::<V>(source)[part]
                        } else {
                            S::widen::<V>(source.add(part * V::LANES * S::SIZE))
                        };
                    }
                }
                for (t, sums) in sums.iter_mut().enumerate() {
                    let features = V::load(tokens.add(t * job.token_stride + run * PARTS + part * V::LANES));
                    for (sums, factors) in sums.iter_mut().zip(&factors) {
                        for (sums, &factor) in sums.iter_mut().zip(factors) {
                            sums[part] = factor.mul_add(features, sums[part]);
                        }
                    }
                }
            }
        }
        for (t, sums) in sums.iter().enumerate() {
            for (p, sums) in sums.iter().enumerate() {
                for (rank, sums) in sums.iter().enumerate() {
                    if job.is_last {
                        let place = (2 * (pair + p) + rank) * ROWS + token + t;
                        job.hidden.add(place).write(total::<V, S>(sums));
                    } else {
                        for (part, sum) in sums.iter().enumerate().take(registers) {
                            sum.store(sums_at(t, p, rank).add(part * V::LANES));
                        }
                    }
                }
            }
        }
    }
    TOKENS
}

/// Adds up partial sums, halves by halves: part `i` and part `i + 8`, then 4, 2, 1.
///
/// # Safety
///
/// The processor has the tier of `V`.
#[inline(always)]
unsafe fn total<V: Vector, S: Storage>(sums: &[V; 2]) -> f32 {
    let mut parts = [0.0; PARTS];
    for (part, sum) in sums.iter().enumerate().take(PARTS / V::LANES) {
        // SAFETY: the caller vouches for the tier; the registers together have `PARTS` lanes.
        unsafe { sum.store(parts.as_mut_ptr().add(part * V::LANES)) };
    }
    if !is_split::<V, S>() {
        return super::super::shrink::total(parts);
    }
    // Even parts lie before odd ones: what was eight places apart is four now, and the last step is eight.
    for half in [4, 2, 1] {
        for index in 0..half {
            parts[index] += parts[index + half];
            parts[8 + index] += parts[8 + index + half];
        }
    }
    parts[0] + parts[8]
}
