//! Two bytes → when they merge, and whether they may at once.
//!
//! Merging takes the lowest rank first, one merge after the other. But many bytes merge with their neighbour whatever else
//! happens, and these merges can all be done before anything else. Let two neighbours merge with rank k, where
//!
//! 1. every merge that would take the first of them to its left, away from the second, has a rank above k: those of any symbol
//!    that ends with the byte before it;
//! 2. every merge that would take the second to its right has a rank above k: with any symbol that begins with the byte behind
//!    it; and
//! 3. every merge of what the two become has a rank above k.
//!
//! Nothing of a rank below k touches the two then, neither while they are two (1, 2) nor once they are one (3). So what
//! merges before rank k is the same whether they are joined at the beginning or when their turn comes, and from there on
//! the symbols are the same. The comparisons are strict: pairs of one rank that overlap (`aaa`) wait for their turn.

use super::next_merge::{NO_MERGE, PLACE_BITS, merge_at};

/// Set beside a merge that waits for its turn whatever stands around it.
const WAITS: u64 = 1 << 31;
const MERGE: u64 = NO_MERGE as u64;
/// Limits are kept up to here; a merge of a higher rank waits for its turn.
const LIMIT: u64 = u16::MAX as u64;
const LEFT_SHIFT: u32 = 32;
const RIGHT_SHIFT: u32 = 48;

/// What is known of two bytes side by side: their merge, as [`merge_at`] the first place, in the lower half, and two limits
/// in the upper one.
#[derive(Clone, Copy)]
pub(super) struct BytePair(u64);

impl BytePair {
    /// No merge lies across.
    pub(super) const APART: Self = Self(MERGE | LIMIT << LEFT_SHIFT | LIMIT << RIGHT_SHIFT);

    /// Their merge, if the first of them stands at `place`; see [`merge_at`].
    #[inline(always)]
    pub(super) fn merge_at(self, place: usize) -> i32 {
        (self.0 & MERGE) as i32 | place as i32
    }

    /// Whether they are joined at once between these neighbours: the pair that ends with the first byte, and the one that
    /// begins with the second.
    #[inline(always)]
    pub(super) fn joins_between(self, before: Self, after: Self) -> bool {
        // That of what waits, and of what does not merge at all, is above any limit.
        let rank = self.0 as u32 >> PLACE_BITS;
        // No short circuit: nobody could guess it.
        (rank < before.to_the_left()) & (rank < after.to_the_right())
    }

    /// At most the least rank with which the second byte alone merges with a symbol that ends with the first.
    #[inline(always)]
    fn to_the_left(self) -> u32 {
        (self.0 >> LEFT_SHIFT & LIMIT) as u32
    }

    /// At most the least rank with which the first byte alone merges with a symbol that begins with the second.
    #[inline(always)]
    fn to_the_right(self) -> u32 {
        (self.0 >> RIGHT_SHIFT & LIMIT) as u32
    }

    fn lower(&mut self, shift: u32, rank: u32) {
        let limit = u64::from(rank).min(self.0 >> shift & LIMIT);
        self.0 = self.0 & !(LIMIT << shift) | limit << shift;
    }
}

/// All pairs of bytes, the left one counting 256.
pub(super) struct BytePairs(Box<[BytePair]>);

impl BytePairs {
    pub(super) fn new() -> Self {
        Self(vec![BytePair::APART; 1 << 16].into_boxed_slice())
    }

    #[inline(always)]
    pub(super) fn get(&self, left: u8, right: u8) -> BytePair {
        self.0.get(usize::from(left) << 8 | usize::from(right)).copied().unwrap_or(BytePair::APART)
    }

    /// Notes that the two parts of `token` before and after `cut` merge with this rank. Ranks come in ascending order, and
    /// `is_part` says whether the token is a part of any that came before.
    pub(super) fn note(&mut self, token: &[u8], cut: usize, rank: u32, is_part: bool) {
        let (Some(&left), Some(&right)) = (cut.checked_sub(1).and_then(|at| token.get(at)), token.get(cut))
        else {
            return;
        };
        let Some(pair) = self.0.get_mut(usize::from(left) << 8 | usize::from(right)) else { return };
        if cut + 1 == token.len() {
            pair.lower(LEFT_SHIFT, rank);
        }
        if cut == 1 {
            pair.lower(RIGHT_SHIFT, rank);
        }
        if token.len() == 2 {
            let waits = if is_part { WAITS } else { 0 };
            pair.0 = pair.0 & !(WAITS | MERGE) | waits | merge_at(rank, 0) as u64;
        }
    }

