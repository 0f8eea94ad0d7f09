//! The merging itself: always the lowest rank, leftmost first, until no neighbours merge.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::pairs::{Merge, Pairs};

/// From this many symbols on, a heap finds the next merge; below, looking through all of them is faster.
const HEAP_FROM: usize = 48;
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
    /// Rank of the merge with the next symbol, or [`NONE`] (short lists only).
    rank: u32,
    /// What that merge makes.
    merged: u32,
}

/// A merge that was possible when it was found. Ordered by rank, then place.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    rank: u32,
    place: u32,
    left: u32,
    right: u32,
    merged: u32,
}

/// Merges `ids` and hands the resulting ids to `emit`, in order. O(n log n), for short lists O(n · merges).
pub(crate) fn merge_all(
    pairs: &Pairs,
    ids: impl ExactSizeIterator<Item = u32>,
    scratch: &mut Scratch,
    emit: impl FnMut(u32),
) {
    let count = ids.len();
    scratch.symbols.clear();
    scratch.symbols.extend(ids.enumerate().map(|(place, id)| Symbol {
        id,
        previous: (place as u32).wrapping_sub(1),
        next: if place + 1 < count { place as u32 + 1 } else { NONE },
        rank: NONE,
        merged: 0,
    }));
    if count < HEAP_FROM {
        merge_short(pairs, &mut scratch.symbols, emit);
    } else {
        merge_long(pairs, scratch, emit);
    }
}

/// Symbols are moved together, so that a pass reads them in a row.
fn merge_short(pairs: &Pairs, symbols: &mut Vec<Symbol>, mut emit: impl FnMut(u32)) {
    for place in 1..symbols.len() {
        let found = pairs.get(symbols[place - 1].id, symbols[place].id);
        set_merge(&mut symbols[place - 1], found);
    }
    while let Some((place, symbol)) = symbols
        .iter()
        .enumerate()
        .min_by_key(|(_, symbol)| symbol.rank)
        .filter(|(_, symbol)| symbol.rank != NONE)
    {
        symbols[place].id = symbol.merged;
        symbols.remove(place + 1);
        let after = symbols.get(place + 1).and_then(|next| pairs.get(symbols[place].id, next.id));
        set_merge(&mut symbols[place], after);
        if place > 0 {
            let before = pairs.get(symbols[place - 1].id, symbols[place].id);
            set_merge(&mut symbols[place - 1], before);
        }
    }
    for symbol in symbols {
        emit(symbol.id);
    }
}

fn set_merge(symbol: &mut Symbol, merge: Option<Merge>) {
    symbol.rank = merge.map_or(NONE, |merge| merge.rank);
    symbol.merged = merge.map_or(0, |merge| merge.id);
}

fn merge_long(pairs: &Pairs, scratch: &mut Scratch, mut emit: impl FnMut(u32)) {
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
        let right = symbols[left.next as usize];
        symbols[left.next as usize].id = NONE;
        symbols[best.place as usize].id = best.merged;
        symbols[best.place as usize].next = right.next;
        if right.next != NONE {
            symbols[right.next as usize].previous = best.place;
            let next = symbols[right.next as usize].id;
            heap.extend(candidate(pairs, best.place, best.merged, next).map(Reverse));
        }
        if left.previous != NONE {
            let previous = symbols[left.previous as usize].id;
            heap.extend(candidate(pairs, left.previous, previous, best.merged).map(Reverse));
        }
    }
    let mut place = 0;
    while place != NONE {
        emit(symbols[place as usize].id);
        place = symbols[place as usize].next;
    }
}

fn candidate(pairs: &Pairs, place: u32, left: u32, right: u32) -> Option<Candidate> {
    pairs.get(left, right).map(|merge| Candidate { rank: merge.rank, place, left, right, merged: merge.id })
}
