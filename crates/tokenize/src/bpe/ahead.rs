//! Some spans at a time, in stages: each stage asks for the memory of the next one, so that the waits overlap, and
//! what a stage cannot answer becomes a bit in a mask instead of a branch that nobody can predict.

use std::ops::Range;

use super::Bpe;
use super::key::Key;
use crate::cache::{Encoded, HELD, Worker};
use crate::kernels::{PART, look};

/// The spans of a part, and what is known of them. Where `IDS`, the ids themselves are wanted, otherwise their number.
pub(crate) struct Ahead<const IDS: bool> {
    keys: [Key; PART],
    /// What the hot table has for each span.
    values: [u32; PART],
    /// The ids of each span; what lies beyond their number means nothing.
    ids: [[u32; HELD]; PART],
    /// How many of them; 0 where they are in `long`.
    counts: [u8; PART],
    spans: usize,
    /// Spans of more ids than an entry holds: place, and where in `spilled`.
    long: Vec<(usize, Range<usize>)>,
    spilled: Vec<u32>,
}

impl<const IDS: bool> Ahead<IDS> {
    pub(crate) fn new() -> Self {
        Self {
            keys: [Key::default(); PART],
            values: [0; PART],
            ids: [[0; HELD]; PART],
            counts: [0; PART],
            spans: 0,
            long: Vec::new(),
            spilled: Vec::new(),
        }
    }

    /// Calls `work` with the bounds of so many spans as fit at a time, in order; each part begins with the last bound
    /// of the one before.
    #[inline(always)]
    pub(crate) fn for_each_part(&mut self, bounds: &[usize], mut work: impl FnMut(&mut Self, &[usize])) {
        let last = bounds.len().saturating_sub(1);
        let mut first = 0;
        while first < last {
            let end = last.min(first + PART);
            work(self, bounds.get(first..=end).unwrap_or_default());
            first = end;
        }
    }

    /// Looks up the spans between `bounds`, of which there are at most [`PART`], and returns how many ids they have.
    #[inline(always)]
    pub(crate) fn look_up(&mut self, worker: &mut Worker, bpe: &Bpe, text: &[u8], bounds: &[usize]) -> usize {
        self.spans = bounds.len().saturating_sub(1).min(PART);
        let looked = look::<IDS>(&worker.hot, text, bounds, &mut self.keys, &mut self.values);
        if IDS {
            self.counts = [1; PART];
            for (ids, value) in self.ids.iter_mut().zip(&self.values) {
                ids[0] = value & Encoded::ID;
            }
        }
        let mut count = looked.count;
        for place in places(looked.unknown) {
            worker.prefetch(self.keys[place]);
        }
        let mut missing = 0_u64;
        for place in places(looked.unknown) {
            let found = worker.find(self.keys[place]).and_then(|encoded| self.keep(place, encoded));
            missing |= u64::from(found.is_none()) << place;
            count += found.unwrap_or(0);
        }
        for place in places(missing) {
            bpe.prefetch(self.keys[place]);
        }
        for place in places(missing) {
            let span = bounds.get(place..place + 2).and_then(|pair| text.get(pair[0]..pair[1]));
            count += self.encode(worker, bpe, place, span.unwrap_or_default());
        }
        count
    }

    /// Keeps what an entry knows of a span, and returns how many ids that is; `None` if it does not hold them all.
    #[inline(always)]
    fn keep(&mut self, place: usize, encoded: Encoded) -> Option<usize> {
        if !IDS {
            return Some(encoded.count());
        }
        let (ids, count) = encoded.ids()?;
        self.ids[place] = ids;
        self.counts[place] = count as u8;
        Some(count)
    }

    /// Encodes a span that no table knows, or knows without its ids, and returns how many ids it has.
    #[inline(always)]
    fn encode(&mut self, worker: &mut Worker, bpe: &Bpe, place: usize, span: &[u8]) -> usize {
        let ids = worker.encode(bpe, span, self.keys[place]);
        if IDS {
            if let Some(room) = self.ids[place].get_mut(..ids.len()) {
                room.copy_from_slice(ids);
                self.counts[place] = ids.len() as u8;
            } else {
                let start = self.spilled.len();
                self.spilled.extend_from_slice(ids);
                self.long.push((place, start..self.spilled.len()));
                self.counts[place] = 0;
            }
        }
        ids.len()
    }
}

impl Ahead<true> {
    /// Appends the ids of the part that was looked up last.
    #[inline(always)]
    pub(crate) fn append_ids(&mut self, out: &mut Vec<u32>) {
        let mut first = 0;
        for (place, range) in self.long.drain(..) {
            append_held(&self.ids, &self.counts, first..place, out);
            out.extend_from_slice(self.spilled.get(range).unwrap_or_default());
            first = place + 1;
        }
        self.spilled.clear();
        append_held(&self.ids, &self.counts, first..self.spans, out);
    }
}

/// Appends the ids of some spans. All that an entry holds is copied whatever the count, and overwritten by the next.
#[inline(always)]
fn append_held(ids: &[[u32; HELD]; PART], counts: &[u8; PART], spans: Range<usize>, out: &mut Vec<u32>) {
    let mut buffer = [0; HELD * PART];
    let mut filled = 0;
    let held = ids.get(spans.clone()).unwrap_or_default().iter().zip(counts.get(spans).unwrap_or_default());
    for (ids, count) in held {
        if let Some(room) = buffer.get_mut(filled..filled + HELD) {
            room.copy_from_slice(ids);
        }
        filled += usize::from(*count);
    }
    out.extend_from_slice(buffer.get(..filled).unwrap_or(&buffer));
}

/// The places of the bits that are set, in order.
#[inline(always)]
fn places(mut bits: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let place = bits.trailing_zeros() as usize;
        bits &= bits.wrapping_sub(1);
        (place < PART).then_some(place)
    })
}
