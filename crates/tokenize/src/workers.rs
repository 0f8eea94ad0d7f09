//! Who encodes: workers with tables and memory of their own, lent to one call at a time, never waited for.
//!
//! An encoder keeps a few workers; a call that finds none of them free works with small tables of its own. All encoders
//! of the process share a [`Room`] for large tables. The first workers get them; one that comes when the room is full
//! begins with small ones and asks again from time to time. What it gets then are those of a worker, of whichever
//! encoder, that had no call for a while: many tokenizers can be loaded, and those that work have the room. A worker
//! asks only after it has done much more than new tables cost, so that encoders which take turns lose little to each
//! other.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError, Weak};
use std::time::{Duration, Instant};

use crate::bpe::ahead::Ahead;
use crate::bpe::key::Key;
use crate::bpe::together::Gathered;
use crate::bpe::{Bpe, Scratch};
use crate::cache::Tables;
use crate::pretokenize::Starts;

/// Workers that one encoder keeps.
const PLACES: usize = 8;
/// Bytes of large tables that all encoders of the process may keep: six workers have them.
static PROCESS: Room = Room::new(18 << 20, Duration::from_millis(100));
/// Spans that a worker with small tables looks up before it asks for large ones: some 500 KB of text.
const PATIENCE: usize = 100_000;

/// Tables and memory of one call at a time.
pub(crate) struct Worker {
    pub(crate) tables: Tables,
    pub(crate) scratch: Scratch,
    pub(crate) ahead: Ahead,
    pub(crate) starts: Starts,
    pub(crate) gathered: Gathered,
    /// For large tables.
    share: Option<Share>,
}

impl Worker {
    /// What a worker with large tables takes out of the room.
    const BYTES: usize = Tables::BYTES + size_of::<Self>();

    fn new(share: Option<Share>) -> Self {
        Self {
            tables: if share.is_some() { Tables::large() } else { Tables::small() },
            scratch: Scratch::default(),
            ahead: Ahead::default(),
            starts: Starts::new(),
            gathered: Gathered::default(),
            share,
        }
    }

    /// Appends the ids of one span, which has this key.
    pub(crate) fn encode_into(&mut self, bpe: &Bpe, span: &[u8], key: Key, ids: &mut Vec<u32>) {
        let start = ids.len();
        if let Some(id) = bpe.whole(span) {
            return ids.push(id);
        }
        self.tables.asked += 1;
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

/// Where a worker waits for the next call.
#[derive(Default)]
struct Place {
    worker: Mutex<Option<Worker>>,
    /// Its worker has large tables.
    large: AtomicBool,
    /// No call ended since [`Pools::marked`].
    resting: AtomicBool,
}

impl Place {
    /// `None` while a call has the worker.
    fn try_lock(&self) -> Option<MutexGuard<'_, Option<Worker>>> {
        match self.worker.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::WouldBlock) => None,
            Err(TryLockError::Poisoned(poisoned)) => {
                // A panic came out of a call: what it left behind is not used again.
                self.worker.clear_poison();
                let mut guard = poisoned.into_inner();
                self.fill(&mut guard, None);
                Some(guard)
            }
        }
    }

    fn fill(&self, guard: &mut Option<Worker>, worker: Option<Worker>) {
        // One that goes gives its share back before the next one comes.
        *guard = None;
        self.large.store(worker.as_ref().is_some_and(|worker| worker.share.is_some()), Ordering::Relaxed);
        *guard = worker;
    }
}

type Places = [Place; PLACES];

/// The workers of one encoder.
pub(crate) struct Pool {
    room: &'static Room,
    places: Arc<Places>,
}

impl Pool {
    pub(crate) fn new() -> Self {
        Self::in_room(&PROCESS)
    }

    fn in_room(room: &'static Room) -> Self {
        Self { room, places: Arc::default() }
    }

