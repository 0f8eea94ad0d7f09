//! The prefix index: from a block's hash to the blocks that hold it.
//!
//! An open table of `(tag, block)` entries with linear probing, never more than half full, and an arena with the
//! whole hash of each cached block. The tag is 32 bits of the hash, mixed with a secret of the pool: whoever can
//! choose tokens still cannot choose where their hashes fall. A tag that fits is only a candidate; the arena
//! decides. A hash is looked for in one cache group at a time: the same tokens have a block in each. Blocks with equal
//! hashes form a ring in the order in which they were cached, and only the oldest is
//! in the table.

use super::chains::Chains;
use crate::kernels::prefetch::prefetch_entry;
use std::collections::TryReserveError;
use std::hash::{BuildHasher, RandomState};

/// A full hash; shorter digests are filled with zeros.
pub(crate) type BlockHash = [u8; 32];

/// A ring link of a block that is not cached.
const UNCACHED: u32 = u32::MAX;
/// A table entry without a block: block 0 is the null block, which is never cached.
const EMPTY: u64 = 0;

#[derive(Debug)]
pub(super) struct PrefixIndex {
    /// `tag << 32 | block`.
    table: Vec<u64>,
    /// An entry's home is its tag shifted by this.
    home_shift: u32,
    secret: [u64; 2],
    hashes: Vec<BlockHash>,
    /// The cache group of each cached block.
    groups: Vec<u8>,
    highest_group: u8,
    ring: Vec<RingLinks>,
    /// What cached blocks hold and what follows them; begins and ends with their entries here.
    chains: Chains,
    len: u32,
}

/// Neighbours among the blocks of one hash; a block alone is its own neighbour.
#[derive(Clone, Copy, Debug)]
struct RingLinks {
    previous: u32,
    next: u32,
}

impl PrefixIndex {
    /// An empty index for the ids below `num_blocks`, which is at most 2³⁰.
    pub(super) fn new(num_blocks: u32) -> Result<Self, TryReserveError> {
        let slots = (2 * num_blocks as usize).next_power_of_two();
        let random = || RandomState::new().hash_one(num_blocks);
        Ok(Self {
            table: filled(EMPTY, slots)?,
            home_shift: 32 - slots.trailing_zeros(),
            secret: [random(), random()],
            hashes: filled([0; 32], num_blocks as usize)?,
            groups: filled(0, num_blocks as usize)?,
            highest_group: 0,
            ring: filled(RingLinks { previous: UNCACHED, next: UNCACHED }, num_blocks as usize)?,
            chains: Chains::default(),
            len: 0,
        })
    }

    /// Cached blocks.
    pub(super) fn len(&self) -> u32 {
        self.len
    }

    #[inline(always)]
    pub(super) fn hash_of(&self, id: u32) -> &BlockHash {
        &self.hashes[id as usize]
    }

    /// No cached block is in a group above this one.
    pub(super) fn highest_group(&self) -> u8 {
        self.highest_group
    }

    pub(super) fn group_of(&self, id: u32) -> u8 {
        self.groups[id as usize]
    }

    /// Whether no other block has the hash and the group of `id`, which is cached.
    #[inline(always)]
    pub(super) fn is_alone(&self, id: u32) -> bool {
        self.ring[id as usize].next == id
    }

    #[inline(always)]
    pub(super) fn chains(&self) -> &Chains {
        &self.chains
    }

    #[inline(always)]
    pub(super) fn chains_mut(&mut self) -> &mut Chains {
        &mut self.chains
    }

    /// The oldest block with this hash in this group.
    #[inline]
    pub(super) fn find(&self, hash: &BlockHash, group: u8) -> Option<u32> {
        self.position(hash, group).map(|position| block_of(self.table[position]))
    }

    /// The blocks with the hash and group of `id`, which is cached, from `id` on.
    pub(super) fn alike(&self, id: u32) -> impl Iterator<Item = u32> {
        std::iter::successors(Some(id), move |&at| {
            let next = self.ring[at as usize].next;
            (next != id).then_some(next)
        })
    }

    /// Forgets every block.
    pub(super) fn clear(&mut self) {
        self.table.fill(EMPTY);
        self.ring.fill(RingLinks { previous: UNCACHED, next: UNCACHED });
        self.chains.clear();
        self.len = 0;
    }

    /// Asks the cache for what [`Self::find`] reads first.
    #[inline(always)]
    pub(super) fn prefetch_table(&self, hash: &BlockHash, group: u8) {
        prefetch_entry(&self.table, self.home(self.tag(hash, group)));
    }

    /// Asks the cache for what [`Self::find`] reads next, and returns the block that it will probably find.
    #[inline(always)]
    pub(super) fn prefetch_hash(&self, hash: &BlockHash, group: u8) -> u32 {
        let probable = block_of(self.table[self.home(self.tag(hash, group))]);
        prefetch_entry(&self.hashes, probable as usize);
        probable
    }

