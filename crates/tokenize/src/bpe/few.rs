//! Merging one short span, a merge at a time, so that several spans can take turns while memory answers.

use super::join::Placed;
use super::merge::Model;
use super::next_merge::{LANES, NO_MERGE, NO_MERGE_FROM, PLACE_BITS, PLACES, least, merge_at};
use super::pairs::Pairs;
use super::symbols::Characters;
use super::vocabulary::Vocabulary;
use crate::kernels::{Work, with_best_tier};

/// The longest span in bytes: looking through all pairs for the next merge is faster than a heap. One bit each.
pub(crate) const FEW: usize = PLACES;

/// At most [`FEW`] symbols. Each stays at the place of its first byte; bits say which places still begin one, so that
/// nothing moves, and neighbours are found without a branch.
pub(crate) struct Few {
    ids: [u32; FEW],
    /// The merge of each symbol with the next one.
    merges: [i32; FEW],
    begins: u64,
    /// Merges that count: the others may be anything.
    considered: usize,
    /// Where the last merge happened.
    place: usize,
}

impl Few {
    pub(crate) const fn new() -> Self {
        Self { ids: [0; FEW], merges: [NO_MERGE; FEW], begins: 0, considered: 0, place: 0 }
    }

    /// Begins with what the model begins with in `span`, which has at most [`FEW`] bytes; what is longer is cut.
    #[inline]
    pub(super) fn begin_with(&mut self, model: &Model<'_>, span: &[u8]) {
        if model.of_bytes {
            self.begin(model.pairs, model.vocabulary, span);
        } else {
            self.begin_characters(model.pairs, model.vocabulary, span);
        }
    }

    #[inline]
    fn begin(&mut self, pairs: &Pairs, vocabulary: &Vocabulary, span: &[u8]) {
        let span = span.get(..FEW).unwrap_or(span);
        for (id, &byte) in self.ids.iter_mut().zip(span) {
            *id = vocabulary.byte_id(byte);
        }
        for (place, (merge, pair)) in self.merges.iter_mut().zip(span.windows(2)).enumerate() {
            *merge = merge_at(pairs.rank_of_bytes(pair[0], pair[1]), place);
        }
        self.start(span.len());
    }

    /// With characters, where the vocabulary has them, instead of bytes.
    fn begin_characters(&mut self, pairs: &Pairs, vocabulary: &Vocabulary, span: &[u8]) {
        let mut count = 0;
        for (slot, id) in self.ids.iter_mut().zip(Characters::new(vocabulary, span)) {
            *slot = id;
            count += 1;
        }
        for (place, (merge, pair)) in self.merges.iter_mut().zip(self.ids[..count].windows(2)).enumerate() {
            *merge = merge_at(pairs.rank(pair[0], pair[1]), place);
        }
        self.start(count);
    }

    /// So many symbols are there, with their merges.
    #[inline(always)]
    fn start(&mut self, symbols: usize) {
        let merges = symbols.saturating_sub(1);
        self.begins = u64::MAX.checked_shr((FEW - symbols) as u32).unwrap_or(0);
        self.considered = merges.next_multiple_of(LANES);
        self.merges[merges..self.considered].fill(NO_MERGE);
    }

    /// Does all merges.
    pub(super) fn finish(&mut self, pairs: &Pairs) {
        with_best_tier(Finish { few: self, pairs });
    }

    /// Does the next merge and asks for the memory that [`Self::settle`] reads; false if none is left.
    #[inline(always)]
    pub(crate) fn merge(&mut self, pairs: &Pairs) -> bool {
        let mut next = least(&self.merges[..self.considered]);
        if next >= NO_MERGE_FROM {
            return false;
        }
        let rank = next as u32 >> PLACE_BITS;
        if pairs.may_tie(rank) {
            next = self.leftmost_tied(pairs, rank).unwrap_or(next);
        }
        let place = next as usize % FEW;
        let merged = pairs.made(next as u32 >> PLACE_BITS);
        let after = self.begins & (u64::MAX << place << 1);
        let right = after.trailing_zeros() as usize % FEW;
        self.begins &= !(1_u64 << right);
        self.ids[place] = merged;
        self.merges[right] = NO_MERGE;
        self.place = place;
        let Neighbours { left, right, .. } = self.neighbours();
        pairs.prefetch(merged, self.ids[right]);
        pairs.prefetch(self.ids[left], merged);
        true
    }

    /// Finds out what the symbol that [`Self::merge`] made merges with.
    #[inline(always)]
    pub(crate) fn settle(&mut self, pairs: &Pairs) {
        let place = self.place;
        let merged = self.ids[place];
        let Neighbours { left, right, is_first, is_last } = self.neighbours();
        // Both are looked up whether or not there is a neighbour: a wasted look-up costs less than a wrong guess.
        let with_next = merge_at(pairs.rank(merged, self.ids[right]), place);
        let with_previous = merge_at(pairs.rank(self.ids[left], merged), left);
        self.merges[left] = if is_first { self.merges[left] } else { with_previous };
        self.merges[place] = if is_last { NO_MERGE } else { with_next };
    }

    /// The first of the merges that are worth as much as this rank.
    #[cold]
    fn leftmost_tied(&self, pairs: &Pairs, rank: u32) -> Option<i32> {
        let tied = |merge: &&i32| {
            **merge < NO_MERGE_FROM && pairs.order(**merge as u32 >> PLACE_BITS) == pairs.order(rank)
        };
        self.merges[..self.considered].iter().find(tied).copied()
    }

    #[inline(always)]
    fn neighbours(&self) -> Neighbours {
        let after = self.begins & (u64::MAX << self.place << 1);
        let before = self.begins & ((1_u64 << self.place) - 1);
        Neighbours {
            left: (u64::BITS - 1).wrapping_sub(before.leading_zeros()) as usize % FEW,
            right: after.trailing_zeros() as usize % FEW,
            is_first: before == 0,
            is_last: after == 0,
        }
    }

    /// Replaces `tokens` by the symbols and where they begin.
    #[inline]
    pub(super) fn place_tokens(&self, model: &Model<'_>, tokens: &mut Vec<Placed>) {
        tokens.clear();
        if model.of_bytes {
            // A symbol stays at the place of its first byte.
            let mut begins = self.begins;
            tokens.extend(self.ids().map(|id| {
                let start = begins.trailing_zeros();
                begins &= begins.wrapping_sub(1);
                Placed { start, id }
            }));
            return;
        }
        let mut start = 0;
        tokens.extend(self.ids().map(|id| {
            let token = Placed { start, id };
            start += model.vocabulary.length(id) as u32;
            token
        }));
    }

    /// The symbols in order.
    #[inline(always)]
    pub(crate) fn ids(&self) -> impl Iterator<Item = u32> {
        let mut begins = self.begins;
        std::iter::from_fn(move || {
            let place = begins.trailing_zeros() as usize;
            begins &= begins.wrapping_sub(1);
            self.ids.get(place).copied()
        })
    }
}

/// See [`Few::finish`].
struct Finish<'f> {
    few: &'f mut Few,
    pairs: &'f Pairs,
}

impl Work for Finish<'_> {
    type Outcome = ();

    #[inline(always)]
    fn run(self) {
        while self.few.merge(self.pairs) {
            self.few.settle(self.pairs);
        }
    }
}

/// The symbols beside the last merge; places where there is none mean nothing.
struct Neighbours {
    left: usize,
    right: usize,
    is_first: bool,
    is_last: bool,
}
