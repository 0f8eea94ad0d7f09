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

use super::pair_table::NO_RANK;
use super::vocabulary::ID_LIMIT;

/// Bits of a rank, which is below [`ID_LIMIT`].
const RANK_BITS: u32 = ID_LIMIT.trailing_zeros();
const RANK: u64 = (1 << RANK_BITS) - 1;
/// Set where the two merge.
const MERGE: u64 = 1 << RANK_BITS;
/// Set where condition 3 holds.
const FIRST: u64 = 1 << (RANK_BITS + 1);
/// Limits are kept halved, rounded down.
const LIMIT_BITS: u32 = RANK_BITS - 1;
const LIMIT: u64 = (1 << LIMIT_BITS) - 1;
const LEFT_SHIFT: u32 = RANK_BITS + 2;
const RIGHT_SHIFT: u32 = LEFT_SHIFT + LIMIT_BITS;

/// What is known of two bytes side by side.
#[derive(Clone, Copy)]
pub(super) struct BytePair(u64);

impl BytePair {
    /// No merge lies across.
    pub(super) const APART: Self = Self(LIMIT << LEFT_SHIFT | LIMIT << RIGHT_SHIFT);

    /// Rank of their merge, or [`NO_RANK`].
    #[inline(always)]
    pub(super) fn rank(self) -> u32 {
        if self.0 & MERGE == 0 { NO_RANK } else { (self.0 & RANK) as u32 }
    }

    /// Whether they are joined at once between these neighbours: the pair that ends with the first byte, and the one that
    /// begins with the second.
    #[inline(always)]
    pub(super) fn joins_between(self, before: Self, after: Self) -> bool {
        let rank = self.0 & RANK;
        // No short circuits: nobody could guess them.
        (self.0 & FIRST != 0) & (rank < before.to_the_left()) & (rank < after.to_the_right())
    }

    /// At most the least rank with which the second byte alone merges with a symbol that ends with the first.
    #[inline(always)]
    fn to_the_left(self) -> u64 {
        (self.0 >> LEFT_SHIFT & LIMIT) << 1
    }

    /// At most the least rank with which the first byte alone merges with a symbol that begins with the second.
    #[inline(always)]
    fn to_the_right(self) -> u64 {
        (self.0 >> RIGHT_SHIFT & LIMIT) << 1
    }

    fn lower(&mut self, shift: u32, rank: u32) {
        let limit = u64::from(rank / 2).min(self.0 >> shift & LIMIT);
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
            pair.0 = pair.0 & !(RANK | FIRST) | MERGE | u64::from(rank) & RANK;
            if !is_part {
                pair.0 |= FIRST;
            }
        }
    }

    /// Forgets which of them may be joined at once.
    pub(super) fn wait(&mut self) {
        for pair in &mut self.0 {
            pair.0 &= !FIRST;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_noted_is_given_back() {
        let mut pairs = BytePairs::new();
        assert_eq!(pairs.get(b'a', b'b').rank(), NO_RANK);
        pairs.note(b"ab", 1, 7, false);
        pairs.note(b"cd", 1, ID_LIMIT - 1, true);
        let (alone, pair) = (BytePair::APART, pairs.get(b'a', b'b'));
        assert!(pair.rank() == 7 && pairs.get(b'c', b'd').rank() == ID_LIMIT - 1);
        assert!(pair.joins_between(alone, alone));
        assert!(!pairs.get(b'c', b'd').joins_between(alone, alone) && !alone.joins_between(alone, alone));
        pairs.wait();
        assert!(pairs.get(b'a', b'b').rank() == 7 && !pairs.get(b'a', b'b').joins_between(alone, alone));
    }

    #[test]
    fn a_merge_that_could_come_first_is_waited_for() {
        let alone = BytePair::APART;
        // Beside "ab" of rank 100: a symbol that takes the first byte to its left, or the second to its right.
        for (rank, joins) in [(90, false), (100, false), (101, false), (102, true), (1 << 20, true)] {
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
