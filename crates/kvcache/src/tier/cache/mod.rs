//! Pages in host memory in front of pages on disk.
//!
//! What is stored lies in host memory at once and is written to disk by a thread of the cache; what is prefetched is
//! brought from disk by another. Both are fed by queues of bounded length: who stores faster than the disk writes
//! waits, and who asks for more prefetches than there are places gets fewer.

mod queue;
mod slots;
#[cfg(test)]
mod tests;

use super::record::Key;
use super::rows::{HostRows, SourceRows, TargetRows};
use super::stats::Counter;
use super::sync::{Mutex, lock};
use super::{DiskTier, Inner, LoadOptions, TierError, keys_of, sync};
use crate::KvCacheError;
use crate::host::HostPool;
use infer_accel_tensor::{TensorMut, TensorRef, threads};
use queue::Queue;
use slots::{Begun, Slots};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Pages that a thread moves at once.
const BATCH_PAGES: usize = 16;
/// As many host pages can be named.
const MAX_HOST_PAGES: usize = 1 << 30;

/// How a cache is made.
#[derive(Clone, Debug)]
pub struct CacheOptions {
    /// Pages in host memory, at least 2.
    pub host_pages: usize,
    /// Pages that wait to be written, at most half of the host's; `None` for half.
    pub queued_writes: Option<usize>,
    /// Pages that wait to be brought.
    pub queued_prefetches: usize,
    /// How long a store waits for a place in the queue; `None` for as long as it takes.
    pub store_deadline: Option<Duration>,
}

/// What a [`TieredCache`] holds, and what it has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CacheStats {
    /// Pages in host memory.
    pub host_pages: u64,
    /// Most of them.
    pub host_capacity: u64,
    /// Pages that wait to be written, or are being written.
    pub queued_writes: u64,
    /// Pages that wait to be brought, or are being brought.
    pub queued_prefetches: u64,
    /// Pages delivered from host memory.
    pub host_hits: u64,
    /// Pages delivered from disk.
    pub disk_hits: u64,
    /// Pages not delivered.
    pub misses: u64,
    /// Pages taken in.
    pub stored_pages: u64,
    /// Pages not taken in, because the disk is too slow.
    pub refused_pages: u64,
    /// Pages written to disk.
    pub written_pages: u64,
    /// Pages that the disk did not take. They stay in host memory until they are evicted.
    pub failed_writes: u64,
    /// Pages brought ahead.
    pub prefetched_pages: u64,
}

impl CacheStats {
    /// Every figure with its name.
    pub fn fields(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("host_pages", self.host_pages),
            ("host_capacity", self.host_capacity),
            ("queued_writes", self.queued_writes),
            ("queued_prefetches", self.queued_prefetches),
            ("host_hits", self.host_hits),
            ("disk_hits", self.disk_hits),
            ("misses", self.misses),
            ("stored_pages", self.stored_pages),
            ("refused_pages", self.refused_pages),
            ("written_pages", self.written_pages),
            ("failed_writes", self.failed_writes),
            ("prefetched_pages", self.prefetched_pages),
        ]
    }
}

#[derive(Debug, Default)]
struct Counters {
    host_hits: Counter,
    disk_hits: Counter,
    misses: Counter,
    stored_pages: Counter,
    refused_pages: Counter,
    written_pages: Counter,
    failed_writes: Counter,
    prefetched_pages: Counter,
}

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

impl Shared {
    fn store(&self, keys: &[Key], rows: &SourceRows<'_>) -> Vec<bool> {
        let due = self.store_deadline.map(|deadline| Instant::now() + deadline);
        let take = |(row, key): (usize, &Key)| {
            let begun = lock(&self.slots).begin(key);
            let slot = match begun {
                Begun::Known => return true,
                Begun::Full => return false,
                Begun::Unsaved(slot) => slot,
                Begun::Slot(slot) => {
                    self.host.fill(slot, rows, row);
                    lock(&self.slots).publish(slot);
                    slot
                }
            };
            // The hold goes with the page into the queue: until it is written it cannot be evicted.
            if self.writes.push(slot, due).is_err() {
                // It stays in host memory as long as nobody needs the place, but it is not promised to anybody.
                self.give_up(&[slot]);
                return false;
            }
            true
        };
        let taken: Vec<bool> = keys.iter().enumerate().map(take).collect();
        let count = taken.iter().filter(|&&taken| taken).count();
        self.counters.stored_pages.add(count);
        self.counters.refused_pages.add(taken.len() - count);
        taken
    }

    /// Ends the holds on pages that the disk has not taken.
    fn give_up(&self, slots: &[u32]) {
        let mut table = lock(&self.slots);
        for &slot in slots {
            table.note_unsaved(slot);
            table.release(slot);
        }
    }

