//! The blocks' books: references, generations, and the list of free blocks, whose links lie in the blocks.

use super::handle::{self, next_generation};

/// A link of a block that is in no list.
const UNLISTED: u32 = u32::MAX;
/// In [`Block::state`]: the block is in the prefix index. The other bits count references.
const CACHED: u32 = 1 << 31;

/// Sixteen bytes, so that a block's books lie in one cache line.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    pub(super) previous: u32,
    pub(super) next: u32,
    pub(super) generation: u32,
    state: u32,
}

impl Block {
    /// Most references that a block can have.
    pub(super) const MAX_REFERENCES: u32 = CACHED - 1;

    pub(super) const fn references(&self) -> u32 {
        self.state & !CACHED
    }

    pub(super) const fn is_cached(&self) -> bool {
        self.state & CACHED != 0
    }

    pub(super) const fn set_cached(&mut self, cached: bool) {
        self.state = self.references() | if cached { CACHED } else { 0 };
    }

    /// One reference more; the caller has seen that there are fewer than [`Self::MAX_REFERENCES`].
    pub(super) const fn add_reference(&mut self) {
        self.state += 1;
    }

    /// One reference less; the caller has seen that there is one.
    pub(super) const fn drop_reference(&mut self) {
        self.state -= 1;
    }

    const fn is_listed(&self) -> bool {
        self.next != UNLISTED
    }
}

/// All blocks of a pool, and the ring of those that are free, in the order in which they are lent out.
#[derive(Debug)]
pub(super) struct Blocks {
    /// One entry a block, and a last one that joins both ends of the list of free blocks.
    entries: Vec<Block>,
    free: u32,
}

impl Blocks {
    /// `num_blocks` blocks, all free but block 0, which belongs to no list.
    pub(super) fn new(num_blocks: u32) -> Result<Self, std::collections::TryReserveError> {
        let ends = num_blocks;
        let mut entries = Vec::new();
        entries.try_reserve_exact(ends as usize + 1)?;
        entries.extend((0..=ends).map(|id| Block {
            previous: if id == 1 { ends } else { id.wrapping_sub(1) },
            next: if id == ends { 1 } else { id + 1 },
            generation: 0,
            state: 0,
        }));
        entries[0] = Block { previous: UNLISTED, next: UNLISTED, generation: 0, state: 0 };
        Ok(Self { entries, free: num_blocks - 1 })
    }

    /// The entry that joins both ends of the list; also the number of blocks.
    pub(super) fn ends(&self) -> u32 {
        self.entries.len() as u32 - 1
    }

    pub(super) fn num_free(&self) -> u32 {
        self.free
    }

    pub(super) fn get(&self, id: u32) -> &Block {
        &self.entries[id as usize]
    }

    pub(super) fn get_mut(&mut self, id: u32) -> &mut Block {
        &mut self.entries[id as usize]
    }

    /// For prefetching.
    pub(super) fn entries(&self) -> &[Block] {
        &self.entries
    }

    pub(super) fn handle(&self, id: u32) -> i64 {
        handle::pack(id, self.get(id).generation)
    }

    /// Takes a free block out of the list; its references stay 0.
    pub(super) fn unlist(&mut self, id: u32) {
        let Block { previous, next, .. } = *self.get(id);
        self.get_mut(previous).next = next;
        self.get_mut(next).previous = previous;
        let block = self.get_mut(id);
        (block.previous, block.next) = (UNLISTED, UNLISTED);
        self.free -= 1;
    }

    /// Puts a block without references into the list, directly behind `anchor`, and ends its loan.
    pub(super) fn list_behind(&mut self, anchor: u32, id: u32) {
        let next = std::mem::replace(&mut self.get_mut(anchor).next, id);
        self.get_mut(next).previous = id;
        let block = self.get_mut(id);
        (block.previous, block.next) = (anchor, next);
        block.generation = next_generation(block.generation);
        self.free += 1;
    }

    /// Takes the first `out.len()` blocks, each with one reference, and writes their handles. `evict` is told of
    /// each that is cached. The caller has seen that there are as many.
    pub(super) fn take_first(&mut self, out: &mut [i64], mut evict: impl FnMut(u32)) {
        let ends = self.ends();
        let mut id = self.get(ends).next;
        for handle in &mut *out {
            let block = self.get_mut(id);
            if block.is_cached() {
                evict(id);
            }
            block.state = 1;
            *handle = handle::pack(id, block.generation);
            let next = std::mem::replace(&mut block.next, UNLISTED);
            block.previous = UNLISTED;
            id = next;
        }
        self.get_mut(ends).next = id;
        self.get_mut(id).previous = ends;
        self.free -= out.len() as u32;
    }

    /// Walks the whole list and proves that it and the reference counts tell the same story.
    pub(super) fn check(&self) -> Result<(), String> {
        let ends = self.ends();
        let (mut id, mut previous, mut seen) = (self.get(ends).next, ends, 0);
        while id != ends {
            let block = self.get(id);
            if id == 0 || id > ends || block.previous != previous || seen > self.free {
                return Err(format!("the list of free blocks is broken at block {id}"));
            }
            if block.references() != 0 {
                return Err(format!("block {id} is listed as free with {} references", block.references()));
            }
            (previous, id, seen) = (id, block.next, seen + 1);
        }
        if self.get(ends).previous != previous || seen != self.free {
            return Err(format!("{} blocks are counted as free and {seen} are listed", self.free));
        }
        for id in 1..ends {
            let block = self.get(id);
            if block.is_listed() != (block.references() == 0) {
                return Err(format!("block {id} has {} references and is lost", block.references()));
            }
        }
        let null = self.get(0);
        if null.is_listed() || null.state != 0 || null.generation != 0 {
            return Err("the null block was lent out".to_owned());
        }
        Ok(())
    }
}
