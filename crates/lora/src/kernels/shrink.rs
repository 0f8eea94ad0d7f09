//! The inner products of tokens with the rows of `lora_A`: what is shrunk from the width of a layer to a rank.

use super::storage::Storage;
use super::vector::Vector;

/// Partial sums of an inner product: feature `j` goes to sum `j mod 16`, in every tier, so that a result has the
/// same bits in all of them.
pub(crate) const PARTS: usize = 16;

/// Some tokens by some ranks over a run of features.
#[derive(Clone, Copy)]
pub(crate) struct ShrinkTile {
    /// The first token's features, as binary32.
    pub(crate) tokens: *const f32,
    /// Numbers from a token to the next.
    pub(crate) token_stride: usize,
    /// Tokens.
    pub(crate) token_count: usize,
    /// The first rank's features, in their own format.
    pub(crate) ranks: *const u8,
    /// Bytes from a rank to the next.
    pub(crate) rank_stride: isize,
    /// Ranks.
    pub(crate) rank_count: usize,
    /// Runs of [`PARTS`] features.
    pub(crate) runs: usize,
    /// Partial sums that are added to: `[token][rank][PARTS]`.
    pub(crate) sums: *mut f32,
}

/// Adds the products of every token with every rank to the partial sums.
///
/// # Safety
///
/// The processor has the tier of `V`, and the pointers of the tile cover what its fields say.
#[inline(always)]
pub(crate) unsafe fn run<
    V: Vector,
    S: Storage,
    const TOKENS: usize,
    const RANKS: usize,
    const ALONE: usize,
>(
    tile: &ShrinkTile,
) {
    let mut token = 0;
    while token < tile.token_count {
        let mut rank = 0;
        let together = tile.token_count - token >= TOKENS;
        while rank < tile.rank_count {
            let left = tile.rank_count - rank;
            // SAFETY: the caller vouches for the tier and the pointers; each call takes tokens and ranks that are
            // still left.
            rank += unsafe {
                match together {
                    true if left >= RANKS => block::<V, S, TOKENS, RANKS>(tile, token, rank),
                    true => block::<V, S, TOKENS, 1>(tile, token, rank),
                    false if left >= ALONE => block::<V, S, 1, ALONE>(tile, token, rank),
                    false => block::<V, S, 1, 1>(tile, token, rank),
                }
            };
        }
        token += if together { TOKENS } else { 1 };
    }
}

/// Keeps the partial sums of `TOKENS` by `RANKS` inner products in registers. Returns `RANKS`.
///
/// # Safety
///
/// As [`run`]; `token + TOKENS` and `rank + RANKS` are within the tile.
#[inline(always)]
unsafe fn block<V: Vector, S: Storage, const TOKENS: usize, const RANKS: usize>(
    tile: &ShrinkTile,
    token: usize,
    rank: usize,
) -> usize {
    let registers = PARTS / V::LANES;
    // SAFETY: the caller vouches for the tier and the pointers, and offsets stay inside what the fields describe.
    unsafe {
        let sums_at = |t: usize, r: usize| tile.sums.add(((token + t) * tile.rank_count + rank + r) * PARTS);
        let mut sums = [[[V::splat(0.0); 2]; RANKS]; TOKENS];
        for (t, sums) in sums.iter_mut().enumerate() {
            for (r, sums) in sums.iter_mut().enumerate() {
                for (part, sum) in sums.iter_mut().enumerate().take(registers) {
                    *sum = V::load(sums_at(t, r).add(part * V::LANES));
                }
            }
        }
        let tokens = tile.tokens.add(token * tile.token_stride);
        let ranks = tile.ranks.offset(rank as isize * tile.rank_stride);
        for run in 0..tile.runs {
            // A constant number of registers: unrolled, so that `part` does not send the sums to memory.
            for part in 0..registers {
                let step = run * PARTS + part * V::LANES;
                let mut factors = [V::splat(0.0); RANKS];
                for (r, factor) in factors.iter_mut().enumerate() {
                    let row = ranks.offset(r as isize * tile.rank_stride);
                    *factor = S::widen(row.add(step * S::SIZE));
                }
                for (t, sums) in sums.iter_mut().enumerate() {
                    let features = V::load(tokens.add(t * tile.token_stride + step));
                    for (sums, &factor) in sums.iter_mut().zip(&factors) {
                        sums[part] = factor.mul_add(features, sums[part]);
                    }
                }
            }
        }
        for (t, sums) in sums.iter().enumerate() {
            for (r, sums) in sums.iter().enumerate() {
                for (part, sum) in sums.iter().enumerate().take(registers) {
                    sum.store(sums_at(t, r).add(part * V::LANES));
                }
            }
        }
    }
    RANKS
}

/// Adds up partial sums, halves by halves: `sum[i] += sum[i + 8]`, then 4, 2, 1.
#[inline(always)]
pub(crate) fn total(mut parts: [f32; PARTS]) -> f32 {
    let mut half = PARTS / 2;
    while half > 0 {
        for index in 0..half {
            parts[index] += parts[index + half];
        }
        half /= 2;
    }
    parts[0]
}
