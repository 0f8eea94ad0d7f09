//! What a tier has done.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Counters that threads share.
        #[derive(Debug, Default)]
        pub(super) struct Counters {
            $(pub(super) $name: Counter,)*
        }

        /// What a [`DiskTier`](super::DiskTier) holds, and what it has done since it was opened.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct TierStats {
            /// Pages that can be found.
            pub pages: u64,
            /// Segments that are read.
            pub segments: u64,
            /// Bytes of all segments in the directory, as long as they may become.
            pub bytes: u64,
            /// Most bytes.
            pub capacity_bytes: u64,
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counters {
            pub(super) fn read(&self, stats: &mut TierStats) {
                $(stats.$name = self.$name.get();)*
            }
        }

        impl TierStats {
            /// Every figure with its name.
            pub fn fields(&self) -> Vec<(&'static str, u64)> {
                vec![
                    ("pages", self.pages),
                    ("segments", self.segments),
                    ("bytes", self.bytes),
                    ("capacity_bytes", self.capacity_bytes),
                    $((stringify!($name), self.$name),)*
                ]
            }
        }
    };
}

/// A number that only rises.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self, count: usize) {
        self.0.fetch_add(count as u64, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

counters! {
    /// Pages written.
    stored_pages,
    /// Pages that came and were there already.
    known_pages,
    /// Bytes written, headers included.
    written_bytes,
    /// Pages asked for and delivered.
    hits,
    /// Pages asked for and not delivered, whatever the reason.
    misses,
    /// Pages that were not what was stored: each a miss, and forgotten.
    corrupt_pages,
    /// Pages whose segment went before they were read: each a miss.
    vanished_pages,
    /// Reads that failed: each a miss.
    failed_reads,
    /// Pages that the device did not deliver in time: each a miss.
    late_pages,
    /// Stores and flushes that the device did not answer in time: each an error.
    late_writes,
    /// Segments removed to make room.
    evicted_segments,
    /// Pages in them.
    evicted_pages,
    /// Files that are no segments of this directory's kind.
    refused_segments,
    /// Segments with bytes behind the last whole batch, which a crash left.
    torn_segments,
    /// Syncs.
    syncs,
    /// Pages forgotten because a sync of them failed.
    unsynced_pages,
}
