//! The proof that tables and pool tell the same story.

use super::BlockManager;
use crate::error::KvCacheError;
use crate::pool::BlockPool;

impl BlockManager {
    /// Proves that every table is as long as its tokens need, that every block in it is lent out as often as tables
    /// name it, or more often, and that the pool's own books are right. Linear in the pool and in the tables.
    pub fn check_invariants(&self, pool: &BlockPool) -> Result<(), KvCacheError> {
        pool.check_invariants()?;
        self.check(pool).map_err(|what| KvCacheError::Invariant { what })
    }

    fn check(&self, pool: &BlockPool) -> Result<(), String> {
        let mut named = vec![0_u32; pool.num_blocks()];
        let (mut running, mut tokens) = (0, 0);
        for (slot, sequence) in self.sequences.iter().enumerate() {
            if sequence.is_marked || sequence.copy_groups != 0 {
                return Err(format!("sequence {slot} is still in a call"));
            }
            if !sequence.is_running {
                if sequence.num_tokens != 0 || sequence.tables.iter().any(|table| !table.is_empty()) {
                    return Err(format!("sequence {slot} was released and holds blocks"));
                }
                continue;
            }
            running += 1;
            tokens += sequence.num_tokens;
            if sequence.tail.len() != sequence.num_tokens % self.block_size() {
                return Err(format!("sequence {slot} has a tail of {} tokens", sequence.tail.len()));
            }
            for (table, &first) in sequence.tables.iter().zip(&sequence.first_held) {
                if table.len() != sequence.num_tokens.div_ceil(self.block_size()) {
                    return Err(format!("sequence {slot} has {} blocks", table.len()));
                }
                for (block, &id) in table.iter().enumerate() {
                    if (id == 0) != (block < first) {
                        return Err(format!("block {block} of sequence {slot} is null, or is not"));
                    }
                    named[id as usize] += 1;
                }
            }
        }
        let wrong = (1..named.len()).find(|&id| named[id] > pool.references(id as u32));
        if let Some(id) = wrong {
            return Err(format!("block {id} stands in {} tables and has fewer references", named[id]));
        }
        if running != self.stats.sequences || tokens != self.stats.tokens {
            return Err(format!("{running} sequences of {tokens} tokens are counted otherwise"));
        }
        if running + self.idle.len() != self.sequences.len() {
            return Err("a place for a sequence was lost".to_owned());
        }
        Ok(())
    }
}