    /// Adds a block that is not cached.
    pub(super) fn insert(&mut self, id: u32, hash: &BlockHash, group: u8) {
        let entry = u64::from(self.tag(hash, group)) << 32 | u64::from(id);
        if let Some(position) = self.position(hash, group) {
            let oldest = block_of(self.table[position]);
            let newest = self.ring[oldest as usize].previous;
            self.ring[id as usize] = RingLinks { previous: newest, next: oldest };
            self.ring[newest as usize].next = id;
            self.ring[oldest as usize].previous = id;
            self.chains.begin(id, oldest);
        } else {
            let mut position = self.home((entry >> 32) as u32);
            while self.table[position] != EMPTY {
                position = self.after(position);
            }
            self.table[position] = entry;
            self.ring[id as usize] = RingLinks { previous: id, next: id };
        }
        self.hashes[id as usize] = *hash;
        self.groups[id as usize] = group;
        self.highest_group = self.highest_group.max(group);
        self.len += 1;
    }

    /// Removes a block that is cached.
    pub(super) fn remove(&mut self, id: u32) {
        let uncached = RingLinks { previous: UNCACHED, next: UNCACHED };
        let RingLinks { previous, next } = std::mem::replace(&mut self.ring[id as usize], uncached);
        self.len -= 1;
        self.chains.end(id);
        let Some(position) = self.position(&self.hashes[id as usize], self.groups[id as usize]) else {
            return; // unreachable while the books are right, which `check` proves
        };
        if next == id {
            self.close_gap(position);
            return;
        }
        self.ring[previous as usize].next = next;
        self.ring[next as usize].previous = previous;
        if block_of(self.table[position]) == id {
            self.table[position] = self.table[position] >> 32 << 32 | u64::from(next);
        }
    }

    /// Empties an entry and moves those behind it forward that would no longer be found.
    fn close_gap(&mut self, mut gap: usize) {
        let mask = self.table.len() - 1;
        let mut position = gap;
        loop {
            position = self.after(position);
            let entry = self.table[position];
            if entry == EMPTY {
                break;
            }
            let from_home = position.wrapping_sub(self.home((entry >> 32) as u32)) & mask;
            if from_home >= position.wrapping_sub(gap) & mask {
                self.table[gap] = entry;
                gap = position;
            }
        }
        self.table[gap] = EMPTY;
    }

    /// Where in the table this hash stands.
    #[inline]
    fn position(&self, hash: &BlockHash, group: u8) -> Option<usize> {
        let tag = self.tag(hash, group);
        let mut position = self.home(tag);
        loop {
            let entry = self.table[position];
            if entry == EMPTY {
                return None;
            }
            let id = block_of(entry) as usize;
            if (entry >> 32) as u32 == tag && self.hashes[id] == *hash && self.groups[id] == group {
                return Some(position);
            }
            position = self.after(position);
        }
    }

    /// Two words of the hash, each blinded with a secret, multiplied and folded; the group is added to one of them.
    #[inline(always)]
    fn tag(&self, hash: &BlockHash, group: u8) -> u32 {
        let word = |chunk: [u8; 8]| u64::from_le_bytes(chunk);
        let [a, b, ..] = hash.as_chunks::<8>().0 else { return 0 };
        let product = u128::from(word(*a).wrapping_add(group.into()) ^ self.secret[0])
            * u128::from(word(*b) ^ self.secret[1]);
        ((product >> 64) as u64 ^ product as u64) as u32
    }

    #[inline(always)]
    fn home(&self, tag: u32) -> usize {
        (tag >> self.home_shift) as usize
    }

    #[inline(always)]
    fn after(&self, position: usize) -> usize {
        (position + 1) & (self.table.len() - 1)
    }

    /// Proves that every entry is found, every ring closes, `is_cached` agrees for every block, and the chains tell the
    /// truth. `is_limited` says whether a block's time will be over.
    pub(super) fn check(
        &self,
        is_cached: impl Fn(u32) -> bool,
        is_limited: impl Fn(u32) -> bool,
    ) -> Result<(), String> {
        let mut seen = 0;
        for (position, &entry) in self.table.iter().enumerate().filter(|(_, entry)| **entry != EMPTY) {
            let oldest = block_of(entry);
            let hash = self.hash_of(oldest);
            let group = self.group_of(oldest);
            if self.position(hash, group) != Some(position) {
                return Err(format!("block {oldest} is not found by its hash"));
            }
            let mut id = oldest;
            loop {
                let next = self.ring[id as usize].next;
                if seen == self.len || next == UNCACHED || self.ring[next as usize].previous != id {
                    return Err(format!("the blocks of one hash are badly linked at block {id}"));
                }
                if self.hash_of(id) != hash || self.group_of(id) != group || !is_cached(id) {
                    return Err(format!("block {id} is indexed under a hash that it does not hold"));
                }
                (id, seen) = (next, seen + 1);
                if id == oldest {
                    break;
                }
            }
        }
        let is_special = |id| !self.is_alone(id) || is_limited(id);
        self.chains.check(&is_cached, |id| *self.hash_of(id), |id| self.group_of(id), is_special)?;
        let marked = (0..self.ring.len() as u32).filter(|&id| is_cached(id)).count();
        if seen != self.len || marked != self.len as usize {
            return Err(format!(
                "{} blocks are counted as cached, {seen} indexed, {marked} marked",
                self.len
            ));
        }
        Ok(())
    }
}

fn block_of(entry: u64) -> u32 {
    entry as u32
}

/// A vector of equal values, or an error where there is no memory for it.
pub(super) fn filled<T: Clone>(value: T, len: usize) -> Result<Vec<T>, TryReserveError> {
    let mut values = Vec::new();
    values.try_reserve_exact(len)?;
    values.resize(len, value);
    Ok(values)
}
