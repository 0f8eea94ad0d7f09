//! Merging one short span, a merge at a time, so that several spans can take turns while memory answers.

use super::byte_pairs::BytePair;
use super::join::Placed;
use super::merge::Model;
use super::next_merge::{LANES, NO_MERGE, NO_MERGE_FROM, PLACE_BITS, PLACES, least, merge_at};
use super::pairs::Pairs;
use super::symbols::Characters;
use super::vocabulary::Vocabulary;
use crate::kernels::{Work, with_avx2};

/// The longest span in bytes: looking through all pairs for the next merge is faster than a heap. One bit each.
pub(crate) const FEW: usize = PLACES;
/// Bytes that are looked at together.
const STEP: usize = 8;

/// At most [`FEW`] symbols. Each stays at the place of its first byte; bits say which places still begin one, so that
/// nothing moves, and neighbours are found without a branch.
pub(crate) struct Few {
    ids: [u32; FEW],
    /// The merge of each symbol with the next one, behind one that nobody looks at: whatever the first symbol would merge with.
    merges: [i32; FEW + 1],
    begins: u64,
    /// Symbols that merge with the next one in a way that was not looked up yet.
    unsettled: u64,
    /// Merges that count: the others may be anything.
    considered: usize,
    /// Where the last merge happened.
    place: usize,
}

impl Few {
    pub(crate) const fn new() -> Self {
        Self { ids: [0; FEW], merges: [NO_MERGE; FEW + 1], begins: 0, unsettled: 0, considered: 0, place: 0 }
    }

    /// Begins with what the model begins with in `span`, which has at most [`FEW`] bytes; what is longer is cut.
    #[inline(always)]
    pub(super) fn begin_with(&mut self, model: &Model<'_>, span: &[u8]) {
        if model.of_bytes || span.is_ascii() {
            self.begin(model.pairs, model.vocabulary, span);
        } else {
            self.begin_characters(model.pairs, model.vocabulary, span);
        }
    }

    /// Some bytes too many are looked at, so that there are few loops whose length must be guessed.
    #[inline(always)]
    fn begin(&mut self, pairs: &Pairs, vocabulary: &Vocabulary, span: &[u8]) {
        let span = span.get(..FEW).unwrap_or(span);
        let mut bytes = [0; FEW + STEP];
        for (byte, given) in bytes.iter_mut().zip(span) {
            *byte = *given;
        }
        // The pair that begins at each place, behind one that lies before all of them.
        let mut known = [BytePair::APART; FEW + STEP + 1];
        for first in (0..span.len()).step_by(STEP) {
            for place in first..first + STEP {
                self.ids[place % FEW] = vocabulary.byte_id(bytes[place]);
                known[place + 1] = pairs.of_bytes(bytes[place], bytes[place + 1]);
            }
        }
        for apart in known.iter_mut().skip(span.len()).take(STEP) {
            *apart = BytePair::APART;
        }
        self.start(span.len());
        let mut joined = 0;
        for first in (0..span.len()).step_by(STEP) {
            for place in first..first + STEP {
                let pair = known[place + 1];
                self.merges[place % FEW + 1] = pair.merge_at(place);
                joined |= u64::from(pair.joins_between(known[place], known[place + 2])) << place;
            }
        }
        self.join_at_once(pairs, joined);
    }

    /// Joins the symbols at these places with the next ones, and asks for the memory that [`Self::settle_all`] reads.
    #[inline(always)]
    fn join_at_once(&mut self, pairs: &Pairs, joined: u64) {
        self.begins &= !(joined << 1);
        let mut left = joined;
        while left != 0 {
            let place = left.trailing_zeros() as usize % FEW;
            left &= left - 1;
            self.ids[place] = pairs.made(self.merges[place + 1] as u32 >> PLACE_BITS);
            self.merges[(place + 1) % FEW + 1] = NO_MERGE;
        }
        // A byte that stands before one of them has another neighbour now, too.
        self.unsettled = joined | joined >> 1 & self.begins;
        let mut left = self.unsettled;
        while left != 0 {
            let place = left.trailing_zeros() as usize % FEW;
            left &= left - 1;
            let right = self.after(place).trailing_zeros() as usize % FEW;
            pairs.prefetch(self.ids[place], self.ids[right]);
        }
    }

