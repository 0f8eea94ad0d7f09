//! The table behind a prompt cache: text → ids, bounded in bytes.
//!
//! Several shards, each with a lock of its own that is held for a look-up or an insertion and never while text is
//! encoded. Nobody waits long for it: after a few tries a look-up is taken as a miss, which costs time and nothing
//! else, so that a fork while another thread holds a lock cannot stop the child. What has not been used since the
//! clock's hand came by goes first.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, TryLockError};

use ahash::AHashMap;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Locks that threads share at most.
const MAX_SHARDS: usize = 16;
/// A shard is no smaller than this, so that a small cache is not cut into pieces that hold nothing.
const MIN_SHARD_BYTES: usize = 256 * 1024;
/// Tries for a lock before a look-up is given up; each lasts some nanoseconds, a held lock some hundred.
const TRIES: usize = 2000;
/// What an entry costs beside its text and its ids: the slot, the index and two allocations.
const ENTRY_BYTES: usize = 160;

/// What a prompt cache holds and has done since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PromptCacheStats {
    /// Parts of prompts that are held.
    pub entries: usize,
    /// Bytes that they take, what the cache needs for itself included.
    pub bytes: usize,
    /// The most bytes that the cache takes.
    pub capacity_bytes: usize,
    /// Bytes of text whose ids were found.
    pub reused_bytes: u64,
    /// Bytes of text that had to be encoded.
    pub encoded_bytes: u64,
    /// Parts that had to go.
    pub evictions: u64,
}

/// A part's hash, under a seed that strangers do not know.
#[derive(Clone, Copy)]
pub(super) struct Key {
    hash: u64,
    parse_special: bool,
}

impl Key {
    pub(super) fn new(text: &str, parse_special: bool) -> Self {
        static SEED: OnceLock<u64> = OnceLock::new();
        let seed = *SEED.get_or_init(|| RandomState::new().hash_one(0_u64));
        let hash = xxh3_64_with_seed(text.as_bytes(), seed ^ u64::from(parse_special));
        Self { hash, parse_special }
    }
}

struct Entry {
    hash: u64,
    parse_special: bool,
    /// Whether it was used since the hand came by.
    used: bool,
    text: Box<str>,
    ids: Box<[u32]>,
}

impl Entry {
    fn bytes(&self) -> usize {
        ENTRY_BYTES + self.text.len() + self.ids.len() * 4
    }
}

#[derive(Default)]
struct Shard {
    places: AHashMap<u64, usize>,
    entries: Vec<Entry>,
    hand: usize,
    bytes: usize,
}

pub(super) struct Store {
    shards: Box<[Mutex<Shard>]>,
    shard_bytes: usize,
    reused: AtomicU64,
    encoded: AtomicU64,
    evictions: AtomicU64,
}

impl Store {
    pub(super) fn new(capacity_bytes: usize) -> Self {
        let shards = (capacity_bytes / MIN_SHARD_BYTES).clamp(1, MAX_SHARDS);
        Self {
            shards: (0..shards).map(|_| Mutex::default()).collect(),
            shard_bytes: capacity_bytes / shards,
            reused: AtomicU64::new(0),
            encoded: AtomicU64::new(0),
            evictions: AtomicU64::new(0),
        }
    }

    /// Calls `f` with the ids of this part, if they are held.
    pub(super) fn with<R>(&self, key: &Key, text: &str, f: impl FnOnce(&[u32]) -> R) -> Option<R> {
        let found = self.shard(key).and_then(|mut shard| shard.find(key, text).map(f));
        let counter = if found.is_some() { &self.reused } else { &self.encoded };
        counter.fetch_add(text.len() as u64, Ordering::Relaxed);
        found
    }

    /// Keeps the ids of a part, if there is room for it at all.
    pub(super) fn insert(&self, key: Key, text: &str, ids: &[u32]) {
        let Key { hash, parse_special } = key;
        let entry = Entry { hash, parse_special, used: false, text: text.into(), ids: ids.into() };
        if entry.bytes() > self.shard_bytes {
            return;
        }
        let Some(mut shard) = self.shard(&key) else { return };
        let evicted = shard.insert(entry, self.shard_bytes);
        self.evictions.fetch_add(evicted, Ordering::Relaxed);
    }

    /// Counts text that is encoded without a look-up.
    pub(super) fn passed(&self, bytes: usize) {
        self.encoded.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn stats(&self) -> PromptCacheStats {
        let mut stats = PromptCacheStats {
            capacity_bytes: self.shard_bytes * self.shards.len(),
            reused_bytes: self.reused.load(Ordering::Relaxed),
            encoded_bytes: self.encoded.load(Ordering::Relaxed),
            evictions: self.evictions.load(Ordering::Relaxed),
            ..PromptCacheStats::default()
        };
        for shard in self.shards.iter().filter_map(lock) {
            stats.entries += shard.entries.len();
            stats.bytes += shard.bytes;
        }
        stats
    }

    pub(super) fn clear(&self) {
        for mut shard in self.shards.iter().filter_map(lock) {
            *shard = Shard::default();
        }
    }

    /// The shard of this key; `None` where another thread keeps it for too long.
    fn shard(&self, key: &Key) -> Option<MutexGuard<'_, Shard>> {
        // The high bits: the index inside the shard uses the low ones.
        let place = (key.hash >> 32) as usize % self.shards.len();
        self.shards.get(place).and_then(lock)
    }
}

