//! What spans became before: bounded, and never waited for.
//!
//! Two levels: a table of 16-byte entries that stays in the second-level cache of the processor and serves most
//! spans of ordinary text, then a larger one that holds up to four ids in place and knows where longer lists lie. Spans
//! that are tokens need no entry there: the vocabulary itself answers for them. A worker owns its tables while a
//! call runs; workers wait in a pool with a few places. A call that finds no free place works with small tables of
//! its own, and so does one that would make the tables of the whole process exceed [`PROCESS_LIMIT`].

use std::cell::Cell;
use std::hint::select_unpredictable;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, TryLockError};

use crate::bpe::ahead::Ahead;
use crate::bpe::key::{Key, SHORT};
use crate::bpe::together::Gathered;
use crate::bpe::{Bpe, Scratch};
use crate::hot::HotTable;
use crate::kernels::{HELD, Table, prefetch};
use crate::long_table::LongTable;
use crate::pretokenize::Starts;
use crate::side::Side;

/// Bytes of cache tables that all encoders of the process may keep.
const PROCESS_LIMIT: usize = 18 << 20;
/// Workers that one encoder keeps.
const PLACES: usize = 8;
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

/// Tables and memory of one call at a time.
pub(crate) struct Worker {
    pub(crate) tables: Tables,
    pub(crate) scratch: Scratch,
    pub(crate) ahead: Ahead,
    pub(crate) starts: Starts,
    pub(crate) gathered: Gathered,
    reserved: usize,
}

/// What spans became.
pub(crate) struct Tables {
    pub(crate) hot: HotTable,
    short: Table<Bucket>,
    middling: Middling,
    long: Long,
    side: Side,
}

impl Worker {
    fn with_size(smaller: u32, reserved: usize) -> Self {
        let tables = Tables {
            hot: HotTable::new(HOT_ENTRIES >> smaller),
            short: Table::zeroed(BUCKETS >> smaller),
            middling: Middling::new(MIDDLING_ENTRIES >> smaller),
            long: Long::new(LONG_ENTRIES >> smaller),
            side: Side::new(SIDE_IDS >> smaller),
        };
        Self {
            tables,
            scratch: Scratch::default(),
            ahead: Ahead::default(),
            starts: Starts::new(),
            gathered: Gathered::default(),
            reserved,
        }
    }

    /// Appends the ids of one span, which has this key.
    pub(crate) fn encode_into(&mut self, bpe: &Bpe, span: &[u8], key: Key, ids: &mut Vec<u32>) {
        let start = ids.len();
        if let Some(id) = bpe.whole(span) {
            return ids.push(id);
        }
        if let Some(encoded) = self.tables.find(span, key) {
            if let Some(list) = self.tables.list(encoded) {
                return ids.extend_from_slice(list);
            }
            if let Some(held) = encoded.held().get(..encoded.count()) {
                return ids.extend_from_slice(held);
            }
        }
        bpe.encode_span(span, &mut self.scratch, ids);
        self.tables.remember(span, key, &ids[start..]);
    }
}

impl Tables {
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

/// Bytes of the tables that pools of this process hold.
static RESERVED: AtomicUsize = AtomicUsize::new(0);

impl Drop for Worker {
    fn drop(&mut self) {
        RESERVED.fetch_sub(self.reserved, Ordering::Relaxed);
    }
}

/// The workers of one encoder.
pub(crate) struct Pool {
    places: [Mutex<Option<Worker>>; PLACES],
}

impl Pool {
    pub(crate) fn new() -> Self {
        Self { places: std::array::from_fn(|_| Mutex::new(None)) }
    }

    /// Calls `f` with a worker: the one that this thread had last time where it is free. Never waits.
    pub(crate) fn with<R>(&self, f: impl FnOnce(&mut Worker) -> R) -> R {
        let first = thread_number();
        for offset in 0..PLACES {
            let place = &self.places[(first + offset) % PLACES];
            let mut guard = match place.try_lock() {
                Ok(guard) => guard,
                Err(TryLockError::WouldBlock) => continue,
                Err(TryLockError::Poisoned(poisoned)) => {
                    // A panic came out of a call: what it left behind is not used again.
                    place.clear_poison();
                    let mut guard = poisoned.into_inner();
                    *guard = None;
                    guard
                }
            };
            return f(guard.get_or_insert_with(new_worker));
        }
        f(&mut Worker::with_size(SMALLER, 0))
    }
}

/// A worker with large tables while the process has room for them.
fn new_worker() -> Worker {
    const BYTES: usize = HOT_ENTRIES * 16
        + BUCKETS * size_of::<Bucket>()
        + MIDDLING_ENTRIES * Middling::ENTRY
        + LONG_ENTRIES * Long::ENTRY
        + SIDE_IDS * size_of::<u32>()
        + size_of::<Worker>();
    let reserved = RESERVED.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |bytes| {
        Some(bytes + BYTES).filter(|bytes| *bytes <= PROCESS_LIMIT)
    });
    if reserved.is_ok() { Worker::with_size(0, BYTES) } else { Worker::with_size(SMALLER, 0) }
}

/// A number for each thread, in order of first use, so that threads begin at different places of a pool.
fn thread_number() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static NUMBER: Cell<usize> = Cell::new(NEXT.fetch_add(1, Ordering::Relaxed));
    }
    NUMBER.with(Cell::get)
}
