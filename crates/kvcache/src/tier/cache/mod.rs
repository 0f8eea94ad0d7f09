//! Pages in host memory in front of pages on disk.
//!
//! What is stored lies in host memory at once and is written to disk by a thread of the cache; what is prefetched is
//! brought from disk by another. Both are fed by queues of bounded length: who stores faster than the disk writes
//! waits, and who asks for more prefetches than there are places gets fewer.

mod moving;
mod options;
mod queue;
mod slots;
#[cfg(test)]
mod tests;

pub use options::{CacheOptions, CacheStats};

use super::record::Key;
use super::rows::{HostRows, SourceRows, TargetRows};
use super::sync::{Mutex, lock};
use super::{DiskTier, Inner, LoadOptions, TierError, keys_of, sync};
use crate::KvCacheError;
use crate::host::HostPool;
use infer_accel_tensor::{TensorMut, TensorRef, threads};
use options::Counters;
use queue::Queue;
use slots::Slots;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// As many host pages can be named.
const MAX_HOST_PAGES: usize = 1 << 30;

#[derive(Debug)]
struct Shared {
    host: HostRows,
    disk: Arc<Inner>,
    slots: Mutex<Slots>,
    writes: Queue<u32>,
    prefetches: Queue<Key>,
    /// The last write that failed, for the next flush.
    failure: Mutex<Option<TierError>>,
    store_deadline: Option<Duration>,
    host_capacity: u64,
    counters: Counters,
}

/// What a cache is until it is closed.
#[derive(Debug)]
struct Open {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// Host memory in front of a [`DiskTier`]: see the module.
///
/// May be shared by threads. A cache that was made before a fork refuses to work in the child.
#[derive(Debug)]
pub struct TieredCache {
    open: Mutex<Option<Open>>,
    generation: u64,
}

impl TieredCache {
    /// Makes a cache in front of `disk`, which stays usable by itself and is not closed with the cache.
    pub fn new(disk: &DiskTier, options: &CacheOptions) -> Result<Self, KvCacheError> {
        let count = |what, got: usize, min: usize, max: usize| {
            if (min..=max).contains(&got) { Ok(got) } else { Err(TierError::Count { what, got, min, max }) }
        };
        let disk = disk.inner()?;
        let host_pages = count("host_pages", options.host_pages, 2, MAX_HOST_PAGES)?;
        let queued_writes = options.queued_writes.unwrap_or(host_pages / 2);
        let queued_writes = count("queued_writes", queued_writes, 1, host_pages / 2)?;
        let prefetches = count("queued_prefetches", options.queued_prefetches, 1, MAX_HOST_PAGES)?;
        let pool = HostPool::new(host_pages, disk.kind.page_bytes as usize, false)?;
        let shared = Arc::new(Shared {
            host: HostRows::new(pool),
            disk,
            slots: Mutex::new(Slots::new(host_pages)),
            writes: Queue::new(queued_writes),
            prefetches: Queue::new(prefetches),
            failure: Mutex::new(None),
            store_deadline: options.store_deadline,
            host_capacity: host_pages as u64,
            counters: Counters::default(),
        });
        let threads =
            vec![spawn("write", &shared, Shared::write_back)?, spawn("prefetch", &shared, Shared::bring)?];
        Ok(Self { open: Mutex::new(Some(Open { shared, threads })), generation: threads::generation() })
    }

    /// Takes pages in; returns which. One that is not taken found no place in the queue in time.
    pub fn store(
        &self,
        keys: &[u8],
        key_bytes: usize,
        pages: &TensorRef<'_>,
    ) -> Result<Vec<bool>, KvCacheError> {
        let shared = self.shared()?;
        let keys = keys_of(keys, key_bytes)?;
        let rows = SourceRows::new(pages, keys.len(), shared.disk.kind.page_bytes as usize)?;
        Ok(shared.store(&keys, &rows))
    }

    /// Loads pages from host memory, or else from disk, to the rows of `out`; returns which were there.
    pub fn load(
        &self,
        keys: &[u8],
        key_bytes: usize,
        out: &mut TensorMut<'_>,
        options: &LoadOptions<'_>,
    ) -> Result<Vec<bool>, KvCacheError> {
        let shared = self.shared()?;
        let keys = keys_of(keys, key_bytes)?;
        let rows = TargetRows::new(out, keys.len(), shared.disk.kind.page_bytes as usize)?;
        shared.load(&keys, &rows, options)
    }