    /// Finds out what the symbols that [`Self::join_at_once`] made, and those before them, merge with.
    #[inline(always)]
    pub(super) fn settle_all(&mut self, pairs: &Pairs) {
        while self.unsettled != 0 {
            let place = self.unsettled.trailing_zeros() as usize % FEW;
            self.unsettled &= self.unsettled - 1;
            let after = self.after(place);
            let right = after.trailing_zeros() as usize % FEW;
            let rank = pairs.rank(self.ids[place], self.ids[right]);
            self.merges[place + 1] = if after == 0 { NO_MERGE } else { merge_at(rank, place) };
        }
    }

    /// The places behind this one that begin a symbol.
    #[inline(always)]
    fn after(&self, place: usize) -> u64 {
        self.begins & (u64::MAX << place << 1)
    }

    /// With characters, where the vocabulary has them, instead of bytes.
    fn begin_characters(&mut self, pairs: &Pairs, vocabulary: &Vocabulary, span: &[u8]) {
        let mut count = 0;
        for (slot, id) in self.ids.iter_mut().zip(Characters::new(vocabulary, span)) {
            *slot = id;
            count += 1;
        }
        self.start(count);
        for (place, (merge, pair)) in
            self.merges.iter_mut().skip(1).zip(self.ids[..count].windows(2)).enumerate()
        {
            *merge = merge_at(pairs.rank(pair[0], pair[1]), place);
        }
    }

    /// So many symbols are there, with their merges.
    #[inline(always)]
    fn start(&mut self, symbols: usize) {
        let merges = symbols.saturating_sub(1);
        self.begins = u64::MAX.checked_shr((FEW - symbols) as u32).unwrap_or(0);
        self.unsettled = 0;
        self.considered = merges.next_multiple_of(LANES);
        self.merges.fill(NO_MERGE);
    }

    /// Merges `span`, which has at most [`FEW`] bytes; what is longer is cut.
    pub(super) fn merge_alone(&mut self, model: &Model<'_>, span: &[u8]) {
        with_avx2(Alone { few: self, model, span });
    }

    /// Does the next merge and asks for the memory that [`Self::settle`] reads; false if none is left.
    #[inline(always)]
    pub(crate) fn merge(&mut self, pairs: &Pairs) -> bool {
        let mut next = least(&self.merges[1..=self.considered]);
        if next >= NO_MERGE_FROM {
            return false;
        }
        let rank = next as u32 >> PLACE_BITS;
        if pairs.may_tie(rank) {
            next = self.leftmost_tied(pairs, rank).unwrap_or(next);
        }
        let place = next as usize % FEW;
        let merged = pairs.made(next as u32 >> PLACE_BITS);
        let right = self.after(place).trailing_zeros() as usize % FEW;
        self.begins &= !(1_u64 << right);
        self.ids[place] = merged;
        self.merges[right + 1] = NO_MERGE;
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
        let Neighbours { left, behind_left, right, is_last } = self.neighbours();
        // Both are looked up whether or not there is a neighbour: a wasted look-up costs less than a wrong guess.
        let with_next = merge_at(pairs.rank(merged, self.ids[right]), place);
        let with_previous = merge_at(pairs.rank(self.ids[left], merged), left);
        self.merges[behind_left] = with_previous;
        self.merges[place + 1] = if is_last { NO_MERGE } else { with_next };
    }

    /// The first of the merges that are worth as much as this rank.
    #[cold]
    fn leftmost_tied(&self, pairs: &Pairs, rank: u32) -> Option<i32> {
        let tied = |merge: &&i32| {
            **merge < NO_MERGE_FROM && pairs.order(**merge as u32 >> PLACE_BITS) == pairs.order(rank)
        };
        self.merges[1..=self.considered].iter().find(tied).copied()
    }

