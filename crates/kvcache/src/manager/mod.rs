//! The block manager: whole batches of sequences on a pool, with tables, slots and forks.
//!
//! A sequence is admitted with its prompt, of which the manager looks up what is cached; then each call of
//! [`BlockManager::step`] appends tokens to all running sequences at once. A block that fills up is hashed and can be
//! found by later prompts. Forked sequences share every block, the last one too, until one of them writes: then
//! the writer gets a block of its own, and the caller a pair of pages to copy.
//!
//! A manager may have several cache groups: layers with full attention, and layers with a sliding window, whose blocks
//! come back to the pool as the window moves on. All groups have blocks of one size, from one pool.
//!
//! Every call does all that it was asked to, or nothing. Time is linear in the tokens that come and the blocks that
//! change. Sequences that end leave their memory to those that begin, so that a server allocates nothing in the long
//! run.

mod admit;
mod check;
mod names;
mod sequence;
mod step;

pub use admit::{Admission, Prompt};
pub use names::PromptNames;

use crate::error::KvCacheError;
use crate::events::GroupName;
use crate::hash::{Algorithm, BlockHasher};
use crate::pool::{BlockHash, BlockPool, Naming};
use sequence::Sequence;

/// Most cache groups of a manager.
pub const MAX_GROUPS: usize = 8;
/// Most tokens of a sequence.
pub const MAX_TOKENS: usize = 1 << 31;

/// Which earlier tokens the layers of a cache group look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CacheGroup {
    /// All of them.
    Full,
    /// The last ones only.
    SlidingWindow {
        /// How many tokens see each other, the current one counted.
        window: usize,
    },
}

impl CacheGroup {
    fn name(self) -> GroupName {
        match self {
            Self::Full => GroupName { kind: "full_attention", window: None },
            Self::SlidingWindow { window } => {
                GroupName { kind: "sliding_window", window: Some(window.min(u32::MAX as usize) as u32) }
            }
        }
    }
}

/// What a manager is made with.
#[derive(Clone, Debug)]
pub struct ManagerOptions {
    /// Tokens in a block.
    pub block_size: usize,
    /// What blocks are hashed with.
    pub algorithm: Algorithm,
    /// Parent of first blocks, as [`Algorithm::none_hash`] makes it.
    pub first_parent: Vec<u8>,
    /// The cache groups, at least one.
    pub groups: Vec<CacheGroup>,
    /// Whether blocks that were lent before are named for cleaning.
    pub scrub: bool,
    /// Share of the pool that admissions leave free while sequences run.
    pub watermark: f64,
}

/// What a manager holds and has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ManagerStats {
    /// Sequences that run.
    pub sequences: usize,
    /// Tokens of the sequences that run.
    pub tokens: usize,
    /// Sequences admitted so far.
    pub admissions: u64,
    /// Tokens of prompts that came so far.
    pub prompt_tokens: u64,
    /// Tokens of prompts that were cached so far.
    pub cached_tokens: u64,
    /// Tokens appended by steps so far.
    pub appended_tokens: u64,
    /// Pages that had to be copied so far, because a fork wrote.
    pub copied_blocks: u64,
    /// Calls so far that found too few free blocks.
    pub refusals: u64,
}

/// Sequences and their blocks; the pool itself is passed to each call.
#[derive(Debug)]
pub struct BlockManager {
    hasher: BlockHasher,
    first_parent: BlockHash,
    groups: Vec<CacheGroup>,
    /// Of the first group in which every block of a prefix is needed: the pool keeps chains of it.
    naming: Option<Naming>,
    scrub: bool,
    watermark: f64,
    sequences: Vec<Sequence>,
    /// Sequences that were released: their memory waits for the next ones.
    idle: Vec<u32>,
    /// Pages to copy after the last step.
    copies: Vec<[u32; 2]>,
    scrubs: Vec<u32>,
    /// Blocks on their way from the pool to the tables.
    fresh: Vec<u32>,
    /// Of each group, the cached blocks of the prompt that is being admitted.
    found: Vec<Vec<u32>>,
    stats: ManagerStats,
}