    /// Asks for pages to be brought from disk; returns for how many there was a place. Returns at once.
    pub fn prefetch(&self, keys: &[u8], key_bytes: usize) -> Result<usize, KvCacheError> {
        let shared = self.shared()?;
        Ok(shared.prefetch(&keys_of(keys, key_bytes)?))
    }

    /// Which pages are in host memory or known to be on disk.
    pub fn contains(&self, keys: &[u8], key_bytes: usize) -> Result<Vec<bool>, KvCacheError> {
        let shared = self.shared()?;
        let keys = keys_of(keys, key_bytes)?;
        let in_host: Vec<bool> = {
            let slots = lock(&shared.slots);
            keys.iter().map(|key| slots.knows(key)).collect()
        };
        let index = lock(&shared.disk.index);
        Ok(keys.iter().zip(in_host).map(|(key, in_host)| in_host || index.contains(key)).collect())
    }

    /// Waits until all that was taken in before is on disk, and durable there. An error says that some of it is not.
    pub fn flush(&self) -> Result<(), KvCacheError> {
        let shared = self.shared()?;
        shared.writes.wait();
        let failure = lock(&shared.failure).take();
        shared.disk.flush()?;
        failure.map_or(Ok(()), |error| Err(error.into()))
    }

    /// Waits until all that was asked for has been brought.
    pub fn wait_for_prefetches(&self) -> Result<(), KvCacheError> {
        self.shared()?.prefetches.wait();
        Ok(())
    }

    /// What the cache holds and has done.
    pub fn stats(&self) -> Result<CacheStats, KvCacheError> {
        let shared = self.shared()?;
        let counters = &shared.counters;
        Ok(CacheStats {
            host_pages: lock(&shared.slots).num_pages() as u64,
            host_capacity: shared.host_capacity,
            queued_writes: shared.writes.len() as u64,
            queued_prefetches: shared.prefetches.len() as u64,
            host_hits: counters.host_hits.get(),
            disk_hits: counters.disk_hits.get(),
            misses: counters.misses.get(),
            stored_pages: counters.stored_pages.get(),
            refused_pages: counters.refused_pages.get(),
            written_pages: counters.written_pages.get(),
            failed_writes: counters.failed_writes.get(),
            prefetched_pages: counters.prefetched_pages.get(),
        })
    }

    /// Writes everything, makes it durable and ends the threads. A second call does nothing.
    pub fn close(&self) -> Result<(), KvCacheError> {
        self.refuse_fork()?;
        let Some(open) = lock(&self.open).take() else { return Ok(()) };
        let shared = open.end();
        let failure = lock(&shared.failure).take();
        shared.disk.flush()?;
        failure.map_or(Ok(()), |error| Err(error.into()))
    }

    fn refuse_fork(&self) -> Result<(), TierError> {
        if self.generation == threads::generation() { Ok(()) } else { Err(TierError::Forked) }
    }

    fn shared(&self) -> Result<Arc<Shared>, TierError> {
        self.refuse_fork()?;
        lock(&self.open).as_ref().map(|open| Arc::clone(&open.shared)).ok_or(TierError::Closed)
    }
}

impl Drop for TieredCache {
    fn drop(&mut self) {
        let forked = self.refuse_fork().is_err();
        let Ok(open) = self.open.get_mut() else { return };
        match open.take() {
            // The threads are not here, and what they were changing may be half changed.
            Some(open) if forked => std::mem::forget(open),
            Some(open) => drop(open.end()),
            None => {}
        }
    }
}

fn spawn(name: &str, shared: &Arc<Shared>, work: fn(&Shared)) -> Result<JoinHandle<()>, TierError> {
    let own = Arc::clone(shared);
    let spawned = thread::Builder::new().name(format!("infer-accel-{name}")).spawn(move || work(&own));
    spawned.map_err(|error| {
        // The other thread, if there is one, ends.
        shared.writes.close();
        shared.prefetches.close();
        TierError::Thread { reason: error.to_string() }
    })
}

impl Open {
    /// Lets the threads finish what was taken in.
    fn end(self) -> Arc<Shared> {
        self.shared.writes.close();
        self.shared.prefetches.close();
        for thread in self.threads {
            // A panic was reported where it happened.
            let _ = thread.join();
        }
        self.shared
    }
}
