//! One step of the whole batch: tokens appended to all running sequences.

use super::sequence::Sequence;
use super::{BlockManager, CacheGroup, MAX_TOKENS};
use crate::error::KvCacheError;
use crate::events::Stored;
use crate::hash::Algorithm;
use crate::pool::{BlockHash, BlockPool, Content, Retention};

impl BlockManager {
    /// Appends tokens: `counts[i]` of them to `sequences[i]`, or one to each. Returns pairs of blocks, source and
    /// target, whose pages must be copied before the step is computed.
    ///
    /// What came before is computed by now: blocks that a window has left behind come back to the pool first.
    pub fn step(
        &mut self,
        pool: &mut BlockPool,
        sequences: &[i64],
        tokens: &[u32],
        counts: Option<&[usize]>,
    ) -> Result<&[[u32; 2]], KvCacheError> {
        if let Some(counts) = counts
            && counts.len() != sequences.len()
        {
            return Err(KvCacheError::StepCounts { got: counts.len(), expected: sequences.len() });
        }
        let expected = counts.map_or(sequences.len(), |counts| {
            counts.iter().fold(0, |sum: usize, &count| sum.saturating_add(count))
        });
        if tokens.len() != expected {
            return Err(KvCacheError::StepTokens { got: tokens.len(), expected });
        }
        self.mark(sequences)?;
        let count_of = |position: usize| counts.map_or(1, |counts| counts[position]);
        let needed = self.prepare(pool, sequences, &count_of)?;
        self.slide_windows(pool, sequences);

        self.fresh.clear();
        let fresh = &mut self.fresh;
        pool.take(needed, |_, id, _| fresh.push(id));
        self.copies.clear();
        let (mut taken, mut read) = (0, 0);
        for (position, &handle) in sequences.iter().enumerate() {
            let (slot, count) = (handle as u32 as usize, count_of(position));
            taken = self.give_blocks(pool, slot, count, taken);
            self.append(pool, slot, &tokens[read..read + count]);
            read += count;
        }
        self.stats.tokens += expected;
        self.stats.appended_tokens += expected as u64;
        self.stats.copied_blocks += self.copies.len() as u64;
        Ok(&self.copies)
    }

    /// Counts the blocks that the step needs, and lets go of last blocks that others share; undoes that where there
    /// are too few.
    fn prepare(
        &mut self,
        pool: &mut BlockPool,
        sequences: &[i64],
        count_of: &impl Fn(usize) -> usize,
    ) -> Result<usize, KvCacheError> {
        let block_size = self.block_size();
        let (mut needed, mut coming) = (0, 0);
        let mut longest = 0;
        for (position, &handle) in sequences.iter().enumerate() {
            let sequence = &mut self.sequences[handle as u32 as usize];
            let (start, end) = (sequence.num_tokens, sequence.num_tokens.saturating_add(count_of(position)));
            longest = longest.max(end);
            sequence.copy_groups = 0;
            needed += (end.div_ceil(block_size) - start.div_ceil(block_size)) * self.groups.len();
            if start % block_size != 0 && end > start {
                for (group, table) in sequence.tables.iter().enumerate() {
                    let last = table[start / block_size];
                    if pool.references(last) > 1 {
                        pool.drop_shared(last);
                        sequence.copy_groups |= 1 << group;
                        needed += 1;
                    }
                }
            }
            for (group, kind) in self.groups.iter().enumerate() {
                let leaving = sequence.first_held[group]..kind.first_needed(start, block_size);
                let alone = |&&id: &&u32| id != 0 && pool.references(id) == 1;
                coming += leaving.filter_map(|block| sequence.tables[group].get(block)).filter(alone).count();
            }
        }
        let free = pool.num_free();
        if needed <= free + coming && longest <= MAX_TOKENS {
            return Ok(needed);
        }
        for &handle in sequences {
            let sequence = &mut self.sequences[handle as u32 as usize];
            for group in 0..sequence.tables.len() {
                if sequence.copy_groups >> group & 1 == 1 {
                    pool.reference(sequence.tables[group][sequence.num_tokens / block_size]);
                }
            }
            sequence.copy_groups = 0;
        }
        if longest > MAX_TOKENS {
            return Err(KvCacheError::SequenceLength { got: longest, max: MAX_TOKENS });
        }
        self.stats.refusals += 1;
        Err(KvCacheError::OutOfBlocks { needed, free: free + coming })
    }

