//! Byte-pair merging for models that the fast path does not serve: word for word as the reference does it.
//!
//! Source: <https://github.com/google/sentencepiece/blob/master/src/bpe_model.cc>

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use ahash::AHashMap;

use super::model::{Kind, Model};
use super::normalize::user_defined;
use super::trie::Trie;

const NONE: usize = usize::MAX;

pub(crate) struct Pairs {
    /// Texts that pieces merge into.
    texts: AHashMap<Box<[u8]>, u32>,
    scores: Box<[f32]>,
    unused: Box<[bool]>,
    /// Symbols that are never merged.
    frozen: Trie,
    longest: usize,
    has_unused: bool,
}

/// A piece so far, in a list linked both ways.
#[derive(Clone, Copy)]
struct Symbol {
    start: usize,
    end: usize,
    previous: usize,
    next: usize,
    frozen: bool,
}

/// A merge that was possible when it was found. The greatest is the one with the best score, then the leftmost.
struct Candidate {
    score: f32,
    left: usize,
    right: usize,
    length: usize,
}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Candidate {}

impl Pairs {
    pub(crate) fn new(model: &Model) -> Self {
        let is_text = |kind| matches!(kind, Kind::Normal | Kind::UserDefined | Kind::Unused);
        let texts = model.pieces.iter().zip(0..).filter(|(piece, _)| is_text(piece.kind));
        let texts: AHashMap<Box<[u8]>, u32> =
            texts.map(|(piece, id)| (piece.text.as_bytes().into(), id)).collect();
        Self {
            longest: texts.keys().map(|text| text.len()).max().unwrap_or(0),
            texts,
            scores: model.pieces.iter().map(|piece| piece.score).collect(),
            unused: model.pieces.iter().map(|piece| piece.kind == Kind::Unused).collect(),
            has_unused: model.pieces.iter().any(|piece| piece.kind == Kind::Unused),
            frozen: user_defined(model),
        }
    }

    /// Calls `emit` with the pieces of a text in order: where each begins and ends. O(n log n) for n characters.
    pub(crate) fn encode(&self, text: &str, mut emit: impl FnMut(usize, usize)) {
        let mut symbols = self.symbols(text);
        let mut heap = BinaryHeap::with_capacity(symbols.len());
        // How a piece that is not to be used came about.
        let mut halves = AHashMap::new();
        for left in 0..symbols.len().saturating_sub(1) {
            self.offer(text, &symbols, left, left + 1, &mut heap, &mut halves);
        }
        while let Some(best) = heap.pop() {
            let (left, right) = (symbols[best.left], symbols[best.right]);
            let is_stale = left.start == left.end
                || right.start == right.end
                || left.end - left.start + right.end - right.start != best.length;
            if is_stale {
                continue;
            }
            symbols[best.left].end = right.end;
            symbols[best.left].next = right.next;
            symbols[best.right].start = right.end;
            if right.next != NONE {
                symbols[right.next].previous = best.left;
                self.offer(text, &symbols, best.left, right.next, &mut heap, &mut halves);
            }
            if left.previous != NONE {
                self.offer(text, &symbols, left.previous, best.left, &mut heap, &mut halves);
            }
        }
        for symbol in symbols.iter().filter(|symbol| symbol.start < symbol.end) {
            self.split_unused(text, symbol.start, symbol.end, &halves, &mut emit);
        }
    }

    fn symbols(&self, text: &str) -> Vec<Symbol> {
        let (mut symbols, mut start) = (Vec::with_capacity(text.len()), 0);
        while let Some(rest) = text.get(start..).filter(|rest| !rest.is_empty()) {
            let found = self.frozen.longest(rest.as_bytes()).map(|(length, _)| length);
            let length = found.or_else(|| rest.chars().next().map(char::len_utf8)).unwrap_or(rest.len());
            let place = symbols.len();
            symbols.push(Symbol {
                start,
                end: start + length,
                previous: place.wrapping_sub(1),
                next: place + 1,
                frozen: found.is_some(),
            });
            start += length;
        }
        if let Some(last) = symbols.last_mut() {
            last.next = NONE;
        }
        symbols
    }

    fn offer<'t>(
        &self,
        text: &'t str,
        symbols: &[Symbol],
        left: usize,
        right: usize,
        heap: &mut BinaryHeap<Candidate>,
        halves: &mut AHashMap<&'t [u8], usize>,
    ) {
        let (Some(first), Some(second)) = (symbols.get(left), symbols.get(right)) else { return };
        let length = second.end - first.start;
        if first.frozen || second.frozen || length > self.longest {
            return;
        }
        let Some(joined) = text.as_bytes().get(first.start..second.end) else { return };
        let Some(&id) = self.texts.get(joined) else { return };
        let score = self.scores.get(id as usize).copied().unwrap_or(0.0);
        heap.push(Candidate { score, left, right, length });
        if self.unused.get(id as usize).copied().unwrap_or(false) {
            halves.insert(joined, first.end - first.start);
        }
    }

    /// Takes pieces that are not to be used apart again.
    fn split_unused(
        &self,
        text: &str,
        start: usize,
        end: usize,
        halves: &AHashMap<&[u8], usize>,
        emit: &mut impl FnMut(usize, usize),
    ) {
        let mut open = vec![(start, end)];
        while let Some((start, end)) = open.pop() {
            let piece = text.as_bytes().get(start..end).unwrap_or_default();
            let is_unused = || {
                let id = self.texts.get(piece).map_or(usize::MAX, |id| *id as usize);
                self.unused.get(id).copied().unwrap_or(false)
            };
            match halves.get(piece).filter(|_| self.has_unused && is_unused()) {
                Some(middle) => open.extend([(start + middle, end), (start, start + middle)]),
                None => emit(start, end),
            }
        }
    }
}