fn lock(shard: &Mutex<Shard>) -> Option<MutexGuard<'_, Shard>> {
    for _ in 0..TRIES {
        match shard.try_lock() {
            Ok(guard) => return Some(guard),
            Err(TryLockError::WouldBlock) => std::hint::spin_loop(),
            Err(TryLockError::Poisoned(poisoned)) => {
                // A panic came out of a call: what it left behind is not used again.
                shard.clear_poison();
                let mut guard = poisoned.into_inner();
                *guard = Shard::default();
                return Some(guard);
            }
        }
    }
    None
}

impl Shard {
    fn find(&mut self, key: &Key, text: &str) -> Option<&[u32]> {
        let entry = self.entries.get_mut(*self.places.get(&key.hash)?)?;
        if entry.parse_special != key.parse_special || *entry.text != *text {
            return None;
        }
        entry.used = true;
        Some(&entry.ids)
    }

    /// Puts an entry in, making room first; returns how many had to go.
    fn insert(&mut self, entry: Entry, capacity: usize) -> u64 {
        // Another thread may have put the same part in; or the hashes are equal and the texts are not.
        if let Some(place) = self.places.get(&entry.hash).copied() {
            self.remove(place);
        }
        let mut evicted = 0;
        while !self.entries.is_empty() && self.bytes + entry.bytes() > capacity {
            self.hand = if self.hand < self.entries.len() { self.hand } else { 0 };
            let Some(next) = self.entries.get_mut(self.hand) else { break };
            if std::mem::take(&mut next.used) {
                self.hand += 1;
            } else {
                self.remove(self.hand);
                evicted += 1;
            }
        }
        self.bytes += entry.bytes();
        self.places.insert(entry.hash, self.entries.len());
        self.entries.push(entry);
        evicted
    }

    fn remove(&mut self, place: usize) {
        if place >= self.entries.len() {
            return;
        }
        let gone = self.entries.swap_remove(place);
        self.bytes -= gone.bytes();
        self.places.remove(&gone.hash);
        if let Some(moved) = self.entries.get(place) {
            self.places.insert(moved.hash, place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(store: &Store, text: &str, ids: &[u32]) {
        store.insert(Key::new(text, false), text, ids);
    }

    fn get(store: &Store, text: &str) -> Option<Vec<u32>> {
        store.with(&Key::new(text, false), text, <[u32]>::to_vec)
    }

    #[test]
    fn what_is_held_stays_below_the_capacity() {
        let store = Store::new(20_000);
        for number in 0..1000_u32 {
            put(&store, &format!("part {number} {}", "x".repeat(number as usize % 700)), &[number; 20]);
            let stats = store.stats();
            assert!(stats.bytes <= stats.capacity_bytes && stats.entries > 0);
        }
        let stats = store.stats();
        assert_eq!(stats.evictions as usize + stats.entries, 1000);
        put(&store, &"y".repeat(30_000), &[1]);
        assert_eq!(store.stats().entries, stats.entries, "what can never fit puts nothing out");
        store.clear();
        assert_eq!((store.stats().entries, store.stats().bytes), (0, 0));
    }

    #[test]
    fn what_is_used_outlives_what_is_not() {
        let store = Store::new(20_000);
        put(&store, "wanted", &[7]);
        for number in 0..1000_u32 {
            assert_eq!(get(&store, "wanted"), Some(vec![7]));
            put(&store, &format!("passing {number}"), &[number; 100]);
        }
    }

    #[test]
    fn equal_hashes_are_told_apart() {
        let mut shard = Shard::default();
        let entry = |text: &str, id| Entry {
            hash: 5,
            parse_special: false,
            used: false,
            text: text.into(),
            ids: [id].into(),
        };
        let key = |parse_special| Key { hash: 5, parse_special };
        shard.insert(entry("a", 1), 10_000);
        assert_eq!(shard.find(&key(false), "b"), None);
        assert_eq!(shard.find(&key(true), "a"), None);
        shard.insert(entry("b", 2), 10_000);
        assert_eq!(shard.find(&key(false), "a"), None);
        assert_eq!(shard.entries.len(), 1);
        assert_eq!(shard.find(&key(false), "b"), Some(&[2][..]));
    }

    #[test]
    fn a_held_lock_is_a_miss_and_no_wait() {
        let store = Store::new(1000);
        put(&store, "a", &[1]);
        let held: Vec<_> = store.shards.iter().map(|shard| shard.lock().unwrap()).collect();
        assert_eq!(get(&store, "a"), None);
        put(&store, "b", &[2]);
        drop(held);
        assert_eq!((get(&store, "a"), get(&store, "b")), (Some(vec![1]), None));
    }
}
