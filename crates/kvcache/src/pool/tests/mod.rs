mod chains;

use super::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, VecDeque};

const KEPT: Retention = Retention { priority: None, seconds: None };

/// The same pool in plain collections: slow, and short enough to be believed.
struct Model {
    free: VecDeque<u32>,
    references: Vec<u32>,
    generations: Vec<u32>,
    hash_of: BTreeMap<u32, u8>,
    blocks_of: BTreeMap<u8, Vec<u32>>,
}

impl Model {
    fn new(num_blocks: u32) -> Self {
        Self {
            free: (1..num_blocks).collect(),
            references: vec![0; num_blocks as usize],
            generations: vec![0; num_blocks as usize],
            hash_of: BTreeMap::new(),
            blocks_of: BTreeMap::new(),
        }
    }

    fn handle(&self, id: u32) -> i64 {
        handle::pack(id, self.generations[id as usize])
    }

    fn live(&self, handle: i64) -> Option<&'static str> {
        let id = handle & i64::from(u32::MAX);
        if handle == 0 {
            None
        } else if handle < 0 || id >= self.references.len() as i64 {
            Some("id.block")
        } else if self.references[id as usize] == 0 || self.handle(id as u32) != handle {
            Some("stale_block.handle")
        } else {
            None
        }
    }

    fn alloc(&mut self, count: usize) -> Result<Vec<i64>, &'static str> {
        if count > self.free.len() {
            return Err("out_of_blocks.all");
        }
        let ids: Vec<u32> = self.free.drain(..count).collect();
        for &id in &ids {
            self.references[id as usize] = 1;
            if let Some(hash) = self.hash_of.remove(&id) {
                let blocks = self.blocks_of.get_mut(&hash).unwrap();
                blocks.retain(|&other| other != id);
                if blocks.is_empty() {
                    self.blocks_of.remove(&hash);
                }
            }
        }
        Ok(ids.into_iter().map(|id| self.handle(id)).collect())
    }

    fn retain(&mut self, handles: &[i64]) -> Result<(), &'static str> {
        if let Some(code) = handles.iter().find_map(|&handle| self.live(handle)) {
            return Err(code);
        }
        handles.iter().filter(|&&handle| handle != 0).for_each(|&handle| {
            self.references[handle as u32 as usize] += 1;
        });
        Ok(())
    }

    fn free(&mut self, handles: &[i64]) -> Result<(), &'static str> {
        let mut references = self.references.clone();
        for &handle in handles.iter().filter(|&&handle| handle != 0) {
            if let Some(code) = self.live(handle) {
                return Err(code);
            }
            if references[handle as u32 as usize] == 0 {
                return Err("stale_block.handle");
            }
            references[handle as u32 as usize] -= 1;
        }
        let (mut first, mut last) = (Vec::new(), Vec::new());
        for &handle in handles.iter().filter(|&&handle| handle != 0) {
            let id = handle as u32;
            self.references[id as usize] -= 1;
            if self.references[id as usize] == 0 {
                self.generations[id as usize] += 1;
                if self.hash_of.contains_key(&id) { &mut last } else { &mut first }.push(id);
            }
        }
        first.into_iter().rev().for_each(|id| self.free.push_front(id));
        self.free.extend(last);
        Ok(())
    }

    fn cache(&mut self, handles: &[i64], hashes: &[u8]) -> Result<usize, &'static str> {
        let mut hash_of = self.hash_of.clone();
        let mut new = Vec::new();
        for (&handle, &hash) in handles.iter().zip(hashes) {
            if let Some(code) = self.live(handle) {
                return Err(code);
            }
            if handle == 0 {
                return Err("id.null_block");
            }
            let id = handle as u32;
            match hash_of.insert(id, hash) {
                None => new.push((id, hash)),
                Some(old) if old != hash => return Err("argument.hash_conflict"),
                Some(_) => {}
            }
        }
        self.hash_of = hash_of;
        for &(id, hash) in &new {
            self.blocks_of.entry(hash).or_default().push(id);
        }
        Ok(new.len())
    }

    fn lookup(&mut self, hashes: &[u8]) -> Vec<i64> {
        let found: Vec<u32> =
            hashes.iter().map_while(|hash| self.blocks_of.get(hash).map(|blocks| blocks[0])).collect();
        for &id in &found {
            self.free.retain(|&other| other != id);
            self.references[id as usize] += 1;
        }
        found.into_iter().map(|id| self.handle(id)).collect()
    }
}

#[derive(Clone, Debug)]
enum Step {
    Alloc(usize),
    Retain(Vec<usize>),
    Free(Vec<usize>),
    Cache(Vec<(usize, u8)>),
    Lookup(Vec<u8>),
}