    #[inline(always)]
    fn neighbours(&self) -> Neighbours {
        let after = self.after(self.place);
        let before = self.begins & ((1_u64 << self.place) - 1);
        let behind_left = (u64::BITS - before.leading_zeros()) as usize;
        Neighbours {
            left: behind_left.wrapping_sub(1) % FEW,
            behind_left,
            right: after.trailing_zeros() as usize % FEW,
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

/// See [`Few::merge_alone`].
struct Alone<'f> {
    few: &'f mut Few,
    model: &'f Model<'f>,
    span: &'f [u8],
}

impl Work for Alone<'_> {
    type Outcome = ();

    #[inline(always)]
    fn run(self) {
        let Self { few, model, span } = self;
        few.begin_with(model, span);
        few.settle_all(model.pairs);
        while few.merge(model.pairs) {
            few.settle(model.pairs);
        }
    }
}

/// The symbols beside the last merge; places where there is none mean nothing.
struct Neighbours {
    left: usize,
    /// One more; 0 if there is none.
    behind_left: usize,
    right: usize,
    is_last: bool,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::bpe::ABREAST;
    use crate::bpe::merge::{Heap, merge_abreast};
    use crate::bpe::random_models::{pairs_of, vocabulary_of};

    /// What the definition makes of each span: one merge after the other.
    fn one_by_one(model: &Model<'_>, spans: &[Vec<u8>]) -> Vec<Vec<u32>> {
        let ids = |span: &Vec<u8>| {
            let mut ids = Vec::new();
            Heap::default().merge(model, span, |id| ids.push(id));
            ids
        };
        spans.iter().map(ids).collect()
    }

    fn abreast(model: &Model<'_>, spans: &[Vec<u8>]) -> Vec<Vec<u32>> {
        let mut few = [const { Few::new() }; ABREAST];
        let mut all = Vec::new();
        for spans in spans.chunks(ABREAST) {
            merge_abreast(model, spans.iter().map(Vec::as_slice), &mut few, |_, few| {
                all.push(few.ids().collect());
            });
        }
        all
    }

    proptest! {
        #[test]
        fn what_is_joined_at_once_would_have_been_joined(
            merges in prop::collection::vec((any::<usize>(), any::<usize>()), 0..120),
            order in prop::collection::vec(0..40_u32, 120),
            longest in prop::sample::select(vec![2_usize, 3, 8, 40]),
            by_rank in any::<bool>(),
            spans in prop::collection::vec(prop::collection::vec(prop::sample::select(b"abc\0".to_vec()), 1..=FEW), 1..30),
        ) {
            let (mut tokens, mut list) = vocabulary_of(&merges, longest);
            // In any order, so that what a token is made of may come after what is made of it.
            let place = |id: u32| (order[(id - 256) as usize], id);
            if by_rank {
                let mut ids: Vec<u32> = (256..tokens.len() as u32).collect();
                ids.sort_by_key(|id| place(*id));
                tokens.iter_mut().skip(256).zip(ids).for_each(|(token, id)| token.1 = id);
            } else {
                let mut numbered: Vec<_> = (256..).zip(&list).map(|(id, pair)| (place(id), *pair)).collect();
                numbered.sort_unstable();
                list = numbered.into_iter().map(|(_, pair)| pair).collect();
            }
            let vocabulary = Vocabulary::new(&tokens).unwrap();
            let pairs = pairs_of(&tokens, (!by_rank).then_some(&list), &vocabulary);
            let model = Model { pairs: &pairs, vocabulary: &vocabulary, of_bytes: true };
            prop_assert_eq!(abreast(&model, &spans), one_by_one(&model, &spans));
        }
    }

    #[test]
    fn some_merges_of_an_ordinary_span_happen_at_once() {
        let merges: Vec<(usize, usize)> = (0..400).map(|n| (n * 7 % 31, n * 13 % 37)).collect();
        let (tokens, list) = vocabulary_of(&merges, 12);
        let vocabulary = Vocabulary::new(&tokens).unwrap();
        let pairs = Pairs::from_list(&list, &tokens, &vocabulary).unwrap();
        let model = Model { pairs: &pairs, vocabulary: &vocabulary, of_bytes: true };
        let span: Vec<u8> = (0..FEW).map(|n| b"abc"[n * n / 7 % 3]).collect();
        let mut few = Few::new();
        few.begin_with(&model, &span);
        assert!(few.ids().count() < FEW, "nothing was joined");
        few.merge_alone(&model, &span);
        assert_eq!(vec![few.ids().collect::<Vec<u32>>()], one_by_one(&model, &[span]));
    }
}
