//! Pages on disk: bounded, shared by processes, and never wrong.
//!
//! A directory holds segments, files of up to some hundred megabytes to which one process appends pages. Every page
//! lies behind a header with its key, its length, the fingerprint of its layout and a check of its bytes, and is
//! delivered only if all of that fits; what does not fit is a miss. When room is needed, the segment that was used
//! longest ago goes as a whole: a page is written once and never moved, and what was used together was mostly stored
//! together.
//!
//! - What is promised: no load ever delivers other bytes than were stored under that key, whatever crashes, devices
//!   and other processes do. What was stored before a [`DiskTier::flush`] that succeeded survives a crash of the
//!   process and of the machine, until it is evicted.
//! - Not promised: that a page which was stored can be loaded. It is a cache.

mod buffer;
mod cache;
mod check;
mod chunk;
mod commit;
mod device;
mod error;
mod fetch;
mod flush;
mod index;
mod load;
mod log;
mod record;
mod refresh;
mod root;
mod rows;
mod segment;
mod stats;
mod store;
mod sync;

pub use cache::{CacheOptions, CacheStats, TieredCache};
pub use check::{Checksum, Compression};
pub use error::TierError;
pub use load::LoadOptions;
pub use record::{MAX_KEY_BYTES, MAX_PAGE_BYTES};
pub use stats::TierStats;

use crate::KvCacheError;
use chunk::Spare;
use commit::GroupCommit;
use device::Device;
use fetch::{Background, Fetcher};
use index::Index;
use infer_accel_tensor::simd::{self, Tier};
use infer_accel_tensor::threads;
use infer_accel_tensor::{TensorMut, TensorRef};
use log::Writer;
use record::{Key, Kind};
use refresh::KnownFiles;
use root::Root;
use rows::{Apart, SourceRows, TargetRows};
use stats::Counters;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use sync::{Mutex, lock};

/// Segments are an eighth of the capacity, and at most this long: what goes at once, and what a crash may leave open.
const MAX_DEFAULT_SEGMENT_BYTES: u64 = 256 << 20;
const SEGMENTS_OF_CAPACITY: u64 = 8;

/// How a tier is opened.
#[derive(Clone, Debug)]
pub struct TierOptions {
    /// Most bytes of all segments in the directory.
    pub capacity_bytes: u64,
    /// Bytes of every page.
    pub page_bytes: usize,
    /// What the pages hold: bytes that are equal for all who may read each other's pages, and for nobody else.
    pub fingerprint: Vec<u8>,
    /// Bytes of a segment; `None` for an eighth of the capacity, at most 256 MiB.
    pub segment_bytes: Option<u64>,
    /// Which writer of the directory this is; `None` for the first that is free.
    pub writer: Option<u32>,
    /// The check of each page.
    pub checksum: Checksum,
    /// How new pages are packed. Pages of either kind are read.
    pub compression: Compression,
    /// How long a load waits for the device; what is not there then is a miss. `None` waits for ever.
    pub deadline: Option<Duration>,
    /// How long a store waits for the device to take anything, and a flush until all is durable; then they are errors.
    /// Stores are then written by another thread, which costs a fifth of their speed. `None` waits for ever.
    pub write_deadline: Option<Duration>,
}

impl TierOptions {
    /// Options with the defaults: xxh3, no compression, five seconds for loads.
    pub fn new(capacity_bytes: u64, page_bytes: usize, fingerprint: impl Into<Vec<u8>>) -> Self {
        Self {
            capacity_bytes,
            page_bytes,
            fingerprint: fingerprint.into(),
            segment_bytes: None,
            writer: None,
            checksum: Checksum::default(),
            compression: Compression::default(),
            deadline: Some(Duration::from_secs(5)),
            write_deadline: None,
        }
    }

    fn checked(&self) -> Result<(Kind, Checked), TierError> {
        if self.page_bytes == 0 || self.page_bytes > MAX_PAGE_BYTES {
            return Err(TierError::PageBytes { got: self.page_bytes, max: MAX_PAGE_BYTES });
        }
        let page_bytes = self.page_bytes as u32;
        let smallest = log::smallest_segment(page_bytes);
        let segment_bytes = match self.segment_bytes {
            Some(got) if got < smallest => return Err(TierError::SegmentBytes { got, needed: smallest }),
            Some(got) => got,
            None => (self.capacity_bytes / SEGMENTS_OF_CAPACITY)
                .clamp(smallest, MAX_DEFAULT_SEGMENT_BYTES.max(smallest)),
        };
        let segment_bytes = segment_bytes - segment_bytes % record::BATCH_ALIGNMENT;
        let needed = segment_bytes.saturating_mul(2);
        if self.capacity_bytes < needed {
            let (capacity, segment) = (self.capacity_bytes, segment_bytes);
            return Err(TierError::Capacity { capacity, segment, needed });
        }
        if [self.deadline, self.write_deadline].contains(&Some(Duration::ZERO)) {
            return Err(TierError::Deadline { seconds: "0".to_owned() });
        }
        // Any bytes may come; all headers have room for 32.
        let fingerprint = *blake3::hash(&self.fingerprint).as_bytes();
        let kind = Kind { page_bytes, checksum: self.checksum, fingerprint };
        let checked = Checked {
            capacity_bytes: self.capacity_bytes,
            segment_bytes,
            compression: self.compression,
            deadline: self.deadline,
            write_deadline: self.write_deadline,
        };
        Ok((kind, checked))
    }
}