fn step() -> impl Strategy<Value = Step> {
    let picks = || proptest::collection::vec(any::<usize>(), 0..6);
    let hash = 0_u8..12;
    prop_oneof![
        (0_usize..8).prop_map(Step::Alloc),
        picks().prop_map(Step::Retain),
        picks().prop_map(Step::Free),
        picks().prop_map(Step::Free),
        proptest::collection::vec((any::<usize>(), hash.clone()), 0..6).prop_map(Step::Cache),
        proptest::collection::vec(hash, 0..6).prop_map(Step::Lookup),
    ]
}

/// Hashes of which many share the words that the table looks at.
fn full_hash(short: u8) -> BlockHash {
    let mut hash = [short % 3; HASH_BYTES];
    hash[HASH_BYTES - 1] = short;
    hash
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn behaves_as_the_model(num_blocks in 2_u32..24, steps in proptest::collection::vec(step(), 1..80)) {
        let mut pool = BlockPool::new(num_blocks as usize).unwrap();
        let mut model = Model::new(num_blocks);
        // Every handle ever seen, stale ones included, and a few that never were.
        let mut seen = vec![0, -1, i64::MIN, i64::MAX, i64::from(num_blocks), 1 << 32, (7 << 32) | 1];
        for step in steps {
            let pick = |index: usize| seen[index % seen.len()];
            match step {
                Step::Alloc(count) => {
                    let mut handles = vec![0; count];
                    let done = pool.alloc(&mut handles).map(|()| handles).map_err(|error| error.code());
                    prop_assert_eq!(&done, &model.alloc(count));
                    seen.extend(done.unwrap_or_default());
                }
                Step::Retain(picks) => {
                    let handles: Vec<i64> = picks.into_iter().map(pick).collect();
                    prop_assert_eq!(pool.retain(&handles).map_err(|e| e.code()), model.retain(&handles));
                }
                Step::Free(picks) => {
                    let handles: Vec<i64> = picks.into_iter().map(pick).collect();
                    prop_assert_eq!(pool.free(&handles).map_err(|e| e.code()), model.free(&handles));
                }
                Step::Cache(picks) => {
                    let handles: Vec<i64> = picks.iter().map(|&(index, _)| pick(index)).collect();
                    let short: Vec<u8> = picks.iter().map(|&(_, hash)| hash).collect();
                    let hashes: Vec<BlockHash> = short.iter().copied().map(full_hash).collect();
                    let done = pool.cache(&handles, &hashes, &KEPT).map_err(|error| error.code());
                    prop_assert_eq!(done, model.cache(&handles, &short));
                }
                Step::Lookup(short) => {
                    let hashes: Vec<BlockHash> = short.iter().copied().map(full_hash).collect();
                    let mut handles = vec![0; hashes.len()];
                    let prefix = pool.cached_prefix(&hashes);
                    let mut ids = vec![-1; hashes.len()];
                    let seen_before = pool.peek(&hashes, &mut ids).unwrap();
                    let held_before = model.references.clone();
                    let found = pool.lookup(&hashes, &mut handles).unwrap();
                    prop_assert_eq!(found, prefix);
                    handles.truncate(found);
                    prop_assert_eq!(&handles, &model.lookup(&short));
                    let looked_up: Vec<i32> = handles.iter().map(|&handle| handle::unpack(handle).0 as i32).collect();
                    prop_assert_eq!(&ids[..found], &looked_up);
                    let idle = looked_up.iter().filter(|&&id| held_before[id as usize] == 0).count();
                    prop_assert_eq!(seen_before, Peek { found, idle });
                    seen.extend(handles);
                }
            }
            pool.check_invariants().unwrap();
            let free: Vec<i32> = model.free.iter().map(|&id| id as i32).collect();
            prop_assert_eq!(pool.free_order(), free);
            for id in 0..num_blocks {
                let hash = model.hash_of.get(&id).copied().map(full_hash);
                let state = (model.references[id as usize], hash.as_ref());
                prop_assert_eq!(pool.state_of(id as usize).unwrap(), state);
            }
            prop_assert_eq!(pool.state_of(num_blocks as usize).unwrap_err().code(), "id.block");
            prop_assert_eq!(pool.num_free(), model.free.len());
            prop_assert_eq!(pool.stats().cached_blocks, model.hash_of.len());
        }
        // What remains comes out in the order that the model has it.
        let rest = model.free.len();
        let mut handles = vec![0; rest];
        pool.alloc(&mut handles).unwrap();
        prop_assert_eq!(Ok(handles), model.alloc(rest));
    }
}

