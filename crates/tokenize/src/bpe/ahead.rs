//! Many spans at a time, in stages: each stage asks for the memory of the next one, so that the waits overlap, and
//! what a stage cannot answer becomes a bit in a mask instead of a branch that nobody can predict.

use std::ops::Range;

use super::key::{Key, NO_KEY};
use super::token_table::TokenTable;
use super::{ABREAST, Bpe, FEW, Scratch};
use crate::cache::{Encoded, Tables};
use crate::kernels::{HELD, PADDING, PART, Work, append_runs, look, with_best_tier};

/// Parts of a batch.
const PARTS: usize = 5;
/// Spans of a batch: what a scanner finds at once.
pub(crate) const SPANS: usize = PARTS * PART;

/// The spans of a batch, and what is known of them. Where `IDS`, the ids themselves are wanted, otherwise their number.
pub(crate) struct Ahead {
    keys: [Key; PART],
    /// What the hot table has for each span of a part.
    values: [u32; PART],
    /// The id of each span that has a single one, unless it is one of the others.
    firsts: [u32; SPANS + PADDING],
    /// Spans that the hot table and the table of tokens did not know as a single id; a bit each.
    others: [u64; PARTS],
    /// The ids of the others, where ids are wanted; what lies beyond their number means nothing. Of a long span the first two say where its ids lie
    /// in `spilled`, or would if they were wanted.
    ids: [[u32; HELD]; SPANS],
    /// How many of them; 0 for a long span.
    counts: [u8; SPANS],
    spans: usize,
    /// Spans of more ids than an entry holds, or where they are only counted, than `counts` does; a bit each.
    long: [u64; PARTS],
    spilled: Vec<u32>,
    /// Spans that no table knows.
    pending: Vec<Pending>,
}

#[derive(Clone)]
struct Pending {
    place: usize,
    key: Key,
    bytes: Range<usize>,
}

impl Default for Ahead {
    fn default() -> Self {
        Self {
            keys: [Key::default(); PART],
            values: [0; PART],
            firsts: [0; SPANS + PADDING],
            others: [0; PARTS],
            ids: [[0; HELD]; SPANS],
            counts: [0; SPANS],
            spans: 0,
            long: [0; PARTS],
            spilled: Vec::new(),
            pending: Vec::new(),
        }
    }
}

/// What looks spans up: a worker's tables and memory, and the model.
pub(crate) struct Sources<'w> {
    pub(crate) tables: &'w mut Tables,
    pub(crate) scratch: &'w mut Scratch,
    pub(crate) bpe: &'w Bpe,
}

/// Consecutive parts of `bounds` with at most `spans` spans each; the last bound of one is the first of the next.
pub(crate) fn parts(bounds: &[usize], spans: usize) -> impl Iterator<Item = &[usize]> {
    let last = bounds.len().saturating_sub(1);
    (0..last).step_by(spans).filter_map(move |first| bounds.get(first..=last.min(first + spans)))
}

impl Ahead {
    /// Looks up the spans between `bounds`, of which there are at most [`SPANS`], and returns how many ids they have.
    #[inline]
    pub(crate) fn look_up<const IDS: bool>(
        &mut self,
        sources: &mut Sources<'_>,
        text: &[u8],
        bounds: &[usize],
    ) -> usize {
        let count = with_best_tier(LookUp::<IDS> { ahead: self, sources, text, bounds });
        if self.pending.is_empty() { count } else { count + self.settle::<IDS>(sources, text) }
    }

    #[inline(always)]
    fn look_up_part<const IDS: bool>(
        &mut self,
        sources: &mut Sources<'_>,
        text: &[u8],
        bounds: &[usize],
    ) -> usize {
        let Sources { tables, bpe, .. } = sources;
        let first = self.spans;
        self.spans = SPANS.min(first + bounds.len().saturating_sub(1));
        let looked = look::<IDS>(&tables.hot, text, bounds, &mut self.keys, &mut self.values);
        for place in places(looked.unknown & !looked.several) {
            bpe.tokens().prefetch(self.keys[place]);
        }
        let mut count = looked.count;
        let mut unknown = looked.several;
        for place in places(looked.unknown & !looked.several) {
            let key = self.keys[place];
            let value = bpe.tokens().get(key);
            if value != 0 && bpe.is_whole(value & Encoded::ID) {
                tables.hot.insert(key, value);
                self.values[place] = value;
                count += 1;
            } else {
                tables.prefetch(key);
                unknown |= 1 << place;
            }
        }
        self.take_held::<IDS>(first, unknown);
        for place in places(looked.several) {
            tables.prefetch(self.keys[place]);
        }
        for place in places(unknown) {
            let key = self.keys[place];
            let found =
                tables.find_short(key).and_then(|encoded| self.keep::<IDS>(tables, first + place, encoded));
            count += found.unwrap_or(0);
            if found.is_none()
                && let Some(&[start, end]) = bounds.get(place..place + 2)
            {
                self.pending.push(Pending { place: first + place, key, bytes: start..end });
            }
        }
        count
    }

