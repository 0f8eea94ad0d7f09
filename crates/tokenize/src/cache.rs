//! What spans became before: bounded, and never waited for.
//!
//! Two levels: a table of 16-byte entries that stays in the second-level cache of the processor and serves most
//! spans of ordinary text, then a larger one that holds up to four ids in place. A worker owns its tables while a
//! call runs; workers wait in a pool with a few places. A call that finds no free place works with small tables of
//! its own, and so does one that would make the tables of the whole process exceed [`PROCESS_LIMIT`].

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, TryLockError};

use crate::bpe::key::{Key, NO_KEY, mix};
use crate::bpe::{Bpe, Scratch};
use crate::hot::HotTable;
use crate::kernels::prefetch;

/// Bytes of cache tables that all encoders of the process may keep.
const PROCESS_LIMIT: usize = 16 << 20;
/// Workers that one encoder keeps.
const PLACES: usize = 8;
/// Entries of 16 bytes in a worker's hot table: 256 KiB, half of a usual second-level cache.
const HOT_ENTRIES: usize = 1 << 14;
/// Buckets of 64 bytes in a worker's table for short spans: 2 MiB.
const BUCKETS: usize = 1 << 15;
/// Entries of 128 bytes for longer spans: 128 KiB.
const LONG_ENTRIES: usize = 1 << 10;
/// The small tables are smaller by this power of two.
const SMALLER: u32 = 5;
/// The longest span that is kept.
const LONG: usize = 104;
/// Ids that an entry holds in place.
pub(crate) const HELD: usize = 4;

/// What a span became: its number of ids, and the ids where there are at most [`HELD`].
#[derive(Clone, Copy, Default)]
pub(crate) struct Encoded {
    /// The highest byte of the first one is the count, saturated.
    packed: [u32; HELD],
}

impl Encoded {
    /// The bits of an id in the first number of an entry.
    pub(crate) const ID: u32 = 0x00ff_ffff;

    pub(crate) fn new(ids: &[u32]) -> Option<Self> {
        let count = u8::try_from(ids.len()).ok()?;
        let mut packed = [0; HELD];
        if ids.len() <= HELD {
            packed[..ids.len()].copy_from_slice(ids);
        }
        packed[0] |= u32::from(count) << 24;
        Some(Self { packed })
    }

    #[inline(always)]
    pub(crate) fn count(self) -> usize {
        (self.packed[0] >> 24) as usize
    }

    /// The ids, then zeros, and how many ids they are; `None` if they are not held.
    #[inline(always)]
    pub(crate) fn ids(self) -> Option<([u32; HELD], usize)> {
        let [first, second, third, fourth] = self.packed;
        let count = self.count();
        (count <= HELD).then_some(([first & Self::ID, second, third, fourth], count))
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
struct Bucket {
    entries: [Entry; 2],
}

#[derive(Clone, Copy)]
#[repr(align(128))]
struct LongEntry {
    bytes: [u8; LONG],
    length: u32,
    encoded: Encoded,
}

/// Tables and memory of one call at a time.
pub(crate) struct Worker {
    pub(crate) hot: HotTable,
    short: Box<[Bucket]>,
    long: Box<[LongEntry]>,
    scratch: Scratch,
    ids: Vec<u32>,
    reserved: usize,
}

impl Worker {
    fn with_size(smaller: u32, reserved: usize) -> Self {
        let buckets = BUCKETS >> smaller;
        Self {
            hot: HotTable::new(HOT_ENTRIES >> smaller),
            short: vec![Bucket::default(); buckets].into_boxed_slice(),
            long: vec![
                LongEntry { bytes: [0; LONG], length: 0, encoded: Encoded::default() };
                LONG_ENTRIES >> smaller
            ]
            .into_boxed_slice(),
            scratch: Scratch::default(),
            ids: Vec::new(),
            reserved,
        }
    }

    /// Asks for the memory where [`Self::find`] will look.
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
    pub(crate) fn find(&mut self, key: Key) -> Option<Encoded> {
        // The choice is an index rather than a branch: which of the two it is cannot be predicted.
        let entries = &self.short.get(self.place(key))?.entries;
        let entry = &entries[usize::from(entries[0].key != key)];
        if entry.key != key {
            return None;
        }
        self.hot.insert(key, entry.encoded.packed[0]);
        Some(entry.encoded)
    }

    /// Encodes a span that [`Self::find`] did not find, or whose ids it did not hold, and remembers what it became.
    #[cold]
    #[inline(never)]
    pub(crate) fn encode(&mut self, bpe: &Bpe, span: &[u8], key: Key) -> &[u32] {
        if key == NO_KEY {
            return self.encode_long(bpe, span);
        }
        self.encode_unknown(bpe, span);
        let place = self.place(key);
        if let (Some(encoded), Some(bucket)) = (Encoded::new(&self.ids), self.short.get_mut(place)) {
            let [newer, older] = bucket.entries;
            let kept = if newer.key == key { older } else { newer };
            bucket.entries = [Entry { key, encoded }, kept];
        }
        &self.ids
    }

    fn encode_long(&mut self, bpe: &Bpe, span: &[u8]) -> &[u32] {
        if span.len() > LONG {
            self.encode_unknown(bpe, span);
            return &self.ids;
        }
        let mut bytes = [0; LONG];
        bytes[..span.len()].copy_from_slice(span);
        let place = long_hash(&bytes, span.len()) as usize & (self.long.len() - 1);
        if let Some(entry) = self.long.get(place)
            && entry.length as usize == span.len()
            && entry.bytes == bytes
            && let Some((ids, count)) = entry.encoded.ids()
        {
            self.ids.clear();
            self.ids.extend_from_slice(ids.get(..count).unwrap_or(&ids));
            return &self.ids;
        }
        self.encode_unknown(bpe, span);
        if let (Some(encoded), Some(entry)) = (Encoded::new(&self.ids), self.long.get_mut(place)) {
            *entry = LongEntry { bytes, length: span.len() as u32, encoded };
        }
        &self.ids
    }

    fn encode_unknown(&mut self, bpe: &Bpe, span: &[u8]) {
        self.ids.clear();
        let ids = &mut self.ids;
        bpe.encode_span(span, &mut self.scratch, |id| ids.push(id));
    }
}

fn long_hash(bytes: &[u8; LONG], length: usize) -> u64 {
    let parts =
        bytes.as_chunks::<8>().0.iter().take(length.div_ceil(8)).map(|part| u64::from_le_bytes(*part));
    parts.fold(length as u64, mix) >> 32
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
    const BYTES: usize =
        HOT_ENTRIES * 16 + BUCKETS * size_of::<Bucket>() + LONG_ENTRIES * size_of::<LongEntry>();
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
