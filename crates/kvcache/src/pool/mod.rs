//! The block pool: lends cache blocks to requests and remembers what full blocks hold.
//!
//! Blocks are handed out and reused in vLLM's order (`vllm/v1/core/block_pool.py`): at first by id; a freed block
//! that holds nothing worth keeping goes to the front of the list of free blocks, a cached one to its end, so
//! that cached blocks are evicted least recently used first. Block 0 is the null block, which stands for "no
//! block" in tables: it is never lent out, and retaining or freeing it does nothing.
//!
//! Every call does all that it was asked to, or nothing and says why. Time is O(1) a block everywhere; after
//! [`BlockPool::new`] nothing is allocated.

mod blocks;
mod handle;
mod index;

pub use handle::NULL_HANDLE;

use crate::error::KvCacheError;
use crate::kernels::prefetch::prefetch_entry;
use blocks::{Block, Blocks};
use index::{BlockHash, PrefixIndex, filled};

/// Bytes of a hash that the pool takes.
pub const HASH_BYTES: usize = size_of::<BlockHash>();
/// Most blocks of a pool: 2 billion tokens at 16 a block, and 9 GB of books.
pub const MAX_BLOCKS: usize = 1 << 27;
/// How many hashes ahead a look-up asks the cache for table entries, and half as many for what they name.
const LOOKAHEAD: usize = 8;

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
    allocations: u64,
    evictions: u64,
    queries: u64,
    hits: u64,
}

impl BlockPool {
    /// A pool of `num_blocks` blocks, of which block 0 is the null block.
    pub fn new(num_blocks: usize) -> Result<Self, KvCacheError> {
        let refused = KvCacheError::NumBlocks { got: num_blocks, max: MAX_BLOCKS };
        if !(2..=MAX_BLOCKS).contains(&num_blocks) {
            return Err(refused);
        }
        let count = num_blocks as u32;
        let (Ok(blocks), Ok(index), Ok(mentions)) =
            (Blocks::new(count), PrefixIndex::new(count), filled(0, num_blocks))
        else {
            return Err(KvCacheError::PoolMemory { num_blocks });
        };
        Ok(Self { blocks, index, mentions, allocations: 0, evictions: 0, queries: 0, hits: 0 })
    }

    /// Blocks in all, the null block counted.
    pub fn num_blocks(&self) -> usize {
        self.blocks.ends() as usize
    }

    /// Blocks that can be allocated; cached ones among them are evicted when it comes to that.
    pub fn num_free(&self) -> usize {
        self.blocks.num_free() as usize
    }

    /// Lends `handles.len()` blocks, with one reference each, and writes their handles.
    pub fn alloc(&mut self, handles: &mut [i64]) -> Result<(), KvCacheError> {
        let (needed, free) = (handles.len(), self.num_free());
        if needed > free {
            return Err(KvCacheError::OutOfBlocks { needed, free });
        }
        let (index, evictions) = (&mut self.index, &mut self.evictions);
        self.blocks.take_first(handles, |id| {
            index.remove(id);
            *evictions += 1;
        });
        self.allocations += needed as u64;
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
        // Backwards, each block in front of those that are listed already: a block named twice then stands
        // where its last mention does, which is when its last reference went.
        let ends = self.blocks.ends();
        let mut oldest_kept = ends;
        for &handle in handles.iter().rev() {
            let (id, generation) = handle::unpack(handle);
            let block = self.blocks.get(id);
            if id == 0 || block.references() != 0 || block.generation != generation {
                continue;
            }
            if block.is_cached() {
                let anchor = self.blocks.get(oldest_kept).previous;
                self.blocks.list_behind(anchor, id);
                oldest_kept = id;
            } else {
                self.blocks.list_behind(ends, id);
            }
        }
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
    pub fn cache(&mut self, handles: &[i64], hashes: &[[u8; HASH_BYTES]]) -> Result<usize, KvCacheError> {
        if handles.len() != hashes.len() {
            return Err(KvCacheError::HashCount { handles: handles.len(), hashes: hashes.len() });
        }
        let checked = self.check_hashes(handles, hashes);
        for &handle in handles {
            if let Some(mention) = self.mentions.get_mut(handle::unpack(handle).0 as usize) {
                *mention = 0;
            }
        }
        checked?;
        let before = self.index.len();
        for (&handle, hash) in handles.iter().zip(hashes) {
            let (id, _) = handle::unpack(handle);
            let block = self.blocks.get_mut(id);
            if !block.is_cached() {
                block.set_cached(true);
                self.index.insert(id, hash);
            }
        }
        Ok((self.index.len() - before) as usize)
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
        while let Some(id) = self.find_ahead(hashes, found) {
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
        (0..hashes.len()).take_while(|&position| self.find_ahead(hashes, position).is_some()).count()
    }

    /// What the pool holds and has done so far.
    pub fn stats(&self) -> PoolStats {
        PoolStats {
            num_blocks: self.num_blocks(),
            free_blocks: self.num_free(),
            used_blocks: self.num_blocks() - 1 - self.num_free(),
            cached_blocks: self.index.len() as usize,
            allocations: self.allocations,
            evictions: self.evictions,
            queries: self.queries,
            hits: self.hits,
        }
    }

    /// Proves that lists, references and index tell the same story; linear in the pool.
    pub fn check_invariants(&self) -> Result<(), KvCacheError> {
        let mentioned = self.mentions.iter().any(|&mention| mention != 0);
        let forgotten = if mentioned { Err("a mention was not cleared".to_owned()) } else { Ok(()) };
        let cached = |id| self.blocks.get(id).is_cached();
        let checked = self.blocks.check().and_then(|()| self.index.check(cached)).and(forgotten);
        checked.map_err(|what| KvCacheError::Invariant { what })
    }

    /// The id of a block that is lent out under this very handle.
    #[inline(always)]
    fn live(&self, position: usize, handle: i64) -> Result<u32, KvCacheError> {
        let (id, generation) = handle::unpack(handle);
        if handle == NULL_HANDLE {
            return Ok(0);
        }
        if handle < 0 || id >= self.blocks.ends() {
            let last = self.blocks.ends() - 1;
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

    /// Adds a reference to a block, which leaves the list of free blocks if it was there.
    #[inline(always)]
    fn reference(&mut self, id: u32) {
        if self.blocks.get(id).references() == 0 {
            self.blocks.unlist(id);
        }
        self.blocks.get_mut(id).add_reference();
    }

    fn for_each_block(&mut self, handles: &[i64], change: impl Fn(&mut Block)) {
        let ids = handles.iter().map(|&handle| handle::unpack(handle).0);
        ids.filter(|&id| id != 0).for_each(|id| change(self.blocks.get_mut(id)));
    }

    /// The block of `hashes[position]`, while the cache fetches what the next positions will ask for.
    #[inline(always)]
    fn find_ahead(&self, hashes: &[[u8; HASH_BYTES]], position: usize) -> Option<u32> {
        if let Some(hash) = hashes.get(position + LOOKAHEAD) {
            self.index.prefetch_table(hash);
        }
        if let Some(hash) = hashes.get(position + LOOKAHEAD / 2) {
            let probable = self.index.prefetch_hash(hash);
            prefetch_entry(self.blocks.entries(), probable as usize);
        }
        self.index.find(hashes.get(position)?)
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
