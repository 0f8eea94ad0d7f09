//! Many spans at a time, in stages: each stage asks for the memory of the next one, so that the waits overlap, and
//! what a stage cannot answer becomes a bit in a mask instead of a branch that nobody can predict.

use std::ops::Range;

use super::key::{Key, NO_KEY};
use super::token_table::TokenTable;
use super::{ABREAST, Bpe, FEW, Scratch};
use crate::cache::{Encoded, Tables};
use crate::kernels::{COUNT_SHIFT, HELD, PADDING, PART, Work, append_runs, look, with_best_tier};

/// Parts of a batch.
const PARTS: usize = 5;
/// Spans of a batch: what a scanner finds at once.
pub(crate) const SPANS: usize = PARTS * PART;

/// The spans of a batch, and what is known of them. Where `IDS`, the ids themselves are wanted, otherwise their number.
pub(crate) struct Ahead {
    keys: [Key; SPANS],
    /// The number of ids of each span in the highest byte, 0 of a long one, and the first id below.
    values: [u32; SPANS + PADDING],
    /// Spans that the hot table does not know; a bit each.
    unknown: [u64; PARTS],
    /// Spans that the hot table and the table of tokens do not know as a single id; a bit each.
    others: [u64; PARTS],
    /// The ids of the others, where ids are wanted; what lies beyond their number means nothing. Of a long span the first two say where its ids lie
    /// in `spilled`, or would if they were wanted.
    ids: [[u32; HELD]; SPANS],
    spans: usize,
    /// Spans of more ids than an entry holds, or where they are only counted, than `values` does; a bit each.
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
            keys: [Key::default(); SPANS],
            values: [0; SPANS + PADDING],
            unknown: [0; PARTS],
            others: [0; PARTS],
            ids: [[0; HELD]; SPANS],
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
        sources.tables.asked += bounds.len();
        let count = with_best_tier(LookUp::<IDS> { ahead: self, sources, text, bounds });
        if self.pending.is_empty() { count } else { count + self.settle::<IDS>(sources, text) }
    }

    /// Asks the hot table about all spans, and for the memory that says more of those that it does not know.
    #[inline(always)]
    fn ask_hot<const IDS: bool>(&mut self, sources: &Sources<'_>, text: &[u8], bounds: &[usize]) -> usize {
        let Sources { tables, bpe, .. } = sources;
        let (keys, values) = (self.keys.as_chunks_mut().0, self.values.as_chunks_mut().0);
        let asked = keys.iter_mut().zip(values).zip(self.unknown.iter_mut().zip(&mut self.others));
        let mut count = 0;
        for (bounds, ((keys, values), (unknown, several))) in parts(bounds, PART).zip(asked) {
            let looked = look::<IDS>(&tables.hot, text, bounds, keys, values);
            count += looked.count;
            (*unknown, *several) = (looked.unknown & !looked.several, looked.several);
            for place in places(*unknown) {
                bpe.tokens().prefetch(keys[place]);
            }
            for place in places(*several) {
                tables.prefetch(keys[place]);
            }
        }
        count
    }

    /// Asks the table of tokens about what the hot table does not know, and for the memory that says more of the others.
    #[inline(always)]
    fn ask_tokens(&mut self, sources: &mut Sources<'_>) -> usize {
        let Sources { tables, bpe, .. } = sources;
        let (keys, values) = (self.keys.as_chunks::<PART>().0, self.values.as_chunks_mut::<PART>().0);
        let asked = keys.iter().zip(values).zip(self.unknown.iter().zip(&mut self.others));
        let mut count = 0;
        for ((keys, values), (unknown, others)) in asked {
            for place in places(*unknown) {
                let key = keys[place];
                let value = bpe.tokens().get(key);
                if value != 0 && bpe.is_whole(value & Encoded::ID) {
                    tables.hot.insert(key, value);
                    values[place] = value;
                    count += 1;
                } else {
                    tables.prefetch(key);
                    *others |= 1 << place;
                }
            }
        }
        count
    }

    /// Asks the larger table about the others; what it does not know either is left pending.
    #[inline(always)]
    fn ask_larger<const IDS: bool>(
        &mut self,
        sources: &mut Sources<'_>,
        text: &[u8],
        bounds: &[usize],
    ) -> usize {
        let mut count = 0;
        for part in 0..PARTS {
            for place in places(self.others[part]) {
                let place = part * PART + place;
                let Some(&key) = self.keys.get(place) else { continue };
                let found = sources.tables.find_short(key);
                let kept = found.and_then(|encoded| self.keep::<IDS>(sources.tables, place, encoded));
                count += kept.unwrap_or(0);
                if kept.is_none()
                    && let Some(&[start, end]) = bounds.get(place..place + 2)
                {
                    if key == NO_KEY {
                        sources.tables.prefetch_long(text.get(start..end).unwrap_or_default());
                    }
                    self.pending.push(Pending { place, key, bytes: start..end });
                }
            }
        }
        count
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
        *self.values.get_mut(place)? = encoded.value();
        Some(count)
    }

    /// Keeps the ids of a span.
    fn keep_list<const IDS: bool>(&mut self, place: usize, ids: &[u32]) {
        let (Some(slot), Some(value)) = (self.ids.get_mut(place), self.values.get_mut(place)) else { return };
        if !IDS && let Ok(short) = u8::try_from(ids.len()) {
            *value = value_of(short);
            return;
        }
        if IDS && let Some(room) = slot.get_mut(..ids.len()) {
            room.copy_from_slice(ids);
            *value = value_of(ids.len() as u8);
            return;
        }
        let start = self.spilled.len();
        if IDS {
            self.spilled.extend_from_slice(ids);
        }
        *slot = [start as u32, (start + ids.len()) as u32, 0, 0];
        *value = 0;
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
        let values = self.values.get(spans.clone()).unwrap_or_default();
        let short: u32 = values.iter().map(|value| value >> COUNT_SHIFT).sum();
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
        append_runs(&self.values, &self.ids, others, spans, out);
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
        ahead.spans = SPANS.min(bounds.len().saturating_sub(1));
        (ahead.unknown, ahead.others, ahead.long) = ([0; PARTS], [0; PARTS], [0; PARTS]);
        ahead.spilled.clear();
        let hot = ahead.ask_hot::<IDS>(sources, text, bounds);
        let tokens = ahead.ask_tokens(sources);
        hot + tokens + ahead.ask_larger::<IDS>(sources, text, bounds)
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

/// What `values` has for a span of so many ids that stand elsewhere, or are not wanted.
fn value_of(count: u8) -> u32 {
    u32::from(count) << COUNT_SHIFT
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