    fn load(
        &self,
        keys: &[Key],
        rows: &TargetRows<'_>,
        options: &LoadOptions<'_>,
    ) -> Result<Vec<bool>, KvCacheError> {
        let mut found = vec![false; keys.len()];
        let mut missing = Vec::new();
        for (row, key) in keys.iter().enumerate() {
            let held = lock(&self.slots).hold(key);
            match held {
                Some(slot) => {
                    self.host.deliver(slot, rows, row);
                    lock(&self.slots).release(slot);
                    found[row] = true;
                }
                None => missing.push(row),
            }
        }
        self.counters.host_hits.add(keys.len() - missing.len());
        // As many as have a place come through host memory, where the next one finds them; the others come directly.
        let mut direct = Vec::new();
        for some in missing.chunks(BATCH_PAGES) {
            let wanted: Vec<Key> = some.iter().map(|&row| keys[row]).collect();
            let (brought, placeless) = self.bring_pages(&wanted, options)?;
            for (position, slot) in brought {
                self.host.deliver(slot, rows, some[position]);
                lock(&self.slots).release(slot);
                found[some[position]] = true;
            }
            direct.extend(placeless.into_iter().map(|position| some[position]));
        }
        if !direct.is_empty() {
            self.disk.load_rows(keys, &direct, rows, options, &mut found)?;
        }
        let hits = missing.iter().filter(|&&row| found[row]).count();
        self.counters.disk_hits.add(hits);
        self.counters.misses.add(missing.len() - hits);
        Ok(found)
    }

    /// Brings pages from disk to slots. Returns the positions that were found, with their slots held, and those that
    /// got no slot.
    #[allow(clippy::type_complexity)] // two lists, both explained
    fn bring_pages(
        &self,
        keys: &[Key],
        options: &LoadOptions<'_>,
    ) -> Result<(Vec<(usize, u32)>, Vec<usize>), KvCacheError> {
        let (mut positions, mut slots, mut placeless) = (Vec::new(), Vec::new(), Vec::new());
        let known: Vec<bool> = {
            let index = lock(&self.disk.index);
            keys.iter().map(|key| index.contains(key)).collect()
        };
        let mut table = lock(&self.slots);
        for (position, (key, known)) in keys.iter().zip(known).enumerate() {
            // A slot is not emptied for a page that nobody has.
            if !known || table.knows(key) {
                placeless.push(position);
            } else if let Begun::Slot(slot) = table.begin(key) {
                positions.push(position);
                slots.push(slot);
            } else {
                placeless.push(position);
            }
        }
        drop(table);
        let wanted: Vec<Key> = positions.iter().map(|&position| keys[position]).collect();
        let found = self.disk.load(&wanted, &self.host.target(&slots), options);
        let mut table = lock(&self.slots);
        let Ok(found) = found else {
            for &slot in &slots {
                table.abandon(slot);
            }
            return found.map(|_| (Vec::new(), placeless));
        };
        let mut brought = Vec::new();
        for ((position, slot), hit) in positions.into_iter().zip(slots).zip(found) {
            if hit {
                table.publish(slot);
                brought.push((position, slot));
            } else {
                table.abandon(slot);
            }
        }
        Ok((brought, placeless))
    }

    fn prefetch(&self, keys: &[Key]) -> usize {
        let now = Instant::now();
        let wanted = |key: &&Key| !lock(&self.slots).knows(key) && lock(&self.disk.index).contains(key);
        keys.iter().filter(wanted).take_while(|key| self.prefetches.push(**key, Some(now)).is_ok()).count()
    }

    /// The thread that writes.
    fn write_back(&self) {
        loop {
            let slots = self.writes.take(BATCH_PAGES);
            if slots.is_empty() {
                return;
            }
            let keys: Vec<Key> = {
                let table = lock(&self.slots);
                slots.iter().filter_map(|&slot| table.key(slot)).collect()
            };
            match self.disk.store(&keys, &self.host.source(&slots)) {
                Ok(_) => {
                    self.counters.written_pages.add(slots.len());
                    let mut table = lock(&self.slots);
                    for &slot in &slots {
                        table.release(slot);
                    }
                }
                Err(error) => {
                    self.counters.failed_writes.add(slots.len());
                    *lock(&self.failure) = Some(error);
                    self.give_up(&slots);
                }
            }
            self.writes.finish(slots.len());
        }
    }

    /// The thread that brings.
    fn bring(&self) {
        loop {
            let keys = self.prefetches.take(BATCH_PAGES);
            if keys.is_empty() {
                return;
            }
            // One thread reads: those of the pool are for callers who wait.
            let options = LoadOptions { num_threads: Some(1), ..LoadOptions::default() };
            if let Ok((brought, _)) = self.bring_pages(&keys, &options) {
                self.counters.prefetched_pages.add(brought.len());
                let mut table = lock(&self.slots);
                for &(_, slot) in &brought {
                    table.release(slot);
                }
            }
            self.prefetches.finish(keys.len());
        }
    }
}