fn allocated(pool: &mut BlockPool, count: usize) -> Vec<i64> {
    let mut handles = vec![0; count];
    pool.alloc(&mut handles).unwrap();
    handles
}

#[test]
fn sizes_that_are_no_pool() {
    for num_blocks in [0, 1, MAX_BLOCKS + 1, usize::MAX] {
        assert_eq!(BlockPool::new(num_blocks).unwrap_err().code(), "argument.num_blocks");
    }
    assert_eq!(BlockPool::new(2).unwrap().num_free(), 1);
}

#[test]
fn errors_change_nothing() {
    let mut pool = BlockPool::new(8).unwrap();
    let handles = allocated(&mut pool, 3);
    pool.cache(&handles[..1], &[full_hash(1)], &KEPT).unwrap();
    let before = pool.stats();
    let (a, b) = (handles[0], handles[1]);
    for bad in [-1, i64::MAX, 8, (1 << 32) | a, 7] {
        assert!(pool.free(&[a, b, bad]).is_err());
        assert!(pool.retain(&[a, b, bad]).is_err());
        assert!(pool.ids(&[a, b, bad], &mut [0; 3]).is_err());
        assert!(pool.cache(&[b, bad], &[full_hash(2), full_hash(3)], &KEPT).is_err());
        pool.check_invariants().unwrap();
    }
    assert_eq!(pool.free(&[a, b, a]).unwrap_err().code(), "stale_block.handle");
    assert_eq!(pool.alloc(&mut [0; 5]).unwrap_err(), KvCacheError::OutOfBlocks { needed: 5, free: 4 });
    assert_eq!(pool.cache(&[a], &[full_hash(2)], &KEPT).unwrap_err().code(), "argument.hash_conflict");
    assert_eq!(
        pool.cache(&[b, b], &[full_hash(2), full_hash(3)], &KEPT).unwrap_err().code(),
        "argument.hash_conflict"
    );
    assert_eq!(pool.cache(&[0], &[full_hash(2)], &KEPT).unwrap_err().code(), "id.null_block");
    assert_eq!(pool.cache(&[a], &[], &KEPT).unwrap_err().code(), "shape.hash_count");
    assert_eq!(pool.lookup(&[full_hash(1)], &mut []).unwrap_err().code(), "shape.hash_count");
    assert_eq!(pool.stats(), before);
    pool.check_invariants().unwrap();
}

#[test]
fn reuse_follows_vllm() {
    let mut pool = BlockPool::new(10).unwrap();
    let ids = |pool: &BlockPool, handles: &[i64]| {
        let mut ids = vec![0; handles.len()];
        pool.ids(handles, &mut ids).unwrap();
        ids
    };
    let first = allocated(&mut pool, 6);
    assert_eq!(ids(&pool, &first), [1, 2, 3, 4, 5, 6]);
    // Blocks 1 and 2 are cached, 3 and 4 are not; freed last one first.
    pool.cache(&first[..2], &[full_hash(1), full_hash(2)], &KEPT).unwrap();
    pool.free(&[first[3], first[2], first[1], first[0]]).unwrap();
    let next = allocated(&mut pool, 7);
    assert_eq!(ids(&pool, &next), [4, 3, 7, 8, 9, 2, 1]);
    assert_eq!(pool.stats().evictions, 2);
    assert_eq!(pool.cached_prefix(&[full_hash(1)]), 0);
}

#[test]
fn the_null_block_takes_no_part() {
    let mut pool = BlockPool::new(3).unwrap();
    pool.free(&[NULL_HANDLE, NULL_HANDLE]).unwrap();
    pool.retain(&[NULL_HANDLE]).unwrap();
    let mut ids = [7];
    pool.ids(&[NULL_HANDLE], &mut ids).unwrap();
    assert_eq!(ids, [0]);
    assert_eq!(pool.num_free(), 2);
    pool.check_invariants().unwrap();
}

#[test]
fn references_cannot_overflow() {
    let mut pool = BlockPool::new(3).unwrap();
    let handles = allocated(&mut pool, 2);
    pool.cache(&handles[..1], &[full_hash(1)], &KEPT).unwrap();
    for _ in 1..Block::MAX_REFERENCES {
        pool.blocks.get_mut(1).add_reference();
    }
    assert_eq!(pool.retain(&[handles[1], handles[0]]).unwrap_err().code(), "argument.references");
    assert_eq!(pool.blocks.get(2).references(), 1);
    assert_eq!(pool.lookup(&[full_hash(1)], &mut [0]), Ok(0));
    pool.check_invariants().unwrap();
}

