//! What pool and manager share: blocks by id, taken, shared, remembered and taken back.

use super::blocks::Block;
use super::index::BlockHash;
use super::{BlockPool, Eviction, LOOKAHEAD, UNCACHED_LIST};
use crate::kernels::prefetch::prefetch_entry;

impl BlockPool {
    /// Takes `count` blocks, with one reference each; the caller has seen that so many are free.
    #[inline(always)]
    pub(crate) fn take(&mut self, count: usize, give: impl FnMut(usize, u32, u32)) {
        let Self { blocks, index, log, evictions, .. } = self;
        let evict = |id: u32| {
            if let Some(log) = log.as_mut() {
                log.removed(index.hash_of(id), index.group_of(id));
            }
            index.remove(id);
            *evictions += 1;
        };
        blocks.take_first(count, evict, give);
        self.allocations += count as u64;
    }

    /// Lists those blocks that have no reference any more, in the order of `ids`; 0 is passed over. A block that is
    /// named twice stands where its last mention does, which is when its last reference went.
    pub(super) fn take_back(&mut self, ids: impl DoubleEndedIterator<Item = u32>) {
        // Backwards, each block in front of those that this call has listed already.
        let mut touched = 0_u128;
        for id in ids.rev() {
            let block = self.blocks.get(id);
            if id == 0 || block.references() != 0 || block.is_listed() {
                continue;
            }
            self.blocks.end_loan(id);
            let list = self.list_of(id);
            let end = self.blocks.end_of(list);
            if list == UNCACHED_LIST {
                self.blocks.list_behind(end, list, id);
                continue;
            }
            let front = if touched >> list & 1 == 1 { self.fronts[list] } else { end };
            let anchor = self.blocks.get(front).previous;
            self.blocks.list_behind(anchor, list, id);
            self.fronts[list] = id;
            touched |= 1 << list;
        }
    }

    /// Takes a reference from each block and takes those back that have none left. A block without a reference is
    /// passed over: somebody has freed it by a handle that was never theirs.
    pub(crate) fn release(&mut self, ids: impl DoubleEndedIterator<Item = u32> + Clone) {
        for id in ids.clone() {
            let block = self.blocks.get_mut(id);
            if id != 0 && block.references() > 0 {
                block.drop_reference();
            }
        }
        self.take_back(ids);
    }

    /// The list that a free block belongs to.
    #[inline(always)]
    pub(super) fn list_of(&self, id: u32) -> usize {
        if !self.blocks.get(id).is_cached() {
            UNCACHED_LIST
        } else if self.eviction == Eviction::Priority {
            1 + usize::from(self.priorities[id as usize])
        } else {
            1
        }
    }

    /// Adds a reference to a block, which leaves the list of free blocks if it was there.
    #[inline(always)]
    pub(crate) fn reference(&mut self, id: u32) {
        if self.blocks.get(id).references() == 0 {
            self.blocks.unlist(id);
        }
        self.blocks.get_mut(id).add_reference();
    }

    /// Takes a reference from a block that has another one.
    pub(crate) fn drop_shared(&mut self, id: u32) {
        self.blocks.get_mut(id).drop_reference();
    }

    pub(crate) fn references(&self, id: u32) -> u32 {
        self.blocks.get(id).references()
    }

    pub(crate) fn can_be_shared(&self, id: u32) -> bool {
        self.references(id) < Block::MAX_REFERENCES
    }

    pub(crate) fn can_be_shared_by(&self, id: u32, more: usize) -> bool {
        more <= (Block::MAX_REFERENCES - self.references(id)) as usize
    }

    /// How often a block has come back to the pool.
    pub(crate) fn generation(&self, id: u32) -> u32 {
        self.blocks.get(id).generation
    }

    /// Remembers what a block holds, unless it is remembered already; it has a reference. Then only its retention is
    /// renewed.
    #[inline(always)]
    pub(crate) fn remember(
        &mut self,
        id: u32,
        hash: &BlockHash,
        group: u8,
        priority: Option<u8>,
        until: u32,
    ) {
        let block = self.blocks.get_mut(id);
        if !block.is_cached() {
            block.set_cached(true);
            self.index.insert(id, hash, group);
        }
        if let (Eviction::Priority, Some(slot)) = (self.eviction, self.priorities.get_mut(id as usize)) {
            *slot = priority.unwrap_or(super::DEFAULT_PRIORITY);
        }
        if !self.pins.is_pinned(id) {
            self.clock.set_deadline(id, until);
            if self.clock.is_limited(id) {
                self.index.chains_mut().limit(id);
            }
        }
    }

    /// Forgets what a cached block holds.
    pub(crate) fn forget_block(&mut self, id: u32) {
        self.unpin_block(id);
        if let Some(log) = &mut self.log {
            log.removed(self.index.hash_of(id), self.index.group_of(id));
        }
        self.index.remove(id);
        self.blocks.get_mut(id).set_cached(false);
        if self.blocks.get(id).is_listed() {
            self.blocks.unlist(id);
            let end = self.blocks.end_of(UNCACHED_LIST);
            self.blocks.list_behind(end, UNCACHED_LIST, id);
        }
    }

    /// The block that a look-up of this hash finds: the oldest whose time is not over.
    #[inline(always)]
    pub(crate) fn find(&self, hash: &BlockHash, group: u8) -> Option<u32> {
        let oldest = self.index.find(hash, group)?;
        if self.clock.is_over(oldest) {
            return self.index.alike(oldest).find(|&id| !self.clock.is_over(id));
        }
        Some(oldest)
    }

    /// The block of `hashes[position]`, while the cache fetches what the next positions will ask for.
    #[inline(always)]
    pub(crate) fn find_ahead(&self, hashes: &[BlockHash], position: usize, group: u8) -> Option<u32> {
        if let Some(hash) = hashes.get(position + LOOKAHEAD) {
            self.index.prefetch_table(hash, group);
        }
        if let Some(hash) = hashes.get(position + LOOKAHEAD / 2) {
            let probable = self.index.prefetch_hash(hash, group);
            prefetch_entry(self.blocks.entries(), probable as usize);
        }
        self.find(hashes.get(position)?, group)
    }

    pub(crate) fn count_queries(&mut self, queries: usize, hits: usize) {
        self.queries += queries as u64;
        self.hits += hits as u64;
    }
}
