//! Merging a long span piece by piece, in time that grows with its length only.
//!
//! Two facts about merging always the lowest rank, leftmost first:
//!
//! 1. Neighbours in the tokens of any text are the tokens of their own bytes. No merge ever crossed the outer borders of
//!    the two, so that inside them the same merges happened in the same order as would have without the rest.
//! 2. A row of tokens of which all neighbours have that property is the tokens of the whole. Take the first merge
//!    of the whole that would cross a border between two of them: until then nothing crossed any border, so that these two
//!    have come as far as they would have alone, where this merge would be the next, too; and alone it does not happen.
//!
//! So the tokens of two overlapping pieces may be put together at any token that both have: every neighbour in the
//! result is one in a piece. Where a piece was cut off, its last tokens may be wrong, and no token of the next piece
//! agrees with them; a token or two before that, they do.
//!
//! Pieces may begin anywhere. Those at fixed places are made several at a time, and most of them agree with the row of
//! tokens that ends in them. Where one does not (tokens as long as a piece; the same again and again, at another place of
//! its period), a piece that begins with a token of the row is tried, then longer ones. What pieces became is remembered, so
//! that text which repeats itself is merged once.

use super::few::{FEW, Few};
use super::join::{Piece, Placed, boundary, join};
use super::memo::Memo;
use super::merge::{ABREAST, Heap, Model, merge_abreast};
use super::window::{WINDOW, Window};

/// Bytes that a piece at a fixed place shares with the next one, or some fewer: pieces begin and end where characters do.
const SHARED: usize = 16;
/// Both ends of a piece may lie so many bytes before the place that is meant.
const LEAST_SHARED: usize = SHARED - 2 * 3;
/// From one piece at a fixed place to the next.
const STRIDE: usize = FEW - SHARED;
/// The longest piece.
const LARGE: usize = 8192;
/// Pieces that begin with a token of the row, in the order in which they are tried: the size, and how far before the end of
/// the row they begin.
const ATTEMPTS: [(usize, usize); 6] =
    [(FEW, SHARED), (FEW, 40), (WINDOW, 96), (WINDOW, 400), (LARGE, 1024), (LARGE, 7000)];

/// Memory for it, kept between calls.
pub(super) struct Pieces {
    window: Window,
    memo: Memo,
    /// Pieces at fixed places, and the number of the first of them.
    fixed: [Piece; ABREAST],
    first: usize,
    /// A piece that begins with a token of the row.
    following: Piece,
    /// The tokens of the span up to the end of the last piece.
    row: Vec<Placed>,
}

impl Pieces {
    pub(super) fn new() -> Self {
        Self {
            window: Window::new(),
            memo: Memo::default(),
            fixed: Default::default(),
            first: usize::MAX,
            following: Piece::default(),
            row: Vec::new(),
        }
    }

    /// The tokens of a span; None where no two pieces agree, or where it has 4 GiB or more.
    pub(super) fn merge(
        &mut self,
        model: &Model<'_>,
        few: &mut [Few],
        heap: &mut Heap,
        span: &[u8],
    ) -> Option<&[Placed]> {
        u32::try_from(span.len()).ok()?;
        self.memo.clear();
        self.row.clear();
        self.first = usize::MAX;
        let mut end = 0;
        while end < span.len() {
            end = match self.follow_fixed(model, few, span, end) {
                Some(end) => end,
                None => self.follow_row(model, few, heap, span, end)?,
            };
        }
        Some(&self.row)
    }

    /// Goes on with the piece at a fixed place that lies across the end of the row, and returns its end.
    fn follow_fixed(&mut self, model: &Model<'_>, few: &mut [Few], span: &[u8], end: usize) -> Option<usize> {
        let number = end.saturating_sub(LEAST_SHARED) / STRIDE;
        if !(self.first..self.first.saturating_add(ABREAST)).contains(&number) {
            self.make_fixed(model, few, span, number);
        }
        let piece = self.fixed.get(number - self.first)?;
        join(&mut self.row, piece, end).then_some(piece.end)
    }

