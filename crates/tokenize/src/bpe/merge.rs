//! The merging itself: always the lowest rank, leftmost first, until no neighbours merge.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::few::{FEW, Few};
use super::long::Pieces;
use super::pairs::{NO_RANK, Pairs};
use super::symbols::Characters;
use super::vocabulary::Vocabulary;
use crate::kernels::{Work, with_avx2};

const NONE: u32 = u32::MAX;

/// Spans that take turns.
pub(crate) const ABREAST: usize = 8;
/// The memory of longer spans is not kept.
const KEPT: usize = 64 * 1024;

/// What merges, and what merging begins with.
#[derive(Clone, Copy)]
pub(super) struct Model<'m> {
    pub(super) pairs: &'m Pairs,
    pub(super) vocabulary: &'m Vocabulary,
    /// Whether the first symbols are the bytes, as they are of ASCII text in any case; otherwise they are characters,
    /// where the vocabulary has them.
    pub(super) of_bytes: bool,
}

impl Model<'_> {
    /// Whether symbols begin as bytes and each rank is worth something else.
    pub(super) fn has_plain_bytes(&self) -> bool {
        self.of_bytes && !self.pairs.has_ties()
    }
}

/// Memory that merging needs, kept between calls.
pub(crate) struct Scratch {
    heap: Heap,
    pieces: Option<Box<Pieces>>,
    /// [`ABREAST`] of them.
    pub(super) few: Box<[Few]>,
}

impl Default for Scratch {
    fn default() -> Self {
        let few = std::iter::repeat_with(Few::new).take(ABREAST).collect();
        Self { heap: Heap::default(), pieces: None, few }
    }
}

/// Merges up to [`ABREAST`] spans, each of at most [`FEW`] bytes, and hands the place of each span among
/// them and what it became to `emit`, in order.
///
/// A merge waits for two look-ups in a table that no cache of the processor holds. So each span does one merge and
/// asks for its memory, then the next one's turn comes.
pub(super) fn merge_abreast<'s>(
    model: &Model<'_>,
    spans: impl Iterator<Item = &'s [u8]>,
    few: &mut [Few],
    mut emit: impl FnMut(usize, &Few),
) {
    let mut listed = [&[][..]; ABREAST];
    let mut count = 0;
    for (slot, span) in listed.iter_mut().zip(spans) {
        *slot = span;
        count += 1;
    }
    let (few, spans) = (few.get_mut(..count).unwrap_or_default(), listed.get(..count).unwrap_or_default());
    with_avx2(TakeTurns { model, few, spans });
    for (place, few) in few.iter().enumerate() {
        emit(place, few);
    }
}

/// Merges all of them, one merge each in turn.
struct TakeTurns<'f> {
    model: &'f Model<'f>,
    few: &'f mut [Few],
    spans: &'f [&'f [u8]],
}

impl Work for TakeTurns<'_> {
    type Outcome = ();

    #[inline(always)]
    fn run(self) {
        let Self { model, few, spans } = self;
        let pairs = model.pairs;
        for (few, span) in few.iter_mut().zip(spans) {
            few.begin_with(model, span);
        }
        let mut merging = 0_u32;
        for (place, few) in few.iter_mut().enumerate() {
            few.settle_all(pairs);
            merging |= u32::from(few.merge(pairs)) << place;
        }
        while merging != 0 {
            let mut turn = merging;
            while turn != 0 {
                let place = turn.trailing_zeros();
                turn &= turn - 1;
                if let Some(few) = few.get_mut(place as usize) {
                    few.settle(pairs);
                    merging ^= u32::from(!few.merge(pairs)) << place;
                }
            }
        }
    }
}

/// Merges `span` and hands the resulting ids to `emit`, in order. O(n); O(n log n) where pieces of the span agree nowhere.
pub(super) fn merge_span(model: &Model<'_>, span: &[u8], scratch: &mut Scratch, mut emit: impl FnMut(u32)) {
    let Scratch { heap, pieces, few } = scratch;
    if span.len() <= FEW {
        let Some(few) = few.first_mut() else { return };
        few.merge_alone(model, span);
        return few.ids().for_each(emit);
    }
    let model = &Model { of_bytes: model.of_bytes || span.is_ascii(), ..*model };
    let merged = pieces.get_or_insert_with(|| Box::new(Pieces::new())).merge(model, few, heap, span);
    match merged {
        Some(tokens) => tokens.iter().for_each(|token| emit(token.id)),
        None => heap.merge(model, span, emit),
    }
    if span.len() > KEPT {
        (*pieces, *heap) = (None, Heap::default());
    }
}

/// Merging any span at once, in O(n log n), whatever the merges are.
#[derive(Default)]
pub(super) struct Heap {
    symbols: Vec<Symbol>,
    candidates: BinaryHeap<Reverse<Candidate>>,
}

/// A token so far, in a list linked both ways.
#[derive(Clone, Copy)]
struct Symbol {
    id: u32,
    previous: u32,
    next: u32,
}

/// A merge that was possible when it was found. Ordered by what its rank is worth, then place.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    order: u32,
    place: u32,
    rank: u32,
    left: u32,
    right: u32,
}

impl Heap {
    /// Merges `span` and hands the resulting ids to `emit`, in order.
    pub(super) fn merge(&mut self, model: &Model<'_>, span: &[u8], emit: impl FnMut(u32)) {
        if model.of_bytes {
            self.begin(span.iter().map(|&byte| model.vocabulary.byte_id(byte)));
        } else {
            self.begin(Characters::new(model.vocabulary, span));
        }
        self.merge_symbols(model.pairs, emit);
    }

