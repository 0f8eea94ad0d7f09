//! The table behind a prompt cache: text → ids, bounded in bytes.
//!
//! Several shards, each with a lock of its own that is held to find a part or to put one in, never while text is
//! compared, copied or encoded. Nobody waits long for it: after a few tries a look-up is taken as a miss, which costs
//! time and nothing else, so that a fork while another thread holds a lock cannot stop the child. What has not been
//! used since the clock's hand came by goes first.
//!
//! A part is named by a hash of its whole first bytes. Most of the time that hash need not be made: what a part
//! begins with tells which one it was the last time, and a comparison whether it is that one again.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};

use ahash::AHashMap;

use super::part::{Kind, Part};

/// Locks that threads share at most.
const MAX_SHARDS: usize = 16;
/// A shard is no smaller than this, so that a small cache is not cut into pieces that hold nothing.
const MIN_SHARD_BYTES: usize = 1 << 20;
/// A joined part takes no more than this share of a shard: it would push too much out.
const SHARE: usize = 4;
/// Tries for a lock before a look-up is given up; each lasts some nanoseconds, a held lock some hundred.
const TRIES: usize = 2000;
/// For each of so many bytes of the capacity one guess of eight bytes is kept.
const BYTES_PER_GUESS: usize = 4096;
/// They are there from the beginning, however large a cache may become.
const MAX_GUESSES: usize = 1 << 22;

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

struct Entry {
    hash: u64,
    /// Whether it was used since the hand came by.
    used: bool,
    part: Arc<Part>,
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
    /// Hashes of parts, by the hash of what they begin with.
    guesses: Box<[AtomicU64]>,
    reused: AtomicU64,
    encoded: AtomicU64,
    evictions: AtomicU64,
}

impl Store {
    pub(super) fn new(capacity_bytes: usize) -> Self {
        let guesses = (capacity_bytes / BYTES_PER_GUESS).min(MAX_GUESSES);
        let rest = capacity_bytes - guesses * size_of::<AtomicU64>();
        let shards = (rest / MIN_SHARD_BYTES).clamp(1, MAX_SHARDS);
        Self {
            shards: (0..shards).map(|_| Mutex::default()).collect(),
            shard_bytes: rest / shards,
            guesses: (0..guesses).map(|_| AtomicU64::new(0)).collect(),
            reused: AtomicU64::new(0),
            encoded: AtomicU64::new(0),
            evictions: AtomicU64::new(0),
        }
    }

    /// The part of this kind that the text begins with, if it is held; `text` has at least the kind's window.
    pub(super) fn find(&self, kind: Kind, text: &[u8]) -> Option<Arc<Part>> {
        let window = text.get(..kind.window())?;
        let begins = |part: &Arc<Part>| part.kind == kind && text.starts_with(part.text());
        let guess = self.guess(kind, window);
        if let Some(hash) = guess.map(|guess| guess.load(Ordering::Relaxed)).filter(|&hash| hash != 0)
            && let Some(part) = self.held(hash).filter(begins)
        {
            return Some(part);
        }
        let hash = kind.hash(window);
        let part = self.held(hash).filter(begins)?;
        if let Some(guess) = guess {
            guess.store(hash, Ordering::Relaxed);
        }
        Some(part)
    }

    /// Keeps a part, if there is room for it at all.
    pub(super) fn insert(&self, part: Part) {
        let window = part.text().get(..part.kind.window()).unwrap_or(part.text());
        if part.bytes() > self.shard_bytes {
            return;
        }
        let hash = part.kind.hash(window);
        if let Some(guess) = self.guess(part.kind, window) {
            guess.store(hash, Ordering::Relaxed);
        }
        let Some(mut shard) = self.shard(hash) else { return };
        let evicted = shard.insert(Entry { hash, used: false, part: Arc::new(part) }, self.shard_bytes);
        self.evictions.fetch_add(evicted, Ordering::Relaxed);
    }

    /// Keeps parts that follow each other as one, too, if it is not too much.
    pub(super) fn insert_joined(&self, kind: Kind, parts: &[Arc<Part>]) {
        if parts.iter().map(|part| part.bytes()).sum::<usize>() <= self.shard_bytes / SHARE {
            self.insert(Part::joined(kind, parts));
        }
    }