    /// Makes the pieces at fixed places from `first` on.
    fn make_fixed(&mut self, model: &Model<'_>, few: &mut [Few], span: &[u8], first: usize) {
        self.first = first;
        let mut unknown = [(0, &[][..]); ABREAST];
        let mut count = 0;
        for (place, piece) in self.fixed.iter_mut().enumerate() {
            piece.start = boundary(span, (first + place) * STRIDE);
            piece.end = boundary(span, piece.start + FEW);
            let bytes = span.get(piece.start..piece.end).unwrap_or_default();
            if !self.memo.find(bytes, &mut piece.tokens)
                && let Some(slot) = unknown.get_mut(count)
            {
                *slot = (place, bytes);
                count += 1;
            }
        }
        let unknown = unknown.get(..count).unwrap_or_default();
        merge_abreast(model, unknown.iter().map(|(_, bytes)| *bytes), few, |index, few| {
            let Some((place, bytes)) = unknown.get(index) else { return };
            if let Some(piece) = self.fixed.get_mut(*place) {
                few.place_tokens(model, &mut piece.tokens);
                self.memo.keep(bytes, &piece.tokens);
            }
        });
    }

    /// Goes on with a piece that begins with a token of the row, and returns its end.
    fn follow_row(
        &mut self,
        model: &Model<'_>,
        few: &mut [Few],
        heap: &mut Heap,
        span: &[u8],
        end: usize,
    ) -> Option<usize> {
        for (size, shared) in ATTEMPTS {
            if size == WINDOW && !model.has_plain_bytes() {
                continue;
            }
            let from = end.saturating_sub(shared);
            let before = self.row.iter().rev().find(|token| token.start as usize <= from);
            let start = before.map_or(0, |token| token.start as usize);
            if start + size <= end {
                continue;
            }
            self.following.start = start;
            self.following.end = boundary(span, start + size);
            self.fill(model, few, heap, span, size);
            if join(&mut self.row, &self.following, end) {
                return Some(self.following.end);
            }
        }
        None
    }

    /// Merges the piece that follows.
    fn fill(&mut self, model: &Model<'_>, few: &mut [Few], heap: &mut Heap, span: &[u8], size: usize) {
        let Piece { start, end, tokens } = &mut self.following;
        let bytes = span.get(*start..*end).unwrap_or_default();
        if self.memo.find(bytes, tokens) {
            return;
        }
        match size {
            FEW => {
                if let Some(few) = few.first_mut() {
                    few.merge_alone(model, bytes);
                    few.place_tokens(model, tokens);
                }
            }
            WINDOW => {
                tokens.clear();
                tokens.extend(self.window.merge(model.pairs, model.vocabulary, bytes));
            }
            _ => {
                tokens.clear();
                let mut start = 0;
                heap.merge(model, bytes, |id| {
                    tokens.push(Placed { start, id });
                    start += model.vocabulary.length(id) as u32;
                });
            }
        }
        self.memo.keep(bytes, tokens);
    }
}

#[cfg(test)]
mod tests {
    use super::super::pairs::Pairs;
    use super::super::vocabulary::Vocabulary;
    use super::*;
    use crate::bpe::Scratch;
    use crate::bpe::merge::merge_span;
    use crate::bpe::random_models::{Token, pairs_of, vocabulary_of};
    use proptest::prelude::*;

    fn text() -> impl Strategy<Value = Vec<u8>> {
        let letters = prop::collection::vec(prop::sample::select(b"abc".to_vec()), 1..3000);
        let repeated = (prop::collection::vec(prop::sample::select(b"abc".to_vec()), 1..9), 1..2000_usize)
            .prop_map(|(unit, length)| unit.iter().copied().cycle().take(length).collect());
        prop_oneof![letters, repeated]
    }

