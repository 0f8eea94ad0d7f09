//! Admission: what of a prompt is cached, and blocks for the rest.

use super::{BlockManager, CacheGroup, MAX_TOKENS};
use crate::error::KvCacheError;
use crate::events::Stored;
use crate::hash::ExtraKeys;
use crate::pool::{BlockHash, BlockPool, Retention};

/// A prompt that asks to run.
#[derive(Clone, Debug)]
pub struct Prompt<'a> {
    /// Its tokens.
    pub token_ids: &'a [u32],
    /// The hash of each of its full blocks, filled up with zeros.
    pub hashes: &'a [BlockHash],
    /// Blocks that held the first of them a moment ago, as [`PromptNames`](super::names::PromptNames) has them; each is checked again.
    pub known: &'a [u32],
    /// What its blocks were hashed with: empty, or one entry for each full block.
    pub extra_keys: &'a [Option<ExtraKeys>],
    /// What the blocks behind the prompt are hashed with.
    pub later_keys: Option<&'a ExtraKeys>,
    /// Most tokens beyond the cached ones that get blocks now; the others are passed to `step`.
    pub limit: Option<usize>,
    /// How long and how dearly its blocks are kept.
    pub retention: Retention,
}

/// A prompt that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admission {
    /// The sequence's handle.
    pub sequence: i64,
    /// Its leading tokens that are cached: they need not be computed. At least the last token of a prompt is not
    /// among them, because its result is what the next token comes from.
    pub cached_tokens: usize,
    /// Tokens that have blocks now.
    pub num_tokens: usize,
}

impl BlockManager {
    /// Admits a prompt, or says how many blocks are missing.
    pub fn admit(&mut self, pool: &mut BlockPool, prompt: &Prompt<'_>) -> Result<Admission, KvCacheError> {
        let until = self.check_prompt(pool, prompt)?;
        let (block_size, length) = (self.block_size(), prompt.token_ids.len());
        let usable = length.saturating_sub(1) / block_size;
        let cached = self.find_cached(pool, &prompt.hashes[..usable], prompt.known);
        let cached_tokens = cached * block_size;
        let num_tokens = prompt.limit.map_or(length, |limit| length.min(cached_tokens.saturating_add(limit)));
        let total = num_tokens.div_ceil(block_size);
        let needed = (total - cached) * self.groups.len();
        self.reserve(pool, needed)?;

        let slot = self.new_slot();
        self.fresh.clear();
        let fresh = &mut self.fresh;
        for id in self.found.iter().flatten().copied().filter(|&id| id != 0) {
            pool.reference(id);
        }
        pool.take(needed, |_, id, _| fresh.push(id));
        for at in 0..needed {
            self.note_scrub(pool, self.fresh[at]);
        }
        let full = num_tokens / block_size;
        let sequence = &mut self.sequences[slot as usize];
        for (group, (table, found)) in sequence.tables.iter_mut().zip(&self.found).enumerate() {
            table.clear();
            table.extend_from_slice(found);
            table.extend_from_slice(&self.fresh[group * (total - cached)..][..total - cached]);
            sequence.first_held[group] = found.iter().take_while(|&&id| id == 0).count();
            let filled = table[cached..].iter().zip(&prompt.hashes[cached..full.max(cached)]);
            for (&id, hash) in filled {
                pool.remember(id, hash, group as u8, prompt.retention.priority, until);
            }
        }
        self.link_prompt(pool, slot, prompt, cached..full);
        let sequence = &mut self.sequences[slot as usize];
        sequence.num_tokens = num_tokens;
        sequence.added_from = cached_tokens.min(num_tokens);
        sequence.tail.clear();
        sequence.tail.extend_from_slice(&prompt.token_ids[full * block_size..num_tokens]);
        sequence.parent = full.checked_sub(1).map_or(self.first_parent, |last| prompt.hashes[last]);
        sequence.keys.clear();
        sequence.keys.extend_from_slice(prompt.extra_keys);
        sequence.later_keys = prompt.later_keys.cloned();
        sequence.priority = prompt.retention.priority;
        sequence.seconds = prompt.retention.seconds;
        self.tell_stored(pool, prompt, cached, full);
        pool.count_queries(usable, cached);
        self.stats.sequences += 1;
        self.stats.tokens += num_tokens;
        self.stats.admissions += 1;
        self.stats.prompt_tokens += length as u64;
        self.stats.cached_tokens += cached_tokens as u64;
        Ok(Admission { sequence: self.handle(slot), cached_tokens, num_tokens })
    }