#[test]
fn broken_books_are_seen() {
    let pool = || {
        let mut pool = BlockPool::new(6).unwrap();
        let handles = allocated(&mut pool, 3);
        pool.cache(&handles[..2], &[full_hash(1), full_hash(1)], &KEPT).unwrap();
        pool.free(&handles[..1]).unwrap();
        pool
    };
    let seen = |pool: BlockPool| pool.check_invariants().unwrap_err().code();
    pool().check_invariants().unwrap();
    let mut lost = pool();
    lost.blocks.get_mut(3).drop_reference();
    assert_eq!(seen(lost), "internal.invariant");
    let mut unlinked = pool();
    unlinked.blocks.get_mut(4).next = 4;
    assert_eq!(seen(unlinked), "internal.invariant");
    let mut unmarked = pool();
    unmarked.blocks.get_mut(2).set_cached(false);
    assert_eq!(seen(unmarked), "internal.invariant");
    let mut unindexed = pool();
    unindexed.index.remove(1);
    assert_eq!(seen(unindexed), "internal.invariant");
}

fn ids(pool: &BlockPool, handles: &[i64]) -> Vec<i32> {
    let mut ids = vec![0; handles.len()];
    pool.ids(handles, &mut ids).unwrap();
    ids
}

fn with(options: PoolOptions, num_blocks: usize) -> BlockPool {
    BlockPool::with_options(num_blocks, &options).unwrap()
}

#[test]
fn lower_priorities_go_first() {
    let mut pool = with(PoolOptions { eviction: Eviction::Priority, ..PoolOptions::default() }, 8);
    let handles = allocated(&mut pool, 6);
    let kept = |priority| Retention { priority: Some(priority), seconds: None };
    for (at, priority) in [(0, 90), (1, 10), (2, 50), (3, 10), (4, 100)] {
        pool.cache(&handles[at..=at], &[full_hash(at as u8)], &kept(priority)).unwrap();
    }
    pool.free(&handles).unwrap();
    pool.check_invariants().unwrap();
    let order = allocated(&mut pool, 7);
    // The uncached ones, then priority 10 (the least recently freed first), 50, 90, 100.
    assert_eq!(ids(&pool, &order), [6, 7, 2, 4, 3, 1, 5]);
    assert_eq!(pool.stats().evictions, 5);
    let code = |error: KvCacheError| error.code();
    assert_eq!(code(pool.cache(&[], &[], &kept(101)).unwrap_err()), "argument.priority");
    let mut lru = BlockPool::new(4).unwrap();
    assert_eq!(code(lru.cache(&[], &[], &kept(1)).unwrap_err()), "argument.priority");
}

#[test]
fn blocks_run_out_by_the_time_that_is_told() {
    let mut pool = BlockPool::new(6).unwrap();
    let handles = allocated(&mut pool, 2);
    let kept = Retention { priority: None, seconds: Some(5.0) };
    pool.cache(&handles[..1], &[full_hash(1)], &kept).unwrap();
    pool.cache(&handles[1..], &[full_hash(1)], &KEPT).unwrap();
    let found = |pool: &mut BlockPool| {
        let mut found = [0];
        let count = pool.lookup(&[full_hash(1)], &mut found).unwrap();
        pool.free(&found[..count]).unwrap();
        found[0]
    };
    pool.advance(1000.0).unwrap();
    pool.cache(&handles[..1], &[full_hash(1)], &kept).unwrap();
    pool.advance(1004.9).unwrap();
    assert_eq!(found(&mut pool), handles[0]);
    pool.advance(1005.0).unwrap();
    assert_eq!(found(&mut pool), handles[1], "the next one of equal content");
    pool.cache(&handles[1..], &[full_hash(1)], &kept).unwrap();
    pool.advance(1010.0).unwrap();
    assert_eq!(pool.cached_prefix(&[full_hash(1)]), 0);
    pool.check_invariants().unwrap();
    for wrong in [1009.0, f64::NAN, f64::INFINITY, -1.0, 1e12] {
        assert_eq!(pool.advance(wrong).unwrap_err().code(), "argument.time");
    }
    for wrong in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let kept = Retention { priority: None, seconds: Some(wrong) };
        assert_eq!(pool.cache(&[], &[], &kept).unwrap_err().code(), "argument.seconds");
    }
}