    /// Calls `f` with a worker: the one that this thread had last time where it is free. Never waits.
    pub(crate) fn with<R>(&self, f: impl FnOnce(&mut Worker) -> R) -> R {
        let first = thread_number();
        for offset in 0..PLACES {
            let place = &self.places[(first + offset) % PLACES];
            let Some(mut guard) = place.try_lock() else { continue };
            let satisfied =
                guard.as_ref().is_some_and(|worker| worker.share.is_some() || worker.tables.asked < PATIENCE);
            if !satisfied {
                self.renew(place, &mut guard);
            }
            let result = f(guard.get_or_insert_with(|| Worker::new(None)));
            place.resting.store(false, Ordering::Relaxed);
            return result;
        }
        f(&mut Worker::new(None))
    }

    /// A first worker for this place, or large tables for the one that is there; where there is no room it asks later.
    #[cold]
    fn renew(&self, place: &Place, guard: &mut Option<Worker>) {
        let share = self.room.share(&self.places);
        match guard {
            Some(worker) if share.is_none() => worker.tables.asked = 0,
            _ => place.fill(guard, Some(Worker::new(share))),
        }
    }
}

/// A bounded number of bytes for the tables of many pools.
struct Room {
    limit: usize,
    taken: AtomicUsize,
    /// Tables are taken from a worker that had no call for so long.
    rest: Duration,
    /// Only ever tried: a child that was forked while it is held goes on.
    pools: Mutex<Pools>,
}

/// The pools that may have large tables.
struct Pools {
    known: Vec<Weak<Places>>,
    /// When all places were last marked as resting; each call wipes the mark of its place off.
    marked: Option<Instant>,
}

/// A worker's part of a room, given back in the end.
struct Share(&'static Room);

impl Drop for Share {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(Worker::BYTES, Ordering::Relaxed);
    }
}

impl Room {
    const fn new(limit: usize, rest: Duration) -> Self {
        let pools = Mutex::new(Pools { known: Vec::new(), marked: None });
        Self { limit, taken: AtomicUsize::new(0), rest, pools }
    }

    /// Room for one more worker with large tables, which belongs to this pool; `None` while all are in use, or somebody
    /// else asks.
    fn share(&'static self, places: &Arc<Places>) -> Option<Share> {
        let mut pools = match self.pools.try_lock() {
            Ok(pools) => pools,
            Err(TryLockError::WouldBlock) => return None,
            // Nothing in here can be half done.
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        };
        let share = self.take().or_else(|| {
            pools.take_back(self.rest);
            self.take()
        })?;
        if !pools.known.iter().any(|known| std::ptr::eq(known.as_ptr(), Arc::as_ptr(places))) {
            pools.known.retain(|known| known.strong_count() > 0);
            pools.known.push(Arc::downgrade(places));
        }
        Some(share)
    }

    fn take(&'static self) -> Option<Share> {
        let more = |taken: usize| Some(taken + Worker::BYTES).filter(|taken| *taken <= self.limit);
        let taken = self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        taken.is_ok().then(|| Share(self))
    }
}

impl Pools {
    /// Frees the tables of one worker that rested so long. Where there is none, looks who rests from now on.
    fn take_back(&mut self, rest: Duration) {
        if self.marked.is_some_and(|marked| marked.elapsed() < rest) {
            return;
        }
        let large = |place: &&Place| place.large.load(Ordering::Relaxed);
        let known: Vec<_> = self.known.iter().filter_map(Weak::upgrade).collect();
        let places = || known.iter().flat_map(|places| places.iter()).filter(large);
        if self.marked.is_some() {
            for place in places().filter(|place| place.resting.load(Ordering::Relaxed)) {
                if let Some(mut guard) = place.try_lock() {
                    return place.fill(&mut guard, None);
                }
            }
        }
        places().for_each(|place| place.resting.store(true, Ordering::Relaxed));
        self.marked = Some(Instant::now());
    }
}