    /// Counts text whose ids were found, and text that was encoded.
    pub(super) fn record(&self, reused: usize, encoded: usize) {
        self.reused.fetch_add(reused as u64, Ordering::Relaxed);
        self.encoded.fetch_add(encoded as u64, Ordering::Relaxed);
    }

    pub(super) fn stats(&self) -> PromptCacheStats {
        let guesses = self.guesses.len() * size_of::<AtomicU64>();
        let mut stats = PromptCacheStats {
            bytes: guesses,
            capacity_bytes: self.shard_bytes * self.shards.len() + guesses,
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

    fn guess(&self, kind: Kind, window: &[u8]) -> Option<&AtomicU64> {
        let count = self.guesses.len() as u64;
        let place = kind.hash_beginning(window).checked_rem(count)?;
        self.guesses.get(place as usize)
    }

    /// The part under this hash, whichever it is.
    fn held(&self, hash: u64) -> Option<Arc<Part>> {
        self.shard(hash)?.find(hash)
    }

    /// The shard of this hash; `None` where another thread keeps it for too long.
    fn shard(&self, hash: u64) -> Option<MutexGuard<'_, Shard>> {
        // The high bits: the index inside the shard uses the low ones.
        let place = (hash >> 32) as usize % self.shards.len();
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
    fn find(&mut self, hash: u64) -> Option<Arc<Part>> {
        let entry = self.entries.get_mut(*self.places.get(&hash)?)?;
        entry.used = true;
        Some(Arc::clone(&entry.part))
    }

    /// Puts an entry in, making room first; returns how many had to go.
    fn insert(&mut self, entry: Entry, capacity: usize) -> u64 {
        // Another thread may have put the same part in; or the hashes are equal and the texts are not.
        if let Some(place) = self.places.get(&entry.hash).copied() {
            self.remove(place);
        }
        let mut evicted = 0;
        while !self.entries.is_empty() && self.bytes + entry.part.bytes() > capacity {
            self.hand = if self.hand < self.entries.len() { self.hand } else { 0 };
            let Some(next) = self.entries.get_mut(self.hand) else { break };
            if std::mem::take(&mut next.used) {
                self.hand += 1;
            } else {
                self.remove(self.hand);
                evicted += 1;
            }
        }
        self.bytes += entry.part.bytes();
        self.places.insert(entry.hash, self.entries.len());
        self.entries.push(entry);
        evicted
    }

    fn remove(&mut self, place: usize) {
        if place >= self.entries.len() {
            return;
        }
        let gone = self.entries.swap_remove(place);
        self.bytes -= gone.part.bytes();
        self.places.remove(&gone.hash);
        if let Some(moved) = self.entries.get(place) {
            self.places.insert(moved.hash, place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::part::SMALLEST;
    use super::*;

    const KIND: Kind = Kind { level: 0, parse_special: false, begins: false };

    /// A text that begins like no other one and is long enough to be a part.
    fn text(name: &str) -> String {
        format!("{name} {}", "x".repeat(SMALLEST))
    }

    fn put(store: &Store, name: &str, ids: &[u32]) {
        store.insert(Part::new(KIND, text(name).as_bytes(), ids));
    }

    fn get(store: &Store, name: &str) -> Option<Vec<u32>> {
        store.find(KIND, text(name).as_bytes()).map(|part| part.ids().to_vec())
    }

    #[test]
    fn what_is_held_stays_below_the_capacity() {
        for capacity in [40_000, 4 << 20] {
            let store = Store::new(capacity);
            for number in 0..4000_u32 {
                put(&store, &format!("part {number} {}", "y".repeat(number as usize % 700)), &[number; 20]);
                let stats = store.stats();
                assert!(stats.bytes <= stats.capacity_bytes && stats.entries > 0);
                assert!(stats.capacity_bytes <= capacity);
            }
            let stats = store.stats();
            assert_eq!(stats.evictions as usize + stats.entries, 4000);
            put(&store, &"y".repeat(capacity + 1), &[1]);
            assert_eq!(store.stats().entries, stats.entries, "what can never fit puts nothing out");
            store.clear();
            assert_eq!(store.stats().entries, 0);
        }
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
        let store = Store::new(1 << 20);
        put(&store, "a", &[1]);
        let hash = KIND.hash(&text("b").as_bytes()[..SMALLEST]);
        // As if both texts had the same hash.
        let entry =
            |name| Entry { hash, used: false, part: Arc::new(Part::new(KIND, text(name).as_bytes(), &[3])) };
        store.shard(hash).unwrap().insert(entry("a"), 1 << 20);
        assert_eq!(get(&store, "b"), None);
        store.shard(hash).unwrap().insert(entry("b"), 1 << 20);
        assert_eq!((get(&store, "a"), get(&store, "b")), (Some(vec![1]), Some(vec![3])));
        assert_eq!(store.stats().entries, 2);
    }

    #[test]
    fn parts_of_other_kinds_are_told_apart() {
        let store = Store::new(1 << 20);
        let text = text("a").repeat(8);
        let kinds =
            [(0, false, false), (0, true, false), (1, false, false), (1, true, true), (0, false, true)];
        let kinds = kinds.map(|(level, parse_special, begins)| Kind { level, parse_special, begins });
        for (id, kind) in kinds.into_iter().enumerate() {
            store.insert(Part::new(kind, text.as_bytes(), &[id as u32]));
        }
        for (id, kind) in kinds.into_iter().enumerate() {
            assert_eq!(store.find(kind, text.as_bytes()).unwrap().ids(), [id as u32]);
            // A guess that leads to a part of another kind is none.
            let other = Kind { level: 1 - kind.level, ..kind };
            let hash = other.hash(&text.as_bytes()[..other.window()]);
            store.guess(kind, text.as_bytes()).unwrap().store(hash, Ordering::Relaxed);
            assert_eq!(store.find(kind, text.as_bytes()).unwrap().ids(), [id as u32]);
        }
    }

    #[test]
    fn a_wrong_guess_costs_a_hash_and_nothing_else() {
        let store = Store::new(1 << 20);
        let texts = ["b", "c"].map(|end| format!("{}{end}", "a".repeat(SMALLEST - 1)));
        for (id, text) in texts.iter().enumerate() {
            store.insert(Part::new(KIND, text.as_bytes(), &[id as u32]));
        }
        for (id, text) in texts.iter().enumerate().chain(texts.iter().enumerate()) {
            assert_eq!(store.find(KIND, text.as_bytes()).unwrap().ids(), [id as u32]);
        }
        assert!(store.find(KIND, "a".repeat(SMALLEST).as_bytes()).is_none());
        assert!(store.find(KIND, &texts[0].as_bytes()[1..]).is_none(), "shorter than any part");
    }

    #[test]
    fn joined_parts_are_the_parts() {
        let store = Store::new(16 << 20);
        let parts: Vec<_> = (0..3_u32)
            .map(|id| Arc::new(Part::new(KIND, text(&id.to_string()).repeat(3).as_bytes(), &[id, 9])))
            .collect();
        let kind = Kind { level: 1, ..KIND };
        store.insert_joined(kind, &parts);
        let whole: Vec<u8> = parts.iter().flat_map(|part| part.text()).copied().collect();
        assert_eq!(store.find(kind, &whole).unwrap().ids(), [0, 9, 1, 9, 2, 9]);
        let small = Store::new(20_000);
        small.insert_joined(kind, &parts);
        assert_eq!(small.stats().entries, 0);
    }

    #[test]
    fn a_cache_without_end_takes_little_at_first() {
        let store = Store::new(usize::MAX);
        assert!(store.stats().bytes <= 32 << 20);
        put(&store, "a", &[1]);
        assert_eq!(get(&store, "a"), Some(vec![1]));
    }

    #[test]
    fn a_held_lock_is_a_miss_and_no_wait() {
        let store = Store::new(40_000);
        put(&store, "a", &[1]);
        let held = store.shards[0].lock().unwrap();
        assert_eq!(get(&store, "a"), None);
        put(&store, "b", &[2]);
        assert_eq!(store.stats().entries, 0);
        drop(held);
        assert_eq!((get(&store, "a"), get(&store, "b")), (Some(vec![1]), None));
    }
}
