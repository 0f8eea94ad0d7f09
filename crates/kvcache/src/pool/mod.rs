//! The block pool: lends cache blocks to requests and remembers what full blocks hold.
//!
//! Blocks are handed out and reused in vLLM's order (`vllm/v1/core/block_pool.py`): at first by id; a freed block
//! that holds nothing worth keeping goes to the front of the list of free blocks, a cached one to its end, so
//! that cached blocks are evicted least recently used first. Block 0 is the null block, which stands for "no
//! block" in tables: it is never lent out, and retaining or freeing it does nothing.
//!
//! A pool that evicts by priority has a list for each priority and empties the lower ones first. A block may be
//! remembered for a limited time, and a prefix may be pinned: then it is kept whatever else is needed, within a budget.
//!
//! Every call does all that it was asked to, or nothing and says why. Time is O(1) a block everywhere; after
//! [`BlockPool::new`] nothing is allocated, but for events and, once, for what [`BlockPool::cached_blocks`] compares.

mod blocks;
mod chains;
mod handle;
mod index;
mod lending;
mod options;
mod retention;
mod view;
mod walk;

pub use handle::NULL_HANDLE;
pub use options::{DEFAULT_PRIORITY, Eviction, MAX_PRIORITY, PoolOptions, Retention};
pub use view::Peek;

use crate::error::KvCacheError;
use crate::events::EventLog;
use blocks::{Block, Blocks, MAX_LISTS};
use index::{PrefixIndex, filled};
use retention::Clock;

pub(crate) use chains::{Content, Naming};
pub(crate) use index::BlockHash;
pub(crate) use walk::PrefixWalk;

/// Bytes of a hash that the pool takes; shorter digests are filled with zeros.
pub const HASH_BYTES: usize = size_of::<BlockHash>();
/// Most blocks of a pool: 2 billion tokens at 16 a block, and 12 GB of books.
pub const MAX_BLOCKS: usize = 1 << 27;
/// How many hashes ahead a look-up asks the cache for table entries, and half as many for what they name.
const LOOKAHEAD: usize = 8;
/// The list of blocks that are not cached; cached ones are in those behind it.
const UNCACHED_LIST: usize = 0;

/// What a pool holds and has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolStats {
    /// Blocks in all, the null block counted.
    pub num_blocks: usize,
    /// Blocks that can be allocated, cached ones counted.
    pub free_blocks: usize,
    /// Blocks with a reference.
    pub used_blocks: usize,
    /// Blocks that a look-up can find.
    pub cached_blocks: usize,
    /// Blocks that are pinned.
    pub pinned_blocks: usize,
    /// Blocks allocated so far.
    pub allocations: u64,
    /// Cached blocks that an allocation took so far.
    pub evictions: u64,
    /// Hashes that look-ups asked for so far.
    pub queries: u64,
    /// Hashes that look-ups found so far.
    pub hits: u64,
}

/// Blocks `0..num_blocks`, their references, and an index of the full ones.
#[derive(Debug)]
pub struct BlockPool {
    blocks: Blocks,
    index: PrefixIndex,
    /// While [`Self::cache`] checks its arguments: one more than the position of a block's first mention.
    mentions: Vec<u32>,
    /// While blocks come back: the front of what this call has put at the end of each list.
    fronts: [u32; MAX_LISTS],
    eviction: Eviction,
    /// Of each cached block, where the pool evicts by priority; empty where it does not.
    priorities: Vec<u8>,
    clock: Clock,
    pins: retention::Pins,
    log: Option<EventLog>,
    allocations: u64,
    evictions: u64,
    queries: u64,
    hits: u64,
}

impl BlockPool {
    /// A pool of `num_blocks` blocks, of which block 0 is the null block, that evicts the least recently used.
    pub fn new(num_blocks: usize) -> Result<Self, KvCacheError> {
        Self::with_options(num_blocks, &PoolOptions::default())
    }

    /// A pool of `num_blocks` blocks, of which block 0 is the null block.
    pub fn with_options(num_blocks: usize, options: &PoolOptions) -> Result<Self, KvCacheError> {
        let refused = KvCacheError::NumBlocks { got: num_blocks, max: MAX_BLOCKS };
        if !(2..=MAX_BLOCKS).contains(&num_blocks) {
            return Err(refused);
        }
        let count = num_blocks as u32;
        let priorities = if options.eviction == Eviction::Priority { num_blocks } else { 0 };
        let lists = if options.eviction == Eviction::Priority { usize::from(MAX_PRIORITY) + 2 } else { 2 };
        let (Ok(blocks), Ok(index), Ok(mentions), Ok(priorities), Ok(clock), Ok(pins)) = (
            Blocks::new(count, lists),
            PrefixIndex::new(count),
            filled(0, num_blocks),
            filled(DEFAULT_PRIORITY, priorities),
            Clock::new(num_blocks),
            retention::Pins::new(num_blocks, options.pin_blocks),
        ) else {
            return Err(KvCacheError::PoolMemory { num_blocks });
        };
        let log = (options.event_bytes > 0)
            .then(|| EventLog::new(options.event_bytes, options.algorithm.digest_len()));
        Ok(Self {
            blocks,
            index,
            mentions,
            fronts: [0; MAX_LISTS],
            eviction: options.eviction,
            priorities,
            clock,
            pins,
            log,
            allocations: 0,
            evictions: 0,
            queries: 0,
            hits: 0,
        })
    }

