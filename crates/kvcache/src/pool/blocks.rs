//! The blocks' books: references, generations, and the lists of free blocks, whose links lie in the blocks.

use super::handle::{self, next_generation};

/// A link of a block that is in no list.
const UNLISTED: u32 = u32::MAX;
/// In [`Block::state`]: the block is in the prefix index. The other bits count references.
const CACHED: u32 = 1 << 31;
/// Most lists of free blocks: one bit each says which have any.
pub(super) const MAX_LISTS: usize = u128::BITS as usize;

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

    pub(super) const fn is_listed(&self) -> bool {
        self.next != UNLISTED
    }
}

/// All blocks of a pool, and the rings of those that are free. List 0 is lent out first, then list 1 and so on, each
/// from its front.
#[derive(Debug)]
pub(super) struct Blocks {
    /// One entry a block, and one a list that joins both of its ends.
    entries: Vec<Block>,
    /// Blocks, the null block counted.
    count: u32,
    /// Bit `l`: list `l` has a block.
    occupied: u128,
    free: u32,
}

impl Blocks {
    /// `num_blocks` blocks, all in list 0 but block 0, which belongs to no list; `lists` is at most [`MAX_LISTS`].
    pub(super) fn new(num_blocks: u32, lists: usize) -> Result<Self, std::collections::TryReserveError> {
        let mut entries = Vec::new();
        entries.try_reserve_exact(num_blocks as usize + lists)?;
        let first_end = num_blocks;
        entries.extend((0..num_blocks).map(|id| Block {
            previous: if id == 1 { first_end } else { id.wrapping_sub(1) },
            next: id + 1,
            generation: 0,
            state: 0,
        }));
        entries[0] = Block { previous: UNLISTED, next: UNLISTED, generation: 0, state: 0 };
        entries.push(Block { previous: num_blocks - 1, next: 1, generation: 0, state: 0 });
        entries.extend((1..lists as u32).map(|list| {
            let end = num_blocks + list;
            Block { previous: end, next: end, generation: 0, state: 0 }
        }));
        Ok(Self { entries, count: num_blocks, occupied: 1, free: num_blocks - 1 })
    }

    pub(super) fn num_blocks(&self) -> u32 {
        self.count
    }

    /// The entry that joins both ends of a list.
    pub(super) fn end_of(&self, list: usize) -> u32 {
        self.count + list as u32
    }

    /// Lists that there are, with blocks or without.
    pub(super) fn num_lists(&self) -> usize {
        self.entries.len() - self.count as usize
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

    /// Takes a free block out of its list; its references stay 0.
    pub(super) fn unlist(&mut self, id: u32) {
        let Block { previous, next, .. } = *self.get(id);
        self.get_mut(previous).next = next;
        self.get_mut(next).previous = previous;
        if previous == next && next >= self.count {
            self.occupied &= !(1 << (next - self.count));
        }
        let block = self.get_mut(id);
        (block.previous, block.next) = (UNLISTED, UNLISTED);
        self.free -= 1;
    }

    /// Puts a block without references into `list`, directly behind `anchor`, which is in it.
    pub(super) fn list_behind(&mut self, anchor: u32, list: usize, id: u32) {
        let next = std::mem::replace(&mut self.get_mut(anchor).next, id);
        self.get_mut(next).previous = id;
        let block = self.get_mut(id);
        (block.previous, block.next) = (anchor, next);
        self.occupied |= 1 << list;
        self.free += 1;
    }

    /// Ends a block's loan: its handles are stale from now on.
    pub(super) fn end_loan(&mut self, id: u32) {
        let block = self.get_mut(id);
        block.generation = next_generation(block.generation);
    }

    /// Takes the first `count` blocks, each with one reference, and passes position, id and generation of each to
    /// `give`. `evict` is told before of each that is cached. The caller has seen that there are as many.
    #[inline(always)]
    pub(super) fn take_first(
        &mut self,
        count: usize,
        mut evict: impl FnMut(u32),
        mut give: impl FnMut(usize, u32, u32),
    ) {
        let mut position = 0;
        while position < count && self.occupied != 0 {
            let list = self.occupied.trailing_zeros() as usize;
            let end = self.end_of(list);
            let mut id = self.get(end).next;
            while position < count && id != end {
                let block = self.get_mut(id);
                if block.is_cached() {
                    evict(id);
                }
                block.state = 1;
                give(position, id, block.generation);
                let next = std::mem::replace(&mut block.next, UNLISTED);
                block.previous = UNLISTED;
                id = next;
                position += 1;
                self.free -= 1;
            }
            self.get_mut(end).next = id;
            self.get_mut(id).previous = end;
            if id == end {
                self.occupied &= !(1 << list);
            }
        }
    }

    /// Puts the blocks of all lists into list 0, those of lower lists first.
    pub(super) fn join_lists(&mut self) {
        let first_end = self.end_of(0);
        while self.occupied > 1 {
            let list = (self.occupied & !1).trailing_zeros() as usize;
            let end = self.end_of(list);
            let Block { previous: last, next: first, .. } = *self.get(end);
            let before = self.get(first_end).previous;
            self.get_mut(before).next = first;
            self.get_mut(first).previous = before;
            self.get_mut(last).next = first_end;
            self.get_mut(first_end).previous = last;
            let ring = self.get_mut(end);
            (ring.previous, ring.next) = (end, end);
            self.occupied = (self.occupied & !(1 << list)) | 1;
        }
    }

    /// Walks all lists and proves that they and the reference counts tell the same story. `list_of` says where a free
    /// block belongs.
    pub(super) fn check(&self, list_of: impl Fn(u32) -> usize) -> Result<(), String> {
        let mut seen = 0;
        for list in 0..self.num_lists() {
            let end = self.end_of(list);
            let (mut id, mut previous) = (self.get(end).next, end);
            if (id == end) == (self.occupied >> list & 1 == 1) {
                return Err(format!("list {list} is empty, or is not, against its bit"));
            }
            while id != end {
                let block = self.get(id);
                if id == 0 || id >= self.count || block.previous != previous || seen > self.free {
                    return Err(format!("the list of free blocks is broken at block {id}"));
                }
                if block.references() != 0 {
                    return Err(format!(
                        "block {id} is listed as free with {} references",
                        block.references()
                    ));
                }
                if list_of(id) != list {
                    return Err(format!("block {id} is in list {list} and belongs to {}", list_of(id)));
                }
                (previous, id, seen) = (id, block.next, seen + 1);
            }
            if self.get(end).previous != previous {
                return Err(format!("the list of free blocks is broken at block {previous}"));
            }
        }
        if seen != self.free {
            return Err(format!("{} blocks are counted as free and {seen} are listed", self.free));
        }
        for id in 1..self.count {
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