    fn check_prompt(&self, pool: &BlockPool, prompt: &Prompt<'_>) -> Result<u32, KvCacheError> {
        let (length, num_blocks) = (prompt.token_ids.len(), prompt.token_ids.len() / self.block_size());
        if length > MAX_TOKENS {
            return Err(KvCacheError::SequenceLength { got: length, max: MAX_TOKENS });
        }
        if prompt.hashes.len() != num_blocks {
            return Err(KvCacheError::HashCount { handles: num_blocks, hashes: prompt.hashes.len() });
        }
        if !prompt.extra_keys.is_empty() && prompt.extra_keys.len() != num_blocks {
            return Err(KvCacheError::ExtraKeysCount { got: prompt.extra_keys.len(), expected: num_blocks });
        }
        if self.hasher.algorithm().is_pickle()
            && (prompt.later_keys.is_some() || prompt.extra_keys.iter().any(Option::is_some))
        {
            return Err(KvCacheError::ExtraKeysPickle { algorithm: self.hasher.algorithm().name() });
        }
        pool.checked_retention(&prompt.retention)
    }

    /// Finds the longest cached prefix that every group can go on from; leaves its blocks in `found`, 0 for those that
    /// a window does not need, and returns their number.
    fn find_cached(&mut self, pool: &BlockPool, hashes: &[BlockHash], known: &[u32]) -> usize {
        let block_size = self.block_size();
        let chained = self.naming.map(|naming| naming.group);
        let mut length = hashes.len();
        // Each group can only shorten the prefix; when none does any more, all agree.
        loop {
            let before = length;
            for (group, (kind, found)) in self.groups.iter().zip(&mut self.found).enumerate() {
                length = match *kind {
                    CacheGroup::Full => {
                        let known = if Some(group as u8) == chained { known } else { &[] };
                        find_run(pool, &hashes[..length], known, group as u8, found)
                    }
                    CacheGroup::SlidingWindow { window } => {
                        let needed = (window - 1).div_ceil(block_size).max(1);
                        find_window(pool, &hashes[..length], group as u8, needed, found)
                    }
                };
            }
            if length == before || self.groups.len() == 1 {
                break;
            }
        }
        self.found.iter_mut().for_each(|found| found.truncate(length));
        length
    }

    /// Whether `needed` blocks, those of `found` that are free now, and the watermark can be had.
    fn reserve(&mut self, pool: &BlockPool, needed: usize) -> Result<(), KvCacheError> {
        let found = self.found.iter().flatten().filter(|&&id| id != 0 && pool.references(id) == 0).count();
        let kept =
            if self.stats.sequences == 0 { 0 } else { (self.watermark * pool.num_blocks() as f64) as usize };
        let (needed, free) = (needed.saturating_add(found).saturating_add(kept), pool.num_free());
        if needed > free {
            self.stats.refusals += 1;
            return Err(KvCacheError::OutOfBlocks { needed, free });
        }
        Ok(())
    }

    fn tell_stored(&self, pool: &mut BlockPool, prompt: &Prompt<'_>, from: usize, to: usize) {
        let Some(log) = pool.events() else { return };
        if from >= to {
            return;
        }
        for (group, kind) in self.groups.iter().enumerate() {
            let stored = Stored {
                hashes: &prompt.hashes[from..to],
                parent: from.checked_sub(1).map(|last| &prompt.hashes[last]),
                tokens: &prompt.token_ids[from * self.block_size()..to * self.block_size()],
                block_size: self.block_size(),
                group: group as u8,
                name: Some(kind.name()),
            };
            log.stored(&stored, |block| prompt.extra_keys.get(from + block).and_then(Option::as_ref));
        }
    }
}

/// The blocks of the longest run of leading hashes.
fn find_run(pool: &BlockPool, hashes: &[BlockHash], known: &[u32], group: u8, found: &mut Vec<u32>) -> usize {
    found.clear();
    while let Some(id) =
        pool.find_known(hashes, known, found.len(), group).filter(|&id| pool.can_be_shared(id))
    {
        found.push(id);
    }
    found.len()
}

/// The blocks of the longest prefix whose last `needed` blocks are all cached, or which is cached from its beginning.
fn find_window(
    pool: &BlockPool,
    hashes: &[BlockHash],
    group: u8,
    needed: usize,
    found: &mut Vec<u32>,
) -> usize {
    found.clear();
    found.resize(hashes.len(), 0);
    let (mut end, mut run) = (hashes.len(), 0);
    let mut position = hashes.len();
    while position > 0 && run < needed {
        position -= 1;
        let id = pool.find(&hashes[position], group).filter(|&id| pool.can_be_shared(id));
        found[position] = id.unwrap_or(0);
        if id.is_some() {
            run += 1;
        } else {
            (end, run) = (position, 0);
        }
    }
    found.truncate(end);
    end
}