    /// Blocks in all, the null block counted.
    pub fn num_blocks(&self) -> usize {
        self.blocks.num_blocks() as usize
    }

    /// Blocks that can be allocated; cached ones among them are evicted when it comes to that.
    pub fn num_free(&self) -> usize {
        self.blocks.num_free() as usize
    }

    /// What was stored and removed since the events were last drained; None where no events are kept.
    pub fn events(&mut self) -> Option<&mut EventLog> {
        self.log.as_mut()
    }

    /// Lends `handles.len()` blocks, with one reference each, and writes their handles.
    pub fn alloc(&mut self, handles: &mut [i64]) -> Result<(), KvCacheError> {
        let (needed, free) = (handles.len(), self.num_free());
        if needed > free {
            return Err(KvCacheError::OutOfBlocks { needed, free });
        }
        self.take(needed, |position, id, generation| handles[position] = handle::pack(id, generation));
        Ok(())
    }

    /// Adds a reference to each block. A block named twice gets two.
    pub fn retain(&mut self, handles: &[i64]) -> Result<(), KvCacheError> {
        for (position, &handle) in handles.iter().enumerate() {
            if let Err(error) = self.retain_one(position, handle) {
                self.for_each_block(&handles[..position], Block::drop_reference);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Takes a reference from each block; a block without any is free, and its handles are stale.
    ///
    /// The order is the order of eviction: pass a sequence's blocks last one first, so that a prefix outlives
    /// what follows it.
    pub fn free(&mut self, handles: &[i64]) -> Result<(), KvCacheError> {
        for (position, &handle) in handles.iter().enumerate() {
            match self.live(position, handle) {
                Ok(0) => {}
                Ok(id) => self.blocks.get_mut(id).drop_reference(),
                Err(error) => {
                    self.for_each_block(&handles[..position], Block::add_reference);
                    return Err(error);
                }
            }
        }
        self.take_back(handles.iter().map(|&handle| handle::unpack(handle).0));
        Ok(())
    }

    /// Writes the id of each block.
    pub fn ids(&self, handles: &[i64], ids: &mut [i32]) -> Result<(), KvCacheError> {
        for (position, (&handle, out)) in handles.iter().zip(ids).enumerate() {
            *out = self.live(position, handle)? as i32;
        }
        Ok(())
    }

    /// Remembers what full blocks hold, so that [`Self::lookup`] finds them; returns how many were new.
    ///
    /// Blocks of equal content are all remembered, and the oldest is the one that is found.
    pub fn cache(
        &mut self,
        handles: &[i64],
        hashes: &[[u8; HASH_BYTES]],
        retention: &Retention,
    ) -> Result<usize, KvCacheError> {
        if handles.len() != hashes.len() {
            return Err(KvCacheError::HashCount { handles: handles.len(), hashes: hashes.len() });
        }
        let until = self.checked_retention(retention)?;
        let checked = self.check_hashes(handles, hashes);
        for &handle in handles {
            if let Some(mention) = self.mentions.get_mut(handle::unpack(handle).0 as usize) {
                *mention = 0;
            }
        }
        checked?;
        let before = self.index.len();
        for (&handle, hash) in handles.iter().zip(hashes) {
            self.remember(handle::unpack(handle).0, hash, 0, retention.priority, until);
        }
        let new = (self.index.len() - before) as usize;
        if let Some(log) = &mut self.log
            && new > 0
        {
            log.stored_hashes(hashes);
        }
        Ok(new)
    }

    /// Finds the blocks of the longest run of leading `hashes` that are cached, adds a reference to each, writes
    /// their handles and returns how many there are. `handles` must be as long as `hashes`.
    pub fn lookup(
        &mut self,
        hashes: &[[u8; HASH_BYTES]],
        handles: &mut [i64],
    ) -> Result<usize, KvCacheError> {
        if handles.len() != hashes.len() {
            return Err(KvCacheError::HashCount { handles: handles.len(), hashes: hashes.len() });
        }
        let mut found = 0;
        while let Some(id) = self.find_ahead(hashes, found, 0) {
            if self.blocks.get(id).references() == Block::MAX_REFERENCES {
                break; // a block that cannot be counted once more cannot be shared once more
            }
            self.reference(id);
            handles[found] = self.blocks.handle(id);
            found += 1;
        }
        self.queries += hashes.len() as u64;
        self.hits += found as u64;
        Ok(found)
    }

    /// How many leading `hashes` are cached. Changes nothing.
    pub fn cached_prefix(&self, hashes: &[[u8; HASH_BYTES]]) -> usize {
        (0..hashes.len()).take_while(|&position| self.find_ahead(hashes, position, 0).is_some()).count()
    }

    /// Forgets the blocks of these hashes, in every group: what they hold was lost, or must not be used again. Blocks
    /// that are lent out stay so. Returns how many blocks were forgotten.
    pub fn forget(&mut self, hashes: &[[u8; HASH_BYTES]]) -> usize {
        let before = self.index.len();
        for hash in hashes {
            for group in 0..=self.index.highest_group() {
                while let Some(id) = self.index.find(hash, group) {
                    self.forget_block(id);
                }
            }
        }
        (before - self.index.len()) as usize
    }

    /// Forgets what every block holds and unpins everything: the model has changed. Blocks that are lent out stay so.
    pub fn reset(&mut self) {
        self.unpin_all();
        for id in 1..self.blocks.num_blocks() {
            self.blocks.get_mut(id).set_cached(false);
        }
        self.index.clear();
        self.blocks.join_lists();
        if let Some(log) = &mut self.log {
            log.cleared();
        }
    }

    /// What the pool holds and has done so far.
    pub fn stats(&self) -> PoolStats {
        PoolStats {
            num_blocks: self.num_blocks(),
            free_blocks: self.num_free(),
            used_blocks: self.num_blocks() - 1 - self.num_free(),
            cached_blocks: self.index.len() as usize,
            pinned_blocks: self.pins.len(),
            allocations: self.allocations,
            evictions: self.evictions,
            queries: self.queries,
            hits: self.hits,
        }
    }

    /// Proves that lists, references, pins and index tell the same story; linear in the pool.
    pub fn check_invariants(&self) -> Result<(), KvCacheError> {
        let mentioned = self.mentions.iter().any(|&mention| mention != 0);
        let forgotten = if mentioned { Err("a mention was not cleared".to_owned()) } else { Ok(()) };
        let cached = |id| self.blocks.get(id).is_cached();
        let checked = self
            .blocks
            .check(|id| self.list_of(id))
            .and_then(|()| self.index.check(cached, |id| self.clock.is_limited(id)))
            .and_then(|()| self.pins.check(|id| cached(id) && self.blocks.get(id).references() > 0))
            .and(forgotten);
        checked.map_err(|what| KvCacheError::Invariant { what })
    }

    /// The id of a block that is lent out under this very handle.
    #[inline(always)]
    fn live(&self, position: usize, handle: i64) -> Result<u32, KvCacheError> {
        let (id, generation) = handle::unpack(handle);
        if handle == NULL_HANDLE {
            return Ok(0);
        }
        if handle < 0 || id >= self.blocks.num_blocks() {
            let last = self.blocks.num_blocks() - 1;
            return Err(KvCacheError::BlockId { position, handle, id, last });
        }
        let block = self.blocks.get(id);
        if block.generation != generation || block.references() == 0 {
            let generation = block.generation;
            return Err(KvCacheError::StaleBlock { position, handle, id, generation });
        }
        Ok(id)
    }

    #[inline(always)]
    fn retain_one(&mut self, position: usize, handle: i64) -> Result<(), KvCacheError> {
        let id = self.live(position, handle)?;
        let block = self.blocks.get_mut(id);
        if block.references() == Block::MAX_REFERENCES {
            return Err(KvCacheError::ReferenceCount { position, id, count: Block::MAX_REFERENCES });
        }
        if id != 0 {
            block.add_reference();
        }
        Ok(())
    }

    fn for_each_block(&mut self, handles: &[i64], change: impl Fn(&mut Block)) {
        let ids = handles.iter().map(|&handle| handle::unpack(handle).0);
        ids.filter(|&id| id != 0).for_each(|id| change(self.blocks.get_mut(id)));
    }

    /// Whether every handle is live and no block would hold two hashes; marks the blocks on its way.
    fn check_hashes(&mut self, handles: &[i64], hashes: &[[u8; HASH_BYTES]]) -> Result<(), KvCacheError> {
        for (position, (&handle, hash)) in handles.iter().zip(hashes).enumerate() {
            let id = self.live(position, handle)?;
            if id == 0 {
                return Err(KvCacheError::NullBlock { position, handle });
            }
            let mention = std::mem::replace(&mut self.mentions[id as usize], position as u32 + 1);
            let other = if self.blocks.get(id).is_cached() {
                self.index.hash_of(id)
            } else if mention != 0 {
                &hashes[mention as usize - 1]
            } else {
                hash
            };
            if other != hash {
                return Err(KvCacheError::HashConflict { position, id });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