    /// Takes what the values say of the part that begins at `first`, in which the `others` remain.
    #[inline(always)]
    fn take_held<const IDS: bool>(&mut self, first: usize, others: u64) {
        if IDS {
            if let Some(slot) = self.others.get_mut(first / PART) {
                *slot = others;
            }
            if let Some(firsts) = self.firsts.get_mut(first..first + PART) {
                for (first, value) in firsts.iter_mut().zip(&self.values) {
                    *first = value & Encoded::ID;
                }
            }
        } else if let Some(counts) = self.counts.get_mut(first..first + PART) {
            for (count, value) in counts.iter_mut().zip(&self.values) {
                *count = (value >> 24) as u8;
            }
        }
    }

    /// Keeps what an entry knows of a span, and returns how many ids that is; `None` if they are not there any more.
    #[inline(always)]
    fn keep<const IDS: bool>(&mut self, tables: &Tables, place: usize, encoded: Encoded) -> Option<usize> {
        let count = encoded.count();
        if IDS && count > HELD {
            self.keep_list::<IDS>(place, tables.list(encoded)?);
            return Some(count);
        }
        if IDS {
            *self.ids.get_mut(place)? = encoded.held();
        }
        *self.counts.get_mut(place)? = count as u8;
        Some(count)
    }

    /// Keeps the ids of a span.
    fn keep_list<const IDS: bool>(&mut self, place: usize, ids: &[u32]) {
        let (Some(slot), Some(count)) = (self.ids.get_mut(place), self.counts.get_mut(place)) else { return };
        if !IDS && let Ok(short) = u8::try_from(ids.len()) {
            *count = short;
            return;
        }
        if IDS && let Some(room) = slot.get_mut(..ids.len()) {
            room.copy_from_slice(ids);
            *count = ids.len() as u8;
            return;
        }
        let start = self.spilled.len();
        if IDS {
            self.spilled.extend_from_slice(ids);
        }
        *slot = [start as u32, (start + ids.len()) as u32, 0, 0];
        *count = 0;
        self.long[place / PART] |= 1 << (place % PART);
    }

    /// Encodes the spans that no table knows, and returns how many ids they have.
    #[cold]
    #[inline(never)]
    fn settle<const IDS: bool>(&mut self, sources: &mut Sources<'_>, text: &[u8]) -> usize {
        let pending = std::mem::take(&mut self.pending);
        let mut merging = [const { Pending { place: 0, key: NO_KEY, bytes: 0..0 } }; ABREAST];
        let mut waiting = 0;
        let mut count = 0;
        let mut alone = Vec::new();
        for span in &pending {
            let bytes = text.get(span.bytes.clone()).unwrap_or_default();
            let Sources { tables, scratch, bpe } = sources;
            // Another span of the batch may have been the same.
            let known = tables
                .find(bytes, span.key)
                .and_then(|encoded| self.keep::<IDS>(tables, span.place, encoded));
            if let Some(known) = known {
                count += known;
                continue;
            }
            // Of a short span the table of tokens has said so before.
            let merges =
                bytes.len() <= TokenTable::LONGEST || bytes.len() <= FEW && bpe.whole(bytes).is_none();
            if merges {
                if let Some(slot) = merging.get_mut(waiting) {
                    *slot = span.clone();
                    waiting += 1;
                }
                if waiting == ABREAST {
                    count += self.merge::<IDS>(sources, text, &merging);
                    waiting = 0;
                }
                continue;
            }
            alone.clear();
            bpe.encode_span(bytes, scratch, &mut alone);
            tables.remember(bytes, span.key, &alone);
            count += alone.len();
            self.keep_list::<IDS>(span.place, &alone);
        }
        count += self.merge::<IDS>(sources, text, merging.get(..waiting).unwrap_or_default());
        self.pending = pending;
        self.pending.clear();
        count
    }

