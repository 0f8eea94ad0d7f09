//! The merging itself: always the lowest rank, leftmost first, until no neighbours merge.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::long::Pieces;
use super::pairs::{NO_RANK, Pairs};
use super::vocabulary::{ID_LIMIT, Vocabulary};

/// Up to this many bytes, looking through all pairs for the next merge is faster than a heap. One bit each.
const FEW: usize = u64::BITS as usize;
/// A place below [`FEW`].
const PLACE_BITS: u32 = FEW.trailing_zeros();
/// Merges that are compared together.
const LANES: usize = 8;
/// See [`merge_at`]. Signed, since comparing signed numbers is what every x86-64 does four at a time.
const NO_MERGE: i32 = i32::MAX;
const NO_MERGE_FROM: i32 = (ID_LIMIT << PLACE_BITS) as i32;
const NONE: u32 = u32::MAX;

/// Memory that merging needs, kept between calls.
#[derive(Default)]
pub(crate) struct Scratch {
    symbols: Vec<Symbol>,
    heap: BinaryHeap<Reverse<Candidate>>,
    pieces: Option<Box<Pieces>>,
}

/// A token so far, in a list linked both ways.
#[derive(Clone, Copy)]
struct Symbol {
    id: u32,
    previous: u32,
    next: u32,
}

impl Scratch {
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

/// Merges the bytes of `span` and hands the resulting ids to `emit`, in order. O(n log n).
pub(crate) fn merge_bytes(
    pairs: &Pairs,
    vocabulary: &Vocabulary,
    span: &[u8],
    scratch: &mut Scratch,
    emit: impl FnMut(u32),
) {
    let Some(last) = span.len().checked_sub(1).filter(|last| *last < FEW) else {
        if !pairs.has_ties() {
            let pieces = scratch.pieces.get_or_insert_with(|| Box::new(Pieces::new()));
            if let Some(ids) = pieces.merge(pairs, vocabulary, span) {
                return ids.iter().copied().for_each(emit);
            }
        }
        return merge_at_once(pairs, vocabulary, span, scratch, emit);
    };
    let mut ids = [0; FEW];
    let mut merges = [NO_MERGE; FEW];
    for (id, &byte) in ids.iter_mut().zip(span) {
        *id = vocabulary.byte_id(byte);
    }
    for (place, (merge, pair)) in merges.iter_mut().zip(span.windows(2)).enumerate() {
        *merge = merge_at(pairs.rank_of_bytes(pair[0], pair[1]), place);
    }
    merge_few(pairs, &mut ids, &mut merges, last, emit);
}

/// [`merge_bytes`] of any length, in O(n log n), whatever the merges are.
pub(super) fn merge_at_once(
    pairs: &Pairs,
    vocabulary: &Vocabulary,
    span: &[u8],
    scratch: &mut Scratch,
    emit: impl FnMut(u32),
) {
    scratch.begin(span.iter().map(|&byte| vocabulary.byte_id(byte)));
    merge_many(pairs, scratch, emit);
}

/// As [`merge_bytes`], but begins with characters, where the vocabulary has them, instead of bytes.
pub(crate) fn merge_characters(
    pairs: &Pairs,
    vocabulary: &Vocabulary,
    span: &[u8],
    scratch: &mut Scratch,
    emit: impl FnMut(u32),
) {
    let Some(last) = span.len().checked_sub(1).filter(|last| *last < FEW) else {
        scratch.begin(Symbols { vocabulary, rest: span, bytes: 0 });
        return merge_many(pairs, scratch, emit);
    };
    let mut ids = [0; FEW];
    let mut merges = [NO_MERGE; FEW];
    let mut count = 0_usize;
    for (slot, id) in ids.iter_mut().zip(Symbols { vocabulary, rest: span, bytes: 0 }) {
        *slot = id;
        count += 1;
    }
    let last = count.saturating_sub(1).min(last);
    for place in 0..last {
        merges[place] = merge_at(pairs.rank(ids[place], ids[place + 1]), place);
    }
    merge_few(pairs, &mut ids, &mut merges, last, emit);
}

/// The ids of a text's characters, or of their bytes where a character has no token.
struct Symbols<'s> {
    vocabulary: &'s Vocabulary,
    rest: &'s [u8],
    /// How many of the next bytes belong to a character without a token.
    bytes: usize,
}

