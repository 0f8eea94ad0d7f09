//! What spans became before: tables of bounded size.
//!
//! Two levels: a table of 16-byte entries that stays in the second-level cache of the processor and serves most
//! spans of ordinary text, then a larger one that holds up to four ids in place and knows where longer lists lie. Spans
//! that are tokens need no entry there: the vocabulary itself answers for them. Who owns them when is said in
//! [`crate::workers`].

use std::hint::select_unpredictable;

use crate::bpe::key::{Key, SHORT};
use crate::hot::HotTable;
use crate::kernels::{HELD, Table, prefetch};
use crate::long_table::LongTable;
use crate::side::Side;

/// Entries of 16 bytes in a worker's hot table: 256 KiB, half of a usual second-level cache.
const HOT_ENTRIES: usize = 1 << 14;
/// Buckets of 64 bytes in a worker's table for short spans: 2 MiB.
const BUCKETS: usize = 1 << 15;
/// Longer spans of up to 44 bytes, which are words in many alphabets: 256 KiB.
type Middling = LongTable<44>;
const MIDDLING_ENTRIES: usize = 1 << 12;
/// Still longer ones of up to 108 bytes: 64 KiB.
type Long = LongTable<108>;
const LONG_ENTRIES: usize = 1 << 9;
/// The longest span of a [`Middling`].
const MIDDLING: usize = 44;
/// Ids of lists that are too long for an entry: 128 KiB.
const SIDE_IDS: usize = 1 << 15;
/// The small tables are smaller by this power of two.
const SMALLER: u32 = 5;

/// What a span became: its number of ids, and the ids where there are at most [`HELD`], otherwise where they lie.
#[derive(Clone, Copy, Default)]
pub(crate) struct Encoded {
    /// The highest byte of the first one is the count.
    packed: [u32; HELD],
}

impl Encoded {
    /// The bits of an id in the first number of an entry.
    pub(crate) const ID: u32 = 0x00ff_ffff;

    /// `None` for more ids than can be counted.
    fn new(ids: &[u32], side: &mut Side) -> Option<Self> {
        let count = u8::try_from(ids.len()).ok()?;
        let mut packed = [0; HELD];
        if let Some(held) = packed.get_mut(..ids.len()) {
            held.copy_from_slice(ids);
        } else {
            let place = side.keep(ids)?;
            packed = [0, place as u32, (place >> 32) as u32, 0];
        }
        packed[0] |= u32::from(count) << 24;
        Some(Self { packed })
    }

    #[inline(always)]
    pub(crate) fn count(self) -> usize {
        (self.packed[0] >> 24) as usize
    }

    /// The number of ids in the highest byte; below, where they are at most [`HELD`], the first one.
    #[inline(always)]
    pub(crate) fn value(self) -> u32 {
        self.packed[0]
    }

    /// The ids, then zeros; of more than [`HELD`] ids something else.
    #[inline(always)]
    pub(crate) fn held(self) -> [u32; HELD] {
        let [first, second, third, fourth] = self.packed;
        [first & Self::ID, second, third, fourth]
    }

    /// Where more than [`HELD`] ids lie.
    fn place(self) -> u64 {
        u64::from(self.packed[1]) | u64::from(self.packed[2]) << 32
    }
}

#[derive(Clone, Copy, Default)]
struct Entry {
    key: Key,
    encoded: Encoded,
}

/// One cache line: two entries whose keys have the same hash, the newer one first.
#[derive(Clone, Copy, Default)]
#[repr(align(64))]
pub(crate) struct Bucket {
    entries: [Entry; 2],
}

/// What spans became.
pub(crate) struct Tables {
    pub(crate) hot: HotTable,
    short: Table<Bucket>,
    middling: Middling,
    long: Long,
    side: Side,
    /// Spans that were looked up here since somebody set this to 0.
    pub(crate) asked: usize,
}

impl Tables {
    /// Bytes of large tables.
    pub(crate) const BYTES: usize = HOT_ENTRIES * 16
        + BUCKETS * size_of::<Bucket>()
        + MIDDLING_ENTRIES * Middling::ENTRY
        + LONG_ENTRIES * Long::ENTRY
        + SIDE_IDS * size_of::<u32>();

    pub(crate) fn large() -> Self {
        Self::with_size(0)
    }

    pub(crate) fn small() -> Self {
        Self::with_size(SMALLER)
    }

    fn with_size(smaller: u32) -> Self {
        Self {
            hot: HotTable::new(HOT_ENTRIES >> smaller),
            short: Table::zeroed(BUCKETS >> smaller),
            middling: Middling::new(MIDDLING_ENTRIES >> smaller),
            long: Long::new(LONG_ENTRIES >> smaller),
            side: Side::new(SIDE_IDS >> smaller),
            asked: 0,
        }
    }

    /// Asks for the memory where [`Self::find_short`] will look.
    #[inline(always)]
    pub(crate) fn prefetch(&self, key: Key) {
        if let Some(bucket) = self.short.get(self.place(key)) {
            prefetch(bucket);
        }
    }

    #[inline(always)]
    fn place(&self, key: Key) -> usize {
        key.hash() & (self.short.len() - 1)
    }

    /// What the larger table knows of the span with this key; the hot table knows it from then on.
    #[inline(always)]
    pub(crate) fn find_short(&mut self, key: Key) -> Option<Encoded> {
        // Which of the two it is cannot be predicted.
        let [first, second] = &self.short.get(self.place(key))?.entries;
        let entry = select_unpredictable(first.key == key, first, second);
        if entry.key != key {
            return None;
        }
        self.hot.insert(key, entry.encoded.value());
        Some(entry.encoded)
    }

    /// What is known of a span, long or short, which has this key.
    pub(crate) fn find(&mut self, span: &[u8], key: Key) -> Option<Encoded> {
        if span.len() <= SHORT {
            return self.find_short(key);
        }
        if span.len() <= MIDDLING { self.middling.find(span) } else { self.long.find(span) }
    }

    /// Asks for the memory where [`Self::find`] will look for a span that is longer than [`SHORT`].
    #[inline]
    pub(crate) fn prefetch_long(&self, span: &[u8]) {
        if span.len() <= MIDDLING {
            self.middling.prefetch(span);
        } else {
            self.long.prefetch(span);
        }
    }

    /// The ids where they are more than an entry holds; `None` also if they had to give way to others.
    #[inline(always)]
    pub(crate) fn list(&self, encoded: Encoded) -> Option<&[u32]> {
        if encoded.count() <= HELD {
            return None;
        }
        self.side.get(encoded.place(), encoded.count())
    }

    /// Remembers what a span, which has this key, became.
    pub(crate) fn remember(&mut self, span: &[u8], key: Key, ids: &[u32]) {
        let Some(encoded) = Encoded::new(ids, &mut self.side) else { return };
        if span.len() > MIDDLING {
            return self.long.remember(span, encoded);
        }
        if span.len() > SHORT {
            return self.middling.remember(span, encoded);
        }
        let place = self.place(key);
        if let Some(bucket) = self.short.get_mut(place) {
            let [newer, older] = bucket.entries;
            let kept = if newer.key == key { older } else { newer };
            bucket.entries = [Entry { key, encoded }, kept];
        }
    }
}
