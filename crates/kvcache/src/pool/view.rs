//! Looking without touching: what is cached, who holds a block, which one is lent out next.

use super::blocks::Block;
use super::{BlockPool, HASH_BYTES};
use crate::error::KvCacheError;

/// What [`BlockPool::peek`] saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Peek {
    /// Leading hashes that are cached.
    pub found: usize,
    /// How many of their blocks nobody holds: a look-up would take those from the free ones. A hash that comes twice,
    /// which no chain has, counts twice.
    pub idle: usize,
}

impl BlockPool {
    /// Writes the ids of the blocks that [`Self::lookup`] would find now. Changes nothing. `ids` must be as long as
    /// `hashes`.
    pub fn peek(&self, hashes: &[[u8; HASH_BYTES]], ids: &mut [i32]) -> Result<Peek, KvCacheError> {
        if ids.len() != hashes.len() {
            return Err(KvCacheError::HashCount { handles: ids.len(), hashes: hashes.len() });
        }
        let mut seen = Peek::default();
        while let Some(id) = self.find_ahead(hashes, seen.found, 0) {
            let references = self.blocks.get(id).references();
            if references == Block::MAX_REFERENCES {
                break;
            }
            ids[seen.found] = id as i32;
            seen.found += 1;
            seen.idle += usize::from(references == 0);
        }
        Ok(seen)
    }

    /// References of the block with this id, and its hash if it is cached.
    pub fn state_of(&self, id: usize) -> Result<(u32, Option<&[u8; HASH_BYTES]>), KvCacheError> {
        let last = self.blocks.num_blocks() - 1;
        let number = u32::try_from(id).unwrap_or(u32::MAX);
        if number > last {
            let handle = i64::try_from(id).unwrap_or(i64::MAX);
            return Err(KvCacheError::BlockId { position: 0, handle, id: number, last });
        }
        let block = self.blocks.get(number);
        Ok((block.references(), block.is_cached().then(|| self.index.hash_of(number))))
    }

    /// The ids of all free blocks, in the order in which they will be lent out.
    pub fn free_order(&self) -> Vec<i32> {
        let mut ids = Vec::with_capacity(self.num_free());
        for list in 0..self.blocks.num_lists() {
            let end = self.blocks.end_of(list);
            let mut id = self.blocks.get(end).next;
            while id != end {
                ids.push(id as i32);
                id = self.blocks.get(id).next;
            }
        }
        ids
    }
}
