//! The merging itself: always the lowest rank, leftmost first, until no neighbours merge.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::pairs::{NO_RANK, Pairs};
use super::vocabulary::Vocabulary;

/// Up to this many bytes, looking through all pairs for the next merge is faster than a heap.
const FEW: usize = 48;
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

/// At most [`FEW`] symbols, moved together after each merge so that a pass reads them in a row.
fn merge_few(pairs: &Pairs, vocabulary: &Vocabulary, span: &[u8], mut emit: impl FnMut(u32)) {
    let mut symbols = [0; FEW];
    let mut count = 0;
    for (slot, &byte) in symbols.iter_mut().zip(span) {
        *slot = vocabulary.byte_id(byte);
        count += 1;
    }
    // The merge of each symbol with the next; the last one has none.
    let mut ranks = [NO_RANK; FEW];
    for (slot, pair) in ranks.iter_mut().zip(span.windows(2)) {
        *slot = pairs.rank_of_bytes(pair[0], pair[1]);
    }
    while count > 1 {
        let (mut place, mut lowest) = (0, NO_RANK);
        for (candidate, &rank) in ranks[..count - 1].iter().enumerate() {
            if rank < lowest {
                (place, lowest) = (candidate, rank);
            }
        }
        if lowest == NO_RANK {
            break;
        }
        count -= 1;
        symbols[place] = pairs.made(lowest);
        for next in place + 1..count {
            symbols[next] = symbols[next + 1];
            ranks[next - 1] = ranks[next];
        }
        ranks[count - 1] = NO_RANK;
        if place + 1 < count {
            ranks[place] = pairs.rank(symbols[place], symbols[place + 1]);
        }
        if place > 0 {
            ranks[place - 1] = pairs.rank(symbols[place - 1], symbols[place]);
        }
    }
    symbols[..count].iter().for_each(|&id| emit(id));
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
