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

use super::pairs::Pairs;
use super::vocabulary::Vocabulary;
use super::window::{Placed, WINDOW, Window};

/// The next piece begins this share of the tokens before the end of one, and at least one token: the last is often
/// wrong, the one before it seldom.
const SHARED: usize = 16;

/// Memory for it, kept between calls.
pub(super) struct Pieces {
    window: Window,
    piece: Vec<Placed>,
    following: Vec<Placed>,
    ids: Vec<u32>,
}

impl Pieces {
    pub(super) const fn new() -> Self {
        Self { window: Window::new(), piece: Vec::new(), following: Vec::new(), ids: Vec::new() }
    }

    /// The ids of a span of any length; None where two pieces agree in no token, or tokens are nearly as long as
    /// a piece.
    pub(super) fn merge(&mut self, pairs: &Pairs, vocabulary: &Vocabulary, span: &[u8]) -> Option<&[u32]> {
        self.ids.clear();
        fill(&mut self.piece, &mut self.window, pairs, vocabulary, span, 0);
        let mut end = WINDOW;
        // The tokens of the piece before this one are settled.
        let mut settled = 0;
        while end < span.len() {
            let (start, last, same) = self.follow(pairs, vocabulary, span, settled)?;
            self.ids.extend(self.piece.get(settled..=last)?.iter().map(|token| token.id));
            std::mem::swap(&mut self.piece, &mut self.following);
            settled = same + 1;
            end = start + WINDOW;
        }
        self.ids.extend(self.piece.get(settled..)?.iter().map(|token| token.id));
        Some(&self.ids)
    }

    /// Makes the piece that follows, and returns where it begins in the span, and a token that both have: its number in
    /// the piece, and in the one that follows.
    fn follow(
        &mut self,
        pairs: &Pairs,
        vocabulary: &Vocabulary,
        span: &[u8],
        settled: usize,
    ) -> Option<(usize, usize, usize)> {
        let mut shared = 1 + self.piece.len() / SHARED;
        loop {
            let begin = self.piece.len().checked_sub(shared)?;
            let start = self.piece.get(begin).filter(|_| begin >= settled.max(1))?.start;
            fill(&mut self.following, &mut self.window, pairs, vocabulary, span, start);
            if let Some((last, same)) = common(&self.piece, begin, &self.following) {
                return Some((start, last, same));
            }
            shared *= 2;
        }
    }
}

/// Puts the tokens of the piece that begins at `start` into `piece`.
fn fill(
    piece: &mut Vec<Placed>,
    window: &mut Window,
    pairs: &Pairs,
    vocabulary: &Vocabulary,
    span: &[u8],
    start: usize,
) {
    piece.clear();
    let tokens = window.merge(pairs, vocabulary, span.get(start..).unwrap_or_default());
    piece.extend(tokens.map(|token| Placed { start: start + token.start, id: token.id }));
}

/// Where the first token lies that both pieces have, of those from `begin` on.
fn common(piece: &[Placed], begin: usize, following: &[Placed]) -> Option<(usize, usize)> {
    let (mut here, mut there) = (begin, 0);
    loop {
        let (token, other) = (piece.get(here)?, following.get(there)?);
        if token == other {
            return Some((here, there));
        }
        here += usize::from(token.start <= other.start);
        there += usize::from(other.start <= token.start);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bpe::Scratch;
    use crate::bpe::merge::{merge_at_once, merge_bytes};
    use proptest::prelude::*;

    /// Bytes and id.
    type Token = (Vec<u8>, u32);

    /// All bytes, and what the merges make of tokens that are there by then; each merge takes two of the tokens, by
    /// number.
    fn vocabulary(merges: &[(usize, usize)], longest: usize) -> (Vec<Token>, Vec<(u32, u32)>) {
        let mut tokens: Vec<Token> = (0..=u8::MAX).map(|byte| (vec![byte], u32::from(byte))).collect();
        let letters = [usize::from(b'a'), usize::from(b'b'), usize::from(b'c')];
        let mut list = Vec::new();
        let mut usable: Vec<usize> = letters.to_vec();
        for &(left, right) in merges {
            let (left, right) = (usable[left % usable.len()], usable[right % usable.len()]);
            let joined = [tokens[left].0.as_slice(), &tokens[right].0].concat();
            if joined.len() > longest || tokens.iter().any(|(bytes, _)| *bytes == joined) {
                continue;
            }
            list.push((left as u32, right as u32));
            usable.push(tokens.len());
            tokens.push((joined, tokens.len() as u32));
        }
        (tokens, list)
    }

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
            let (tokens, mut list) = vocabulary(&merges, longest);
            // A later merge may come first: then tokens can be made in other ways than those that made them.
            if !list.is_empty() {
                let middle = order.index(list.len());
                list.rotate_left(middle);
            }
            let vocabulary = Vocabulary::new(&tokens).unwrap();
            let pairs = if by_rank {
                Pairs::by_rank(&tokens, &vocabulary)
            } else {
                Pairs::from_list(&list, &tokens, &vocabulary).unwrap()
            };
            let mut scratch = Scratch::default();
            let (mut whole, mut all) = (Vec::new(), Vec::new());
            merge_at_once(&pairs, &vocabulary, &text, &mut scratch, |id| whole.push(id));
            merge_bytes(&pairs, &vocabulary, &text, &mut scratch, |id| all.push(id));
            prop_assert_eq!(&all, &whole);
            if let Some(ids) = Pieces::new().merge(&pairs, &vocabulary, &text) {
                prop_assert_eq!(ids, &whole);
            }
        }
    }

    #[test]
    fn ordinary_spans_are_merged_in_pieces() {
        let merges: Vec<(usize, usize)> = (0..400).map(|n| (n * 7 % 31, n * 13 % 37)).collect();
        let (tokens, list) = vocabulary(&merges, 12);
        let vocabulary = Vocabulary::new(&tokens).unwrap();
        let pairs = Pairs::from_list(&list, &tokens, &vocabulary).unwrap();
        let text: Vec<u8> = (0..20_000_u32).map(|n| b"abc"[(n * n / 7 % 3) as usize]).collect();
        for text in [&text[..], &b"a".repeat(20_000), &b"abcab".repeat(4_000)] {
            assert!(Pieces::new().merge(&pairs, &vocabulary, text).is_some());
        }
    }

    #[test]
    fn tokens_as_long_as_a_piece_are_merged_at_once() {
        let doubling: Vec<(usize, usize)> =
            (0..11).map(|n| (if n == 0 { 0 } else { n + 2 }, if n == 0 { 0 } else { n + 2 })).collect();
        let (tokens, list) = vocabulary(&doubling, 2_000);
        assert!(
            tokens.iter().any(|(bytes, _)| bytes.len() == 1024),
            "the vocabulary is not what the test means"
        );
        let vocabulary = Vocabulary::new(&tokens).unwrap();
        let pairs = Pairs::from_list(&list, &tokens, &vocabulary).unwrap();
        let text = [b'a'; 5_000];
        assert_eq!(Pieces::new().merge(&pairs, &vocabulary, &text), None);
        let mut lengths = Vec::new();
        merge_bytes(&pairs, &vocabulary, &text, &mut Scratch::default(), |id| {
            lengths.push(vocabulary.length(id));
        });
        assert_eq!(lengths, [1024, 1024, 1024, 1024, 512, 256, 128, 8]);
    }
}
