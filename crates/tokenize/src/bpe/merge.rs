//! The merging itself: always the lowest rank, leftmost first, until no neighbours merge.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

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
}

/// A token so far, in a list linked both ways.
#[derive(Clone, Copy)]
struct Symbol {
    id: u32,
    previous: u32,
    next: u32,
}

/// A merge that was possible when it was found. Ordered by rank, then place.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    rank: u32,
    place: u32,
    left: u32,
    right: u32,
}

/// Merges the bytes of `span` and hands the resulting ids to `emit`, in order. O(n log n).
pub(crate) fn merge_all(
    pairs: &Pairs,
    vocabulary: &Vocabulary,
    span: &[u8],
    scratch: &mut Scratch,
    emit: impl FnMut(u32),
) {
    if span.len() <= FEW {
        return merge_few(pairs, vocabulary, span, emit);
    }
    let last = span.len() - 1;
    scratch.symbols.clear();
    scratch.symbols.extend(span.iter().enumerate().map(|(place, &byte)| Symbol {
        id: vocabulary.byte_id(byte),
        previous: (place as u32).wrapping_sub(1),
        next: if place < last { place as u32 + 1 } else { NONE },
    }));
    merge_many(pairs, scratch, emit);
}

/// At most [`FEW`] symbols. Each stays at the place of its first byte; bits say which places still begin one, so that
/// nothing moves, and neighbours are found without a branch.
fn merge_few(pairs: &Pairs, vocabulary: &Vocabulary, span: &[u8], mut emit: impl FnMut(u32)) {
    let Some(last) = span.len().checked_sub(1).filter(|last| *last < FEW) else { return };
    let mut ids = [0; FEW];
    let mut merges = [NO_MERGE; FEW];
    for (id, &byte) in ids.iter_mut().zip(span) {
        *id = vocabulary.byte_id(byte);
    }
    for (place, (merge, pair)) in merges.iter_mut().zip(span.windows(2)).enumerate() {
        *merge = merge_at(pairs.rank_of_bytes(pair[0], pair[1]), place);
    }
    let merges_len = last.next_multiple_of(LANES);
    let mut begins = u64::MAX >> (FEW - 1 - last);
    loop {
        let next = least(&merges[..merges_len]);
        if next >= NO_MERGE_FROM {
            break;
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
    let Scratch { symbols, heap } = scratch;
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
    let mut place = 0;
    while place != NONE {
        emit(symbols[place as usize].id);
        place = symbols[place as usize].next;
    }
}

fn candidate(pairs: &Pairs, place: u32, left: u32, right: u32) -> Option<Candidate> {
    let rank = pairs.rank(left, right);
    (rank != NO_RANK).then_some(Candidate { rank, place, left, right })
}