    proptest! {
        #[test]
        fn pieces_are_the_whole(
            merges in prop::collection::vec((any::<usize>(), any::<usize>()), 0..120),
            order in any::<prop::sample::Index>(),
            longest in prop::sample::select(vec![3_usize, 8, 40, 400]),
            by_rank in any::<bool>(),
            text in text(),
        ) {
            let (tokens, mut list) = vocabulary_of(&merges, longest);
            // A later merge may come first: then tokens can be made in other ways than those that made them.
            if !list.is_empty() {
                let middle = order.index(list.len());
                list.rotate_left(middle);
            }
            let vocabulary = Vocabulary::new(&tokens).unwrap();
            let pairs = pairs_of(&tokens, (!by_rank).then_some(&list), &vocabulary);
            let model = Model { pairs: &pairs, vocabulary: &vocabulary, of_bytes: true };
            check(&model, &text, false)?;
        }

        #[test]
        fn pieces_of_characters_with_equal_scores_are_the_whole(
            words in prop::collection::hash_set("[ab漢é]{2,6}", 1..40),
            ranks in prop::collection::vec(0..6_u8, 40),
            text in "[abcé漢字😀]{1,300}",
            times in 1..9_usize,
        ) {
            // Two of the characters are tokens; the others become bytes.
            let mut tokens: Vec<Token> = (0..=u8::MAX).map(|byte| (vec![byte], u32::from(byte))).collect();
            let more = ["é", "漢"].into_iter().map(str::to_owned).chain(words);
            tokens.extend(more.zip(256..).map(|(token, id)| (token.into_bytes(), id)));
            let vocabulary = Vocabulary::new(&tokens).unwrap();
            let mut scores: Vec<(u8, u32)> = ranks.iter().copied().zip(258..tokens.len() as u32).collect();
            scores.sort_unstable();
            let orders = scores.iter().map(|(rank, _)| scores.iter().position(|(other, _)| other == rank).unwrap() as u32);
            let list: Vec<u32> = scores.iter().map(|(_, id)| *id).collect();
            let pairs = Pairs::by_score(&list, orders.collect(), &tokens, &vocabulary);
            for of_bytes in [false, true] {
                let model = Model { pairs: &pairs, vocabulary: &vocabulary, of_bytes };
                check(&model, text.repeat(times).as_bytes(), false)?;
            }
        }
    }

    proptest! {
        /// What the shortest pieces do not agree on is tried in longer ones, of characters here, with bytes in between: the
        /// one way to merge some hundred bytes that knows bytes alone would agree at those.
        #[test]
        fn long_tokens_of_characters_between_bytes_are_merged(
            runs in prop::collection::vec((0..200_usize, 0..4_usize), 1..12), ties in any::<bool>(),
        ) {
            let mut tokens: Vec<Token> = (0..=u8::MAX).map(|byte| (vec![byte], u32::from(byte))).collect();
            tokens.extend((0..8).map(|double| ("é".repeat(1 << double).into_bytes(), 256 + double)));
            let vocabulary = Vocabulary::new(&tokens).unwrap();
            let list: Vec<u32> = (257..264).collect();
            let orders = (0..7).map(|order| if ties { order / 2 * 2 } else { order }).collect();
            let pairs = Pairs::by_score(&list, orders, &tokens, &vocabulary);
            let text: String = runs.iter().map(|(long, between)| "é".repeat(*long) + &"😀".repeat(*between)).collect();
            check(&Model { pairs: &pairs, vocabulary: &vocabulary, of_bytes: false }, text.as_bytes(), false)?;
        }
    }

    /// Holds the pieces against merging at once; `certainly` says that they must come to an end.
    fn check(model: &Model<'_>, text: &[u8], certainly: bool) -> Result<(), TestCaseError> {
        let (mut whole, mut all) = (Vec::new(), Vec::new());
        Heap::default().merge(model, text, |id| whole.push(id));
        merge_span(model, text, &mut Scratch::default(), |id| all.push(id));
        prop_assert_eq!(&all, &whole);
        let mut few = [const { Few::new() }; ABREAST];
        let mut pieces = Pieces::new();
        let row = pieces.merge(model, &mut few, &mut Heap::default(), text);
        prop_assert!(row.is_some() || !certainly);
        let mut place = 0;
        for (token, id) in row.unwrap_or_default().iter().zip(&whole) {
            prop_assert_eq!((token.start, token.id), (place, *id));
            place += model.vocabulary.length(*id) as u32;
        }
        prop_assert!(row.is_none_or(|row| row.len() == whole.len()));
        Ok(())
    }

