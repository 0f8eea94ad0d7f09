//! How a cache is made, and what it tells of itself.

use super::super::stats::Counter;
use std::time::Duration;

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

/// What a [`TieredCache`](super::TieredCache) holds, and what it has done.
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
pub(super) struct Counters {
    pub(super) host_hits: Counter,
    pub(super) disk_hits: Counter,
    pub(super) misses: Counter,
    pub(super) stored_pages: Counter,
    pub(super) refused_pages: Counter,
    pub(super) written_pages: Counter,
    pub(super) failed_writes: Counter,
    pub(super) prefetched_pages: Counter,
}
