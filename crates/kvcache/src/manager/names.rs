//! The names of a prompt's blocks: those that the pool knows by their tokens, and for the others their hashes.

use super::{BlockManager, Prompt};
use crate::hash::{BlockHasher, ExtraKeys};
use crate::pool::{BlockHash, BlockPool, Content, PrefixWalk};
use std::ops::Range;

/// The hashes of a prompt's full blocks, and the blocks where the pool has the first of them. Used again for the next
/// prompt, it allocates nothing more.
#[derive(Clone, Debug, Default)]
pub struct PromptNames {
    hashes: Vec<BlockHash>,
    known: Vec<u32>,
}

impl PromptNames {
    /// For [`Prompt::hashes`].
    pub fn hashes(&self) -> &[BlockHash] {
        &self.hashes
    }

    /// For [`Prompt::known`].
    pub fn known(&self) -> &[u32] {
        &self.known
    }

    /// Hashes the full blocks of a prompt that [`BlockManager::recognise`] did not know. The hasher and what else comes
    /// are those of the manager; no lock is needed meanwhile.
    pub fn hash_rest<'k>(
        &mut self,
        hasher: &mut BlockHasher,
        first_parent: &[u8],
        token_ids: &[u32],
        extra_keys: impl Fn(usize) -> Option<&'k ExtraKeys>,
    ) {
        let (block_size, digest_len) = (hasher.block_size(), hasher.algorithm().digest_len());
        if first_parent.len() != digest_len {
            return; // the manager would not have been made
        }
        let mut parent = BlockHash::default();
        match self.hashes.last() {
            Some(last) => parent = *last,
            None => parent[..digest_len].copy_from_slice(first_parent),
        }
        let tokens = token_ids.get(self.hashes.len() * block_size..).unwrap_or_default();
        for tokens in tokens.chunks_exact(block_size) {
            let (keys, mut hash) = (extra_keys(self.hashes.len()), BlockHash::default());
            hasher.continue_chain(&mut parent[..digest_len], tokens, |_| keys, &mut hash[..digest_len]);
            self.hashes.push(hash);
        }
    }
}

impl BlockManager {
    /// Finds the leading blocks of a prompt that are cached, by their tokens; `names` has their hashes then, and is
    /// complete after [`PromptNames::hash_rest`].
    pub fn recognise<'k>(
        &mut self,
        pool: &mut BlockPool,
        token_ids: &[u32],
        extra_keys: impl Fn(usize) -> Option<&'k ExtraKeys>,
        names: &mut PromptNames,
    ) {
        names.hashes.clear();
        names.known.clear();
        let Some(naming) = self.naming else { return };
        let mut walk = PrefixWalk::new(pool, naming);
        walk.go_on(pool, &mut self.hasher, token_ids, extra_keys, |id, hash| {
            names.known.push(id);
            names.hashes.push(*hash);
        });
        names.hashes.extend(walk.missed());
    }

    /// Tells the pool what these blocks of a prompt hold, which it remembers by now.
    pub(super) fn link_prompt(
        &self,
        pool: &mut BlockPool,
        slot: u32,
        prompt: &Prompt<'_>,
        blocks: Range<usize>,
    ) {
        let Some(naming) = self.naming.filter(|naming| !blocks.is_empty() && pool.has_chains(naming)) else {
            return;
        };
        let table = &self.sequences[slot as usize].tables[usize::from(naming.group)];
        let tokens = prompt.token_ids.chunks_exact(naming.block_size);
        for (block, tokens) in tokens.enumerate().take(blocks.end).skip(blocks.start) {
            let parent = block.checked_sub(1).map(|before| (table[before], &prompt.hashes[before]));
            let keys = prompt.extra_keys.get(block).and_then(Option::as_ref);
            let content = Content { hash: &prompt.hashes[block], parent, tokens, keys };
            pool.link_in(table, block, &content);
        }
    }
}