/// What is left of the options once they are checked.
#[derive(Debug)]
struct Checked {
    capacity_bytes: u64,
    segment_bytes: u64,
    compression: Compression,
    deadline: Option<Duration>,
    write_deadline: Option<Duration>,
}

/// What threads share. The order of locks: `spare`, `writer`, `known`, `index`.
#[derive(Debug)]
struct Inner {
    this: Weak<Inner>,
    root: Root,
    kind: Kind,
    options: Checked,
    index: Mutex<Index>,
    known: Mutex<KnownFiles>,
    refreshed: Mutex<Option<Instant>>,
    /// What a store fills; it is held while a store is under way, so that stores take turns.
    spare: Mutex<Spare>,
    writer: Mutex<Writer>,
    /// Where the writer was last: known without its lock, which is held while a device hangs.
    position: AtomicU64,
    commit: GroupCommit<TierError>,
    /// The highest sequence number that was seen.
    sequence: AtomicU64,
    fetcher: Option<Fetcher>,
    background: Option<Background>,
    counters: Counters,
    /// Long pages are read straight to the caller, and checked there.
    straight: bool,
}

impl Inner {
    fn next_sequence(&self) -> u64 {
        self.sequence.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn stats(&self) -> Result<TierStats, TierError> {
        let mut stats = TierStats { capacity_bytes: self.options.capacity_bytes, ..TierStats::default() };
        stats.bytes = self.total_bytes()?;
        let index = lock(&self.index);
        stats.pages = index.num_pages() as u64;
        stats.segments = index.segments().count() as u64;
        drop(index);
        self.counters.read(&mut stats);
        Ok(stats)
    }
}

/// A store of pages in a directory: see the module.
///
/// May be shared by threads. A tier that was opened before a fork refuses to work in the child.
#[derive(Debug)]
pub struct DiskTier {
    inner: Mutex<Option<Arc<Inner>>>,
    generation: u64,
}

impl DiskTier {
    /// Opens a directory, which is made if it is not there, and finds what it holds.
    ///
    /// Linear in the pages there: reads every page's header, no page.
    pub fn open(path: &Path, options: &TierOptions) -> Result<Self, KvCacheError> {
        // Measured on Zen 3, where it is slower, and on Zen 4: see `docs/design/kvcache.md`.
        let straight = simd::tier() >= Tier::Avx512;
        Self::open_on(path, options, device::system(), straight)
    }

    fn open_on(
        path: &Path,
        options: &TierOptions,
        device: Arc<dyn Device>,
        straight: bool,
    ) -> Result<Self, KvCacheError> {
        let generation = threads::generation();
        let (kind, checked) = options.checked()?;
        let root = Root::open(path, &kind, options.writer, device)?;
        let fetcher = checked.deadline.map(|_| Fetcher::new()).transpose()?;
        let background = checked.write_deadline.map(Background::new).transpose()?;
        let inner = Arc::new_cyclic(|this| Inner {
            this: Weak::clone(this),
            root,
            kind,
            options: checked,
            index: Mutex::new(Index::default()),
            known: Mutex::new(KnownFiles::default()),
            refreshed: Mutex::new(None),
            spare: Mutex::new(Spare::default()),
            writer: Mutex::new(Writer::default()),
            position: AtomicU64::new(0),
            commit: GroupCommit::new(),
            sequence: AtomicU64::new(0),
            fetcher,
            background,
            counters: Counters::default(),
            straight: straight && kind.checksum == Checksum::Xxh3,
        });
        inner.refresh()?;
        Ok(Self { inner: Mutex::new(Some(inner)), generation })
    }

    /// Stores the pages whose keys are not there yet; returns how many those were.
    ///
    /// `keys` holds one key of `key_bytes` after the other; `pages` is `[n, …]`, each page contiguous. A key stands for
    /// its page's content: one that is known is not written again. Pages may be read by loads when this returns; they
    /// are durable after a [`flush`](Self::flush). After an error, what was stored before is intact and those of these
    /// pages that could not be written are not there; with `storage.late`, some may come yet.
    pub fn store(&self, keys: &[u8], key_bytes: usize, pages: &TensorRef<'_>) -> Result<usize, KvCacheError> {
        let inner = self.inner()?;
        let keys = keys_of(keys, key_bytes)?;
        let rows = SourceRows::new(pages, keys.len(), inner.kind.page_bytes as usize)?;
        Ok(inner.store(&keys, &rows)?)
    }