impl BlockManager {
    /// A manager without sequences.
    pub fn new(options: &ManagerOptions) -> Result<Self, KvCacheError> {
        let groups = |what: &str| KvCacheError::Groups { what: what.to_owned(), max: MAX_GROUPS };
        if options.groups.is_empty() || options.groups.len() > MAX_GROUPS {
            return Err(groups(&format!("{} groups came", options.groups.len())));
        }
        if options.groups.contains(&CacheGroup::SlidingWindow { window: 0 }) {
            return Err(groups("a window of 0 tokens came"));
        }
        if !(0.0..1.0).contains(&options.watermark) {
            return Err(KvCacheError::Watermark { got: options.watermark.to_string() });
        }
        let (algorithm, expected) = (options.algorithm, options.algorithm.digest_len());
        if options.first_parent.len() != expected {
            let got = options.first_parent.len();
            return Err(KvCacheError::ParentLength { algorithm: algorithm.name(), got, expected });
        }
        let hasher = BlockHasher::new(algorithm, options.block_size)?;
        let mut first_parent = BlockHash::default();
        first_parent[..expected].copy_from_slice(&options.first_parent);
        let full = options.groups.iter().position(|group| *group == CacheGroup::Full);
        let named = |group| Naming::new(&hasher, &options.first_parent, group as u8);
        Ok(Self {
            naming: full.map(named).transpose()?,
            hasher,
            first_parent,
            groups: options.groups.clone(),
            scrub: options.scrub,
            watermark: options.watermark,
            sequences: Vec::new(),
            idle: Vec::new(),
            copies: Vec::new(),
            scrubs: Vec::new(),
            fresh: Vec::new(),
            found: vec![Vec::new(); options.groups.len()],
            stats: ManagerStats::default(),
        })
    }

    /// Tokens in a block.
    pub fn block_size(&self) -> usize {
        self.hasher.block_size()
    }

    /// Cache groups.
    pub fn num_groups(&self) -> usize {
        self.groups.len()
    }

    /// Sequences that share all blocks of `sequence`, the last one too, and go on by themselves.
    pub fn fork(
        &mut self,
        pool: &mut BlockPool,
        sequence: i64,
        forks: &mut [i64],
    ) -> Result<(), KvCacheError> {
        let parent = self.slot(0, sequence)?;
        let tables = &self.sequences[parent as usize].tables;
        let held = tables.iter().flatten().copied().filter(|&id| id != 0);
        if let Some((position, id)) =
            held.clone().enumerate().find(|&(_, id)| !pool.can_be_shared_by(id, forks.len()))
        {
            return Err(KvCacheError::ReferenceCount { position, id, count: pool.references(id) });
        }
        for id in held {
            (0..forks.len()).for_each(|_| pool.reference(id));
        }
        for handle in forks {
            let slot = self.new_slot();
            let mut fork = std::mem::take(&mut self.sequences[slot as usize]);
            fork.share(&self.sequences[parent as usize]);
            self.sequences[slot as usize] = fork;
            self.stats.sequences += 1;
            self.stats.tokens += self.sequences[slot as usize].num_tokens;
            *handle = self.handle(slot);
        }
        Ok(())
    }

    /// Ends sequences; what they alone held can be lent out again, last blocks first.
    pub fn release(&mut self, pool: &mut BlockPool, sequences: &[i64]) -> Result<(), KvCacheError> {
        self.mark(sequences)?;
        for &handle in sequences {
            let slot = handle as u32;
            let sequence = &mut self.sequences[slot as usize];
            for table in &sequence.tables {
                pool.release(table.iter().rev().copied());
            }
            self.stats.sequences -= 1;
            self.stats.tokens -= sequence.num_tokens;
            sequence.end();
            self.idle.push(slot);
        }
        Ok(())
    }