    /// Merges spans of at most [`FEW`] bytes, of which there are at most [`ABREAST`].
    fn merge<const IDS: bool>(&mut self, sources: &mut Sources<'_>, text: &[u8], spans: &[Pending]) -> usize {
        let Sources { tables, scratch, bpe } = sources;
        let bytes_of = |span: &Pending| text.get(span.bytes.clone()).unwrap_or_default();
        let mut count = 0;
        bpe.encode_abreast(spans.iter().map(bytes_of), scratch, |index, ids| {
            let Some(span) = spans.get(index) else { return };
            tables.remember(bytes_of(span), span.key, ids);
            count += ids.len();
            self.keep_list::<IDS>(span.place, ids);
        });
        count
    }

    /// How many spans were looked up last.
    #[inline(always)]
    pub(crate) fn spans(&self) -> Range<usize> {
        0..self.spans
    }

    /// How many ids some of the spans have that were looked up last.
    #[inline]
    pub(crate) fn count_of(&self, spans: Range<usize>) -> usize {
        let counts = self.counts.get(spans.clone()).unwrap_or_default();
        let short: u32 = counts.iter().map(|count| u32::from(*count)).sum();
        let long = if self.has_long() { self.count_of_long(spans) } else { 0 };
        short as usize + long
    }

    #[cold]
    fn count_of_long(&self, spans: Range<usize>) -> usize {
        let counts = self.long_of(spans).map(|place| {
            let [start, end, ..] = self.ids.get(place).copied().unwrap_or_default();
            end.saturating_sub(start) as usize
        });
        counts.sum()
    }

    /// Appends the ids of some of the spans that were looked up last, with their ids.
    #[inline]
    pub(crate) fn append_ids(&self, spans: Range<usize>, out: &mut Vec<u32>) {
        if self.has_long() {
            return self.append_all(spans, out);
        }
        with_best_tier(AppendHeld { ahead: self, spans, out });
    }

    #[cold]
    fn append_all(&self, spans: Range<usize>, out: &mut Vec<u32>) {
        let mut first = spans.start;
        for place in self.long_of(spans.clone()) {
            self.append_held(first..place, out);
            let [start, end, ..] = self.ids.get(place).copied().unwrap_or_default();
            out.extend_from_slice(self.spilled.get(start as usize..end as usize).unwrap_or_default());
            first = place + 1;
        }
        self.append_held(first..spans.end, out);
    }

    #[inline(always)]
    fn has_long(&self) -> bool {
        self.long.iter().fold(0, |all, bits| all | bits) != 0
    }

    /// Those of the spans whose ids do not stand with the others.
    fn long_of(&self, spans: Range<usize>) -> impl Iterator<Item = usize> {
        let all = self.long.iter().enumerate();
        let all = all.flat_map(|(part, bits)| places(*bits).map(move |place| part * PART + place));
        all.filter(move |place| spans.contains(place))
    }

    /// Of spans that are not long.
    #[inline(always)]
    fn append_held(&self, spans: Range<usize>, out: &mut Vec<u32>) {
        let (mut part, end) = (spans.start / PART, spans.end);
        let from_start = u64::MAX << (spans.start % PART);
        let mut bits = self.others.get(part).map_or(0, |bits| bits & from_start);
        let others = std::iter::from_fn(|| {
            while bits == 0 {
                part += 1;
                bits = *self.others.get(part).filter(|_| part * PART < end)?;
            }
            let place = part * PART + bits.trailing_zeros() as usize;
            bits &= bits.wrapping_sub(1);
            (place < end).then_some(place)
        });
        append_runs(&self.firsts, &self.ids, &self.counts, others, spans, out);
    }
}

/// See [`Ahead::look_up`]; what no table knows is left pending.
struct LookUp<'l, 'w, const IDS: bool> {
    ahead: &'l mut Ahead,
    sources: &'l mut Sources<'w>,
    text: &'l [u8],
    bounds: &'l [usize],
}

impl<const IDS: bool> Work for LookUp<'_, '_, IDS> {
    type Outcome = usize;

    #[inline(always)]
    fn run(self) -> usize {
        let Self { ahead, sources, text, bounds } = self;
        ahead.spans = 0;
        ahead.long = [0; PARTS];
        ahead.spilled.clear();
        let mut count = 0;
        for part in parts(bounds, PART) {
            count += ahead.look_up_part::<IDS>(sources, text, part);
        }
        count
    }
}

/// See [`Ahead::append_ids`], where no span has more ids than an entry holds.
struct AppendHeld<'a> {
    ahead: &'a Ahead,
    spans: Range<usize>,
    out: &'a mut Vec<u32>,
}

impl Work for AppendHeld<'_> {
    type Outcome = ();

    #[inline(always)]
    fn run(self) {
        self.ahead.append_held(self.spans, self.out);
    }
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