impl Iterator for Symbols<'_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        let (&first, after) = self.rest.split_first()?;
        let width = width(first).min(self.rest.len());
        if width > 1 && self.bytes == 0 {
            let (character, after) = self.rest.split_at(width);
            if let Some(id) = self.vocabulary.id(character) {
                self.rest = after;
                return Some(id);
            }
            self.bytes = width;
        }
        self.bytes = self.bytes.saturating_sub(1);
        self.rest = after;
        Some(self.vocabulary.byte_id(first))
    }
}

/// How many bytes the character that begins with this one has.
fn width(first: u8) -> usize {
    match first {
        0xf0.. => 4,
        0xe0.. => 3,
        0xc0.. => 2,
        _ => 1,
    }
}

/// At most [`FEW`] symbols, the last at place `last`, with their merges. Each stays at its place; bits say which places
/// still begin one, so that nothing moves, and neighbours are found without a branch.
#[inline(always)]
fn merge_few(
    pairs: &Pairs,
    ids: &mut [u32; FEW],
    merges: &mut [i32; FEW],
    last: usize,
    mut emit: impl FnMut(u32),
) {
    let merges_len = last.next_multiple_of(LANES);
    let mut begins = u64::MAX >> (FEW - 1 - last);
    loop {
        let mut next = least(&merges[..merges_len]);
        if next >= NO_MERGE_FROM {
            break;
        }
        let rank = next as u32 >> PLACE_BITS;
        if pairs.may_tie(rank) {
            next = leftmost_tied(pairs, merges, rank).unwrap_or(next);
        }
        let place = next as usize % FEW;
        let merged = pairs.made(next as u32 >> PLACE_BITS);
        let after = begins & (u64::MAX << place << 1);
        let right = after.trailing_zeros() as usize % FEW;
        let beyond = after & after.wrapping_sub(1);
        let before = begins & ((1_u64 << place) - 1);
        let left = (u64::BITS - 1).wrapping_sub(before.leading_zeros()) as usize % FEW;
        begins &= !(1_u64 << right);
        ids[place] = merged;
        merges[right] = NO_MERGE;
        // Both are looked up whether or not there is a neighbour: a wasted look-up costs less than a wrong guess.
        let with_next = merge_at(pairs.rank(merged, ids[beyond.trailing_zeros() as usize % FEW]), place);
        let with_previous = merge_at(pairs.rank(ids[left], merged), left);
        merges[left] = if before == 0 { merges[left] } else { with_previous };
        merges[place] = if beyond == 0 { NO_MERGE } else { with_next };
    }
    while begins != 0 {
        emit(ids[begins.trailing_zeros() as usize % FEW]);
        begins &= begins - 1;
    }
}

/// The first of the merges that are worth as much as this rank.
#[cold]
fn leftmost_tied(pairs: &Pairs, merges: &[i32; FEW], rank: u32) -> Option<i32> {
    let tied = |merge: &&i32| {
        **merge < NO_MERGE_FROM && pairs.order(**merge as u32 >> PLACE_BITS) == pairs.order(rank)
    };
    merges.iter().find(tied).copied()
}

/// The merge of a symbol with the next one: its rank, then its place, so that the least is the merge that happens
/// next. No merge is no less than [`NO_MERGE_FROM`].
#[inline(always)]
fn merge_at(rank: u32, place: usize) -> i32 {
    const { assert!(NO_RANK == u32::MAX) };
    (rank << PLACE_BITS | place as u32) as i32 & i32::MAX
}

/// The least of the numbers, of which there are a multiple of [`LANES`].
#[inline(always)]
fn least(merges: &[i32]) -> i32 {
    let mut lanes = [NO_MERGE; LANES];
    for merges in merges.as_chunks::<LANES>().0 {
        for (least, merge) in lanes.iter_mut().zip(merges) {
            *least = (*least).min(*merge);
        }
    }
    lanes.into_iter().fold(NO_MERGE, i32::min)
}

fn merge_many(pairs: &Pairs, scratch: &mut Scratch, mut emit: impl FnMut(u32)) {
    let Scratch { symbols, heap, .. } = scratch;
    heap.clear();
    heap.extend(
        symbols
            .windows(2)
            .enumerate()
            .filter_map(|(place, pair)| candidate(pairs, place as u32, pair[0].id, pair[1].id).map(Reverse)),
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
                bpe.encode_span(text.as_bytes(), &mut scratch, |id| ids.push(id));
                if !text.is_empty() {
                    prop_assert_eq!(ids, specification(&tokens, &scores, &text), "{:?}", text);
                }
            }
        }
    }
}