    /// Forgets which of them may be joined at once.
    pub(super) fn wait(&mut self) {
        for pair in &mut self.0 {
            pair.0 |= WAITS;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::next_merge::{NO_MERGE_FROM, PLACES};
    use super::super::pair_table::NO_RANK;
    use super::super::vocabulary::ID_LIMIT;
    use super::*;

    /// Its rank, whatever the place; [`NO_RANK`] if there is no merge.
    fn rank(pair: BytePair, place: usize) -> u32 {
        let merge = pair.merge_at(place);
        assert_eq!(merge as usize % PLACES, if merge < NO_MERGE_FROM { place } else { PLACES - 1 });
        if merge < NO_MERGE_FROM { merge as u32 >> PLACE_BITS } else { NO_RANK }
    }

    #[test]
    fn what_was_noted_is_given_back() {
        let mut pairs = BytePairs::new();
        assert_eq!(rank(pairs.get(b'a', b'b'), 3), NO_RANK);
        pairs.note(b"ab", 1, 7, false);
        pairs.note(b"cd", 1, ID_LIMIT - 1, true);
        pairs.note(b"ef", 1, 0, true);
        let (alone, pair) = (BytePair::APART, pairs.get(b'a', b'b'));
        for place in 0..PLACES {
            assert_eq!(rank(pair, place), 7);
            assert_eq!(rank(pairs.get(b'c', b'd'), place), ID_LIMIT - 1);
            assert_eq!(rank(pairs.get(b'e', b'f'), place), 0);
        }
        assert!(pair.joins_between(alone, alone) && !alone.joins_between(alone, alone));
        for waits in [pairs.get(b'c', b'd'), pairs.get(b'e', b'f')] {
            assert!(!waits.joins_between(alone, alone));
        }
        pairs.wait();
        assert!(rank(pairs.get(b'a', b'b'), 0) == 7 && !pairs.get(b'a', b'b').joins_between(alone, alone));
    }

    #[test]
    fn what_no_limit_holds_waits() {
        for (rank, joins) in [(LIMIT - 1, true), (LIMIT, false), (LIMIT + 1, false), (1 << 20, false)] {
            let mut pairs = BytePairs::new();
            pairs.note(b"ab", 1, rank as u32, false);
            pairs.note(b"xya", 2, (1 << 20) + 1, false);
            pairs.note(b"bxy", 1, (1 << 20) + 1, false);
            let pair = pairs.get(b'a', b'b');
            assert_eq!(pair.joins_between(pairs.get(b'y', b'a'), pairs.get(b'b', b'x')), joins, "{rank}");
        }
    }

    #[test]
    fn a_merge_that_could_come_first_is_waited_for() {
        let alone = BytePair::APART;
        // Beside "ab" of rank 100: a symbol that takes the first byte to its left, or the second to its right.
        for (rank, joins) in [(90, false), (100, false), (101, true), (102, true), (1 << 20, true)] {
            let mut pairs = BytePairs::new();
            pairs.note(b"ab", 1, 100, false);
            pairs.note(b"xya", 2, rank, false);
            pairs.note(b"bxy", 1, rank, false);
            let pair = pairs.get(b'a', b'b');
            assert_eq!(pair.joins_between(pairs.get(b'y', b'a'), alone), joins, "{rank}");
            assert_eq!(pair.joins_between(alone, pairs.get(b'b', b'x')), joins, "{rank}");
            // Those take nothing from it.
            assert!(pair.joins_between(pairs.get(b'x', b'y'), pairs.get(b'x', b'y')));
        }
        // Two of one rank that overlap.
        let mut pairs = BytePairs::new();
        pairs.note(b"aa", 1, 4, false);
        let pair = pairs.get(b'a', b'a');
        assert!(pair.joins_between(alone, alone) && !pair.joins_between(pair, alone));
        assert!(!pair.joins_between(alone, pair));
    }
}