    /// Begins with these symbols.
    fn begin(&mut self, ids: impl Iterator<Item = u32>) {
        self.symbols.clear();
        self.symbols.extend(ids.enumerate().map(|(place, id)| Symbol {
            id,
            previous: (place as u32).wrapping_sub(1),
            next: place as u32 + 1,
        }));
        if let Some(last) = self.symbols.last_mut() {
            last.next = NONE;
        }
    }

    fn merge_symbols(&mut self, pairs: &Pairs, mut emit: impl FnMut(u32)) {
        let Self { symbols, candidates: heap } = self;
        heap.clear();
        heap.extend(
            symbols.windows(2).enumerate().filter_map(|(place, pair)| {
                candidate(pairs, place as u32, pair[0].id, pair[1].id).map(Reverse)
            }),
        );
        while let Some(Reverse(best)) = heap.pop() {
            let left = symbols[best.place as usize];
            // A candidate is stale once either symbol has been merged into something else.
            if left.next == NONE || left.id != best.left || symbols[left.next as usize].id != best.right {
                continue;
            }
            let merged = pairs.made(best.rank);
            let right = symbols[left.next as usize];
            symbols[left.next as usize].id = NONE;
            symbols[best.place as usize].id = merged;
            symbols[best.place as usize].next = right.next;
            if right.next != NONE {
                symbols[right.next as usize].previous = best.place;
                let next = symbols[right.next as usize].id;
                heap.extend(candidate(pairs, best.place, merged, next).map(Reverse));
            }
            if left.previous != NONE {
                let previous = symbols[left.previous as usize].id;
                heap.extend(candidate(pairs, left.previous, previous, merged).map(Reverse));
            }
        }
        let mut place = if symbols.is_empty() { NONE } else { 0 };
        while place != NONE {
            emit(symbols[place as usize].id);
            place = symbols[place as usize].next;
        }
    }
}

fn candidate(pairs: &Pairs, place: u32, left: u32, right: u32) -> Option<Candidate> {
    let rank = pairs.rank(left, right);
    (rank != NO_RANK).then(|| Candidate { order: pairs.order(rank), place, rank, left, right })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Bpe, BpeParts, Merges, Symbols};
    use super::*;

    const CHARACTERS: [&str; 6] = [" ", "a", "b", "é", "漢", "字"];

    /// SentencePiece's rule, word for word: the best pair, the leftmost of equals, until none is a token.
    fn specification(tokens: &[(Vec<u8>, u32)], scores: &[(u32, f32)], text: &str) -> Vec<u32> {
        let id = |text: &[u8]| tokens.iter().find(|(token, _)| token == text).map(|(_, id)| *id);
        let score = |text: &[u8]| {
            let id = id(text)?;
            scores.iter().find(|(other, _)| *other == id).map(|(_, score)| *score)
        };
        let mut symbols: Vec<Vec<u8>> = text.chars().map(|one| one.to_string().into_bytes()).collect();
        loop {
            let pairs = symbols.windows(2).enumerate();
            let scored = pairs.filter_map(|(place, pair)| Some((score(&pair.concat())?, place)));
            let best = scored.reduce(|best, next| if next.0 > best.0 { next } else { best });
            let Some((_, place)) = best else { break };
            let right = symbols.remove(place + 1);
            symbols[place].extend(right);
        }
        let ids = |symbol: Vec<u8>| match id(&symbol) {
            Some(id) => vec![id],
            None => symbol.iter().map(|byte| id(&[*byte]).unwrap()).collect(),
        };
        symbols.into_iter().flat_map(ids).collect()
    }

    fn text(places: &[usize]) -> String {
        places.iter().map(|place| CHARACTERS[place % CHARACTERS.len()]).collect()
    }

    proptest! {
        #[test]
        fn scores_merge_as_specified(
            words in prop::collection::hash_set(prop::collection::vec(0..5_usize, 2..5), 1..25),
            ranks in prop::collection::vec(0..6_u8, 25),
            texts in prop::collection::vec(prop::collection::vec(0..6_usize, 0..90), 1..4),
        ) {
            // The last character is no token: it becomes bytes.
            let mut tokens: Vec<(Vec<u8>, u32)> = (0..=u8::MAX).map(|byte| (vec![byte], u32::from(byte))).collect();
            let characters = CHARACTERS[3..5].iter().map(|one| (*one).to_owned());
            let words: Vec<String> = words.iter().map(|word| text(word)).collect();
            let more = characters.chain(words.iter().cloned());
            tokens.extend(more.zip(256..).map(|(token, id)| (token.into_bytes(), id)));
            let scores: Vec<(u32, f32)> =
                (258..).zip(&ranks).take(words.len()).map(|(id, rank)| (id, -f32::from(*rank))).collect();
            let merges = Merges::ByScore(scores.clone());
            let parts = BpeParts {
                tokens: tokens.clone(), merges, begins_with: Symbols::Characters, ignore_merges: false,
            };
            let bpe = Bpe::new(parts).unwrap();
            let mut scratch = Scratch::default();
            for places in texts {
                let text = text(&places);
                let mut ids = Vec::new();
                bpe.encode_span(text.as_bytes(), &mut scratch, &mut ids);
                if !text.is_empty() {
                    prop_assert_eq!(ids, specification(&tokens, &scores, &text), "{:?}", text);
                }
            }
        }
    }
}