    /// Whether there is such a group.
    pub fn check_group(&self, group: usize) -> Result<(), KvCacheError> {
        if group >= self.groups.len() {
            return Err(KvCacheError::GroupIndex { got: group, last: self.groups.len() - 1 });
        }
        Ok(())
    }

    /// A sequence's blocks in one group, by id; 0 for blocks that a window has left behind.
    pub fn block_table(&self, position: usize, sequence: i64, group: usize) -> Result<&[u32], KvCacheError> {
        self.check_group(group)?;
        Ok(&self.sequences[self.slot(position, sequence)? as usize].tables[group])
    }

    /// Slots of the tokens that the last admission or step added to a sequence: block times size plus offset.
    pub fn slots(
        &self,
        position: usize,
        sequence: i64,
        group: usize,
    ) -> Result<impl ExactSizeIterator<Item = u64>, KvCacheError> {
        let table = self.block_table(position, sequence, group)?;
        let sequence = &self.sequences[self.slot(position, sequence)? as usize];
        let block_size = self.block_size();
        Ok((sequence.added_from..sequence.num_tokens).map(move |token| {
            u64::from(table[token / block_size]) * block_size as u64 + (token % block_size) as u64
        }))
    }

    /// Tokens of a sequence.
    pub fn num_tokens(&self, position: usize, sequence: i64) -> Result<usize, KvCacheError> {
        Ok(self.sequences[self.slot(position, sequence)? as usize].num_tokens)
    }

    /// Blocks that have been lent before and hold what others left there: clean them before they are used. Where the
    /// manager was not asked to scrub there are none. A block that a step copies to is not among them.
    pub fn take_scrubs(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.scrubs)
    }

    /// What the manager holds and has done so far.
    pub fn stats(&self) -> ManagerStats {
        self.stats
    }

    /// Where a running sequence stands.
    fn slot(&self, position: usize, handle: i64) -> Result<u32, KvCacheError> {
        let slot = handle as u32;
        match self.sequences.get(slot as usize) {
            Some(sequence) if sequence.is_running && i64::from(sequence.generation) == handle >> 32 => {
                Ok(slot)
            }
            _ => Err(KvCacheError::Sequence { position, got: handle }),
        }
    }

    fn handle(&self, slot: u32) -> i64 {
        i64::from(self.sequences[slot as usize].generation) << 32 | i64::from(slot)
    }

    /// A place for a new sequence, which is running from now on and has nothing.
    fn new_slot(&mut self) -> u32 {
        let slot = self.idle.pop().unwrap_or_else(|| {
            self.sequences.push(Sequence::new(self.groups.len()));
            self.sequences.len() as u32 - 1
        });
        self.sequences[slot as usize].is_running = true;
        slot
    }

    /// Whether all sequences run and each is named once.
    fn mark(&mut self, sequences: &[i64]) -> Result<(), KvCacheError> {
        let mut outcome = Ok(());
        let mut marked = 0;
        for (position, &handle) in sequences.iter().enumerate() {
            match self.slot(position, handle) {
                Err(error) => outcome = Err(error),
                Ok(slot) => {
                    if std::mem::replace(&mut self.sequences[slot as usize].is_marked, true) {
                        outcome = Err(KvCacheError::RepeatedSequence { position, got: handle });
                    }
                }
            }
            if outcome.is_err() {
                break;
            }
            marked = position + 1;
        }
        for &handle in &sequences[..marked] {
            self.sequences[handle as u32 as usize].is_marked = false;
        }
        outcome
    }

    /// Notes a block that was lent before, where the caller wants to know.
    fn note_scrub(&mut self, pool: &BlockPool, id: u32) {
        if self.scrub && pool.generation(id) > 0 {
            self.scrubs.push(id);
        }
    }
}

#[cfg(test)]
mod tests;