/// A number for each thread, in order of first use, so that threads begin at different places of a pool.
fn thread_number() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static NUMBER: Cell<usize> = Cell::new(NEXT.fetch_add(1, Ordering::Relaxed));
    }
    NUMBER.with(Cell::get)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(workers: usize, rest: Duration) -> &'static Room {
        Box::leak(Box::new(Room::new(workers * Worker::BYTES, rest)))
    }

    /// A call that looks up so many spans; whether it had large tables.
    fn call(pool: &Pool, spans: usize) -> bool {
        pool.with(|worker| {
            worker.tables.asked += spans;
            worker.share.is_some()
        })
    }

    fn taken(pool: &Pool) -> usize {
        pool.room.taken.load(Ordering::Relaxed) / Worker::BYTES
    }

    #[test]
    fn the_first_workers_get_the_room() {
        let room = room(2, Duration::ZERO);
        let [first, second, third] = std::array::from_fn(|_| Pool::in_room(room));
        assert!(call(&first, 0) && call(&second, 0) && !call(&third, PATIENCE - 1));
        assert!(!call(&third, 0) && taken(&third) == 2);
        drop(second);
        assert!(taken(&third) == 1, "what goes gives its room back");
        assert!(!call(&third, 1), "a worker asks only after so many spans");
        assert!(call(&third, 0) && taken(&third) == 2);
    }

    #[test]
    fn who_rests_gives_its_tables_to_who_works() {
        let room = room(1, Duration::ZERO);
        let [idle, busy] = std::array::from_fn(|_| Pool::in_room(room));
        assert!(call(&idle, PATIENCE), "the first one");
        assert!(!call(&busy, PATIENCE), "it only marks who rests from now on");
        assert!(call(&busy, PATIENCE) && taken(&busy) == 1, "the other one had no call since");
        assert!(!call(&idle, PATIENCE));
        for _ in 0..3 {
            assert!(
                call(&busy, 0) && !call(&idle, PATIENCE),
                "who works between two questions keeps its tables"
            );
        }
        assert!(call(&idle, 0) && taken(&idle) == 1, "and who does not loses them");
    }

    #[test]
    fn tables_that_a_call_has_are_left_to_it() {
        let room = room(1, Duration::ZERO);
        let [working, other] = std::array::from_fn(|_| Pool::in_room(room));
        working.with(|worker| {
            assert!(worker.share.is_some());
            for _ in 0..4 {
                assert!(!call(&other, PATIENCE));
            }
        });
        assert!(taken(&other) == 1 && !call(&other, PATIENCE));
    }

    #[test]
    fn a_short_rest_is_none() {
        let room = room(1, Duration::from_secs(3600));
        let [first, second] = std::array::from_fn(|_| Pool::in_room(room));
        assert!(call(&first, 0));
        for _ in 0..4 {
            assert!(!call(&second, PATIENCE));
        }
    }

    #[test]
    fn a_panic_leaves_no_worker_and_no_share_behind() {
        let pool = Pool::in_room(room(1, Duration::ZERO));
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            pool.with(|worker| {
                worker.tables.asked = PATIENCE;
                panic!("a test's");
            })
        }));
        assert!(panicked.is_err());
        let asked = pool.with(|worker| worker.tables.asked);
        assert!(asked == 0 && call(&pool, 0) && taken(&pool) == 1);
    }

    #[test]
    fn pools_that_are_gone_are_forgotten() {
        let room = room(3, Duration::ZERO);
        for _ in 0..20 {
            assert!(call(&Pool::in_room(room), 0));
        }
        let known = room.pools.lock().unwrap().known.len();
        assert!(known <= 2, "{known}");
    }

    #[test]
    fn many_threads_share_a_room() {
        let room = room(3, Duration::from_micros(50));
        let pools: [Pool; 6] = std::array::from_fn(|_| Pool::in_room(room));
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let pools = &pools;
                scope.spawn(move || {
                    for turn in 0..300 {
                        call(&pools[(thread + turn / 30) % pools.len()], PATIENCE / 2);
                        assert!(room.taken.load(Ordering::Relaxed) <= room.limit);
                    }
                });
            }
        });
        drop(pools);
        assert!(room.taken.load(Ordering::Relaxed) == 0);
    }
}