    /// Gives the blocks back that the windows have left behind.
    fn slide_windows(&mut self, pool: &mut BlockPool, sequences: &[i64]) {
        if self.groups.iter().all(|group| *group == CacheGroup::Full) {
            return;
        }
        let block_size = self.block_size();
        for &handle in sequences {
            let Sequence { tables, first_held, num_tokens, .. } = &mut self.sequences[handle as u32 as usize];
            for (group, kind) in self.groups.iter().enumerate() {
                let first = kind.first_needed(*num_tokens, block_size).min(tables[group].len());
                if first > first_held[group] {
                    let leaving = &mut tables[group][first_held[group]..first];
                    pool.release(leaving.iter().rev().copied());
                    leaving.fill(0);
                    first_held[group] = first;
                }
            }
        }
    }

    /// Gives a sequence the blocks that `count` tokens more need, from `fresh[taken..]`; returns where the rest begins.
    fn give_blocks(&mut self, pool: &BlockPool, slot: usize, count: usize, mut taken: usize) -> usize {
        let block_size = self.block_size();
        let sequence = &mut self.sequences[slot];
        let start = sequence.num_tokens;
        let more = (start + count).div_ceil(block_size) - start.div_ceil(block_size);
        if sequence.copy_groups != 0 {
            for (group, table) in sequence.tables.iter_mut().enumerate() {
                if sequence.copy_groups >> group & 1 == 1 {
                    let own = self.fresh[taken];
                    taken += 1;
                    let shared = std::mem::replace(&mut table[start / block_size], own);
                    self.copies.push([shared, own]);
                }
            }
            sequence.copy_groups = 0;
        }
        if more > 0 {
            for table in &mut sequence.tables {
                table.extend_from_slice(&self.fresh[taken..taken + more]);
                taken += more;
            }
            for at in taken - more * self.groups.len()..taken {
                self.note_scrub(pool, self.fresh[at]);
            }
        }
        taken
    }

    /// Appends tokens to a sequence that has the blocks for them, and remembers each block that fills up.
    fn append(&mut self, pool: &mut BlockPool, slot: usize, mut tokens: &[u32]) {
        let block_size = self.hasher.block_size();
        let sequence = &mut self.sequences[slot];
        sequence.added_from = sequence.num_tokens;
        while !tokens.is_empty() {
            let room = block_size - sequence.tail.len();
            let (now, later) = tokens.split_at(room.min(tokens.len()));
            sequence.tail.extend_from_slice(now);
            sequence.num_tokens += now.len();
            tokens = later;
            if sequence.tail.len() < block_size {
                break;
            }
            let block = sequence.num_tokens / block_size - 1;
            let before = sequence.parent;
            let digest_len = self.hasher.algorithm().digest_len();
            let mut hash = [0; Algorithm::MAX_DIGEST_LEN];
            // A copy of the parent is chained on, so that the keys can be borrowed from the sequence.
            let mut parent = before;
            self.hasher.continue_chain(
                &mut parent[..digest_len],
                &sequence.tail,
                |_| sequence.keys_of(block),
                &mut hash[..digest_len],
            );
            remember(pool, &self.groups, sequence, block, &hash);
            if let Some(naming) = self.naming.filter(|naming| pool.has_chains(naming)) {
                let table = &sequence.tables[usize::from(naming.group)];
                let parent = block.checked_sub(1).map(|last| (table[last], &before));
                let keys = sequence.keys_of(block);
                let content = Content { hash: &hash, parent, tokens: &sequence.tail, keys };
                pool.link_in(table, block, &content);
            }
            if let Some(log) = pool.events() {
                for (group, kind) in self.groups.iter().enumerate() {
                    let stored = Stored {
                        hashes: &[hash],
                        parent: (block > 0).then_some(&before),
                        tokens: &sequence.tail,
                        block_size,
                        group: group as u8,
                        name: Some(kind.name()),
                    };
                    log.stored(&stored, |_| sequence.keys_of(block));
                }
            }
            sequence.parent = hash;
            sequence.tail.clear();
        }
    }
}

fn remember(
    pool: &mut BlockPool,
    groups: &[CacheGroup],
    sequence: &Sequence,
    block: usize,
    hash: &BlockHash,
) {
    let retention = Retention { priority: sequence.priority, seconds: sequence.seconds };
    // It was checked when the sequence was admitted.
    let Ok(until) = pool.checked_retention(&retention) else { return };
    for group in 0..groups.len() {
        pool.remember(sequence.tables[group][block], hash, group as u8, sequence.priority, until);
    }
}

impl CacheGroup {
    /// The first block that the next token looks at, when `num_tokens` are there.
    fn first_needed(self, num_tokens: usize, block_size: usize) -> usize {
        match self {
            Self::Full => 0,
            Self::SlidingWindow { window } => (num_tokens + 1).saturating_sub(window) / block_size,
        }
    }
}