#[test]
fn pinned_blocks_are_never_evicted() {
    let mut pool = with(PoolOptions { pin_blocks: 2, ..PoolOptions::default() }, 6);
    let handles = allocated(&mut pool, 3);
    let hashes = [full_hash(1), full_hash(2), full_hash(3)];
    pool.cache(&handles, &hashes, &KEPT).unwrap();
    pool.free(&handles).unwrap();
    pool.advance(7.0).unwrap();
    let before = (pool.stats(), ids(&pool, &[]));
    assert_eq!(pool.pin(&hashes, None).unwrap_err().code(), "out_of_blocks.pins");
    assert_eq!((pool.stats(), ids(&pool, &[])), before);
    assert_eq!(pool.pin(&hashes[..2], Some(10.0)), Ok(2));
    assert_eq!(pool.pin(&hashes[..1], Some(20.0)), Ok(1));
    assert_eq!(pool.pin(&[full_hash(9)], None), Ok(0));
    pool.check_invariants().unwrap();
    let rest = allocated(&mut pool, 3);
    assert!(pool.alloc(&mut [0]).is_err());
    assert_eq!(pool.cached_prefix(&hashes), 2);
    pool.advance(17.0).unwrap();
    assert_eq!(pool.stats().pinned_blocks, 1);
    pool.check_invariants().unwrap();
    assert_eq!(pool.unpin(&hashes), 1);
    assert_eq!(pool.unpin(&hashes), 0);
    pool.free(&rest).unwrap();
    assert_eq!(pool.num_free(), 5);
    pool.check_invariants().unwrap();
}

#[test]
fn what_is_forgotten_is_not_found() {
    let mut pool = with(PoolOptions { pin_blocks: 5, ..PoolOptions::default() }, 8);
    let handles = allocated(&mut pool, 5);
    let hashes: Vec<_> = [1, 2, 3, 3, 4].into_iter().map(full_hash).collect();
    pool.cache(&handles, &hashes, &KEPT).unwrap();
    pool.free(&handles[1..4]).unwrap();
    pool.pin(&hashes[..2], None).unwrap();
    assert_eq!(pool.forget(&[full_hash(3), full_hash(1), full_hash(8)]), 3);
    pool.check_invariants().unwrap();
    assert_eq!(pool.stats().pinned_blocks, 1);
    assert_eq!(pool.cached_prefix(&[full_hash(2), full_hash(4)]), 2);
    pool.reset();
    pool.check_invariants().unwrap();
    assert_eq!(pool.stats().cached_blocks + pool.stats().pinned_blocks, 0);
    assert_eq!(pool.num_free(), 5);
    pool.free(&[handles[0], handles[4]]).unwrap();
    let all = allocated(&mut pool, 7);
    assert_eq!(pool.stats().evictions, 0);
    pool.free(&all).unwrap();
    pool.check_invariants().unwrap();
}

proptest! {
    /// Time, pins and priorities in any order: the books stay right, and pinned prefixes stay findable.
    #[test]
    fn any_retention_keeps_the_books(steps in proptest::collection::vec((0_u8..9, any::<u8>(), 0_u8..6), 1..120)) {
        let mut pool = with(
            PoolOptions { eviction: Eviction::Priority, pin_blocks: 3, event_bytes: 2000, ..PoolOptions::default() },
            10,
        );
        let mut held: Vec<i64> = Vec::new();
        let mut now = 0.0;
        for (act, number, hash) in steps {
            let hashes = [full_hash(hash), full_hash(hash + 1)];
            match act {
                0 | 1 => {
                    let mut handle = [0];
                    if pool.alloc(&mut handle).is_ok() {
                        let seconds = (number % 3 == 0).then_some(f64::from(number % 7) + 0.1);
                        let kept = Retention { priority: Some(number % 101), seconds };
                        pool.cache(&handle, &hashes[..1], &kept).unwrap();
                        held.extend(handle);
                    }
                }
                2 | 3 if !held.is_empty() => {
                    let handle = held.swap_remove(usize::from(number) % held.len());
                    pool.free(&[handle]).unwrap();
                }
                4 => {
                    let mut handles = [0; 2];
                    let found = pool.lookup(&hashes, &mut handles).unwrap();
                    held.extend(&handles[..found]);
                }
                5 => {
                    let seconds = (number % 2 == 0).then_some(f64::from(number));
                    let pinned = pool.pin(&hashes, seconds);
                    if let Ok(count) = pinned {
                        prop_assert_eq!(count, pool.cached_prefix(&hashes));
                    }
                }
                6 => {
                    pool.unpin(&hashes);
                }
                7 => {
                    now += f64::from(number) / 50.0;
                    pool.advance(now).unwrap();
                }
                8 if number < 20 => {
                    pool.reset();
                }
                _ => {
                    pool.forget(&hashes[..1]);
                }
            }
            pool.check_invariants().unwrap();
        }
        pool.free(&held).unwrap();
        pool.reset();
        pool.check_invariants().unwrap();
        prop_assert_eq!(pool.num_free(), 9);
    }
}
