//! Merges as numbers, of which the least is the one that happens next.

use super::pairs::NO_RANK;
use super::vocabulary::ID_LIMIT;

/// Symbols that are looked through together: one bit each.
pub(super) const PLACES: usize = u64::BITS as usize;
/// A place below [`PLACES`].
pub(super) const PLACE_BITS: u32 = PLACES.trailing_zeros();
/// Merges that are compared together. Most spans have no more: how many rounds it takes can be guessed then.
pub(super) const LANES: usize = 32;
/// The merges of a register.
const WIDTH: usize = 8;
/// See [`merge_at`]. Signed, since comparing signed numbers is what every x86-64 does four at a time.
pub(super) const NO_MERGE: i32 = i32::MAX;
pub(super) const NO_MERGE_FROM: i32 = (ID_LIMIT << PLACE_BITS) as i32;

/// The merge of a symbol with the next one: its rank, then its place among [`PLACES`], so that the least is the merge
/// that happens next. No merge is no less than [`NO_MERGE_FROM`].
#[inline(always)]
pub(super) fn merge_at(rank: u32, place: usize) -> i32 {
    const { assert!(NO_RANK == u32::MAX) };
    (rank << PLACE_BITS | (place % PLACES) as u32) as i32 & i32::MAX
}

/// The least of the numbers, of which there are a multiple of [`LANES`].
#[inline(always)]
pub(super) fn least(merges: &[i32]) -> i32 {
    let mut lanes = [NO_MERGE; WIDTH];
    for merges in merges.as_chunks::<LANES>().0 {
        for merges in merges.as_chunks::<WIDTH>().0 {
            for (least, merge) in lanes.iter_mut().zip(merges) {
                *least = (*least).min(*merge);
            }
        }
    }
    lanes.into_iter().fold(NO_MERGE, i32::min)
}