    /// As [`store`](Self::store), of pages that lie apart, each contiguous.
    pub fn store_apart(
        &self,
        keys: &[u8],
        key_bytes: usize,
        pages: &[TensorRef<'_>],
    ) -> Result<usize, KvCacheError> {
        let inner = self.inner()?;
        let keys = keys_of(keys, key_bytes)?;
        let pages = Apart::new(pages, keys.len(), inner.kind.page_bytes as usize)?;
        Ok(inner.store(&keys, &SourceRows::apart(&pages))?)
    }

    /// Loads the pages that are there to the rows of `out`; returns which those are.
    ///
    /// A row whose page is not delivered is left as it was, or is zeros: pages of more than 128 KiB are checked when
    /// parts of them are there already, and blanked if they turn out to be wrong.
    pub fn load(
        &self,
        keys: &[u8],
        key_bytes: usize,
        out: &mut TensorMut<'_>,
        options: &LoadOptions<'_>,
    ) -> Result<Vec<bool>, KvCacheError> {
        let inner = self.inner()?;
        let keys = keys_of(keys, key_bytes)?;
        let rows = TargetRows::new(out, keys.len(), inner.kind.page_bytes as usize)?;
        inner.load(&keys, &rows, options)
    }

    /// As [`load`](Self::load), to pages that lie apart, each contiguous.
    pub fn load_apart(
        &self,
        keys: &[u8],
        key_bytes: usize,
        out: &mut [TensorMut<'_>],
        options: &LoadOptions<'_>,
    ) -> Result<Vec<bool>, KvCacheError> {
        let inner = self.inner()?;
        let keys = keys_of(keys, key_bytes)?;
        let pages = Apart::new_mut(out, keys.len(), inner.kind.page_bytes as usize)?;
        inner.load(&keys, &TargetRows::apart(&pages), options)
    }

    /// Which of the pages this process knows to be there. Asks no device.
    pub fn contains(&self, keys: &[u8], key_bytes: usize) -> Result<Vec<bool>, KvCacheError> {
        let inner = self.inner()?;
        let keys = keys_of(keys, key_bytes)?;
        let index = lock(&inner.index);
        Ok(keys.iter().map(|key| index.contains(key)).collect())
    }

    /// Makes all that was stored before this call durable. Threads that call at once share a sync.
    ///
    /// After an error the pages that may be lost are forgotten, so that a later flush that succeeds is not a lie.
    pub fn flush(&self) -> Result<(), KvCacheError> {
        Ok(self.inner()?.flush()?)
    }

    /// Looks for what other processes have stored and removed since. A load that misses does so by itself.
    pub fn refresh(&self) -> Result<(), KvCacheError> {
        Ok(self.inner()?.refresh()?)
    }

    /// What the tier holds and has done.
    pub fn stats(&self) -> Result<TierStats, KvCacheError> {
        Ok(self.inner()?.stats()?)
    }

    /// Which writer of the directory this is.
    pub fn writer(&self) -> Result<u32, KvCacheError> {
        Ok(self.inner()?.root.writer)
    }

    /// Bytes of a page.
    pub fn page_bytes(&self) -> Result<usize, KvCacheError> {
        Ok(self.inner()?.kind.page_bytes as usize)
    }

    /// Flushes, gives the writer's place back and forgets the index. A second call does nothing.
    pub fn close(&self) -> Result<(), KvCacheError> {
        self.refuse_fork()?;
        let Some(inner) = lock(&self.inner).take() else { return Ok(()) };
        let outcome = inner.flush();
        inner.finish();
        lock(&inner.index).clear();
        lock(&inner.known).clear();
        Ok(outcome?)
    }

    fn refuse_fork(&self) -> Result<(), TierError> {
        if self.generation == threads::generation() { Ok(()) } else { Err(TierError::Forked) }
    }

    /// The open tier. The fork is looked at first: in a child, the lock may be held by a thread that is not there.
    fn inner(&self) -> Result<Arc<Inner>, TierError> {
        self.refuse_fork()?;
        lock(&self.inner).clone().ok_or(TierError::Closed)
    }
}

impl Drop for DiskTier {
    fn drop(&mut self) {
        if self.refuse_fork().is_err() {
            // Another thread of the parent may have been changing this when the process was copied.
            if let Ok(inner) = self.inner.get_mut() {
                std::mem::forget(inner.take());
            }
            return;
        }
        if let Some(inner) = lock(&self.inner).take() {
            inner.finish();
        }
    }
}

fn keys_of(bytes: &[u8], key_bytes: usize) -> Result<Vec<Key>, TierError> {
    let refuse = TierError::KeyBytes { got: key_bytes, max: MAX_KEY_BYTES };
    if bytes.is_empty() {
        return Ok(Vec::new());
    }
    if key_bytes == 0 || !bytes.len().is_multiple_of(key_bytes) {
        return Err(refuse);
    }
    bytes.chunks_exact(key_bytes).map(Key::new).collect::<Option<_>>().ok_or(refuse)
}

#[cfg(test)]
mod tests;