    #[test]
    fn tokens_that_only_begin_at_the_same_place_join_nothing() {
        // Every two bytes merge, those on the right first: the end of the text says where all the pairs begin, far away.
        let mut tokens: Vec<Token> = (0..=u8::MAX).map(|byte| (vec![byte], u32::from(byte))).collect();
        let mut list = Vec::new();
        for right in (1..=u8::MAX).rev() {
            list.push((u32::from(right) - 1, u32::from(right)));
            tokens.push((vec![right - 1, right], tokens.len() as u32));
        }
        let vocabulary = Vocabulary::new(&tokens).unwrap();
        let pairs = Pairs::from_list(&list, &tokens, &vocabulary).unwrap();
        let model = Model { pairs: &pairs, vocabulary: &vocabulary, of_bytes: true };
        for length in 1..=u8::MAX {
            let text: Vec<u8> = (0..length).collect();
            check(&model, &text, false).unwrap();
            check(&model, &text.repeat(5), false).unwrap();
        }
    }

    #[test]
    fn ordinary_spans_are_merged_in_pieces() {
        let merges: Vec<(usize, usize)> = (0..400).map(|n| (n * 7 % 31, n * 13 % 37)).collect();
        let (tokens, list) = vocabulary_of(&merges, 12);
        let vocabulary = Vocabulary::new(&tokens).unwrap();
        let pairs = Pairs::from_list(&list, &tokens, &vocabulary).unwrap();
        let text: Vec<u8> = (0..20_000_u32).map(|n| b"abc"[(n * n / 7 % 3) as usize]).collect();
        let model = Model { pairs: &pairs, vocabulary: &vocabulary, of_bytes: true };
        for text in [&text[..], &b"a".repeat(20_000), &b"abcab".repeat(4_000)] {
            check(&model, text, true).unwrap();
        }
    }

    #[test]
    fn tokens_longer_than_most_pieces_are_merged() {
        let doubling: Vec<(usize, usize)> =
            (0..11).map(|n| (if n == 0 { 0 } else { n + 3 }, if n == 0 { 0 } else { n + 3 })).collect();
        let (tokens, list) = vocabulary_of(&doubling, 2_000);
        assert!(
            tokens.iter().any(|(bytes, _)| bytes.len() == 1024),
            "the vocabulary is not what the test means"
        );
        let vocabulary = Vocabulary::new(&tokens).unwrap();
        let pairs = Pairs::from_list(&list, &tokens, &vocabulary).unwrap();
        let model = Model { pairs: &pairs, vocabulary: &vocabulary, of_bytes: true };
        let text = vec![b'a'; 50_000];
        check(&model, &text, true).unwrap();
        let mut lengths = Vec::new();
        merge_span(&model, &text[..5_000], &mut Scratch::default(), |id| {
            lengths.push(vocabulary.length(id));
        });
        assert_eq!(lengths, [1024, 1024, 1024, 1024, 512, 256, 128, 8]);
        // Of these no two fit into the largest piece.
        let doubling: Vec<(usize, usize)> =
            (0..13).map(|n| (if n == 0 { 0 } else { n + 3 }, if n == 0 { 0 } else { n + 3 })).collect();
        let (tokens, list) = vocabulary_of(&doubling, 8_192);
        let vocabulary = Vocabulary::new(&tokens).unwrap();
        let pairs = Pairs::from_list(&list, &tokens, &vocabulary).unwrap();
        check(&Model { pairs: &pairs, vocabulary: &vocabulary, of_bytes: true }, &text, false).unwrap();
    }
}
