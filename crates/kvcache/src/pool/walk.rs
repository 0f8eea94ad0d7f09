//! Walks: which leading blocks of a prompt are cached, found by their tokens.
//!
//! What a walk finds is exactly what hashing the prompt and looking up each hash would find. It compares tokens where
//! the chains ([`super::chains`]) know what follows, and hashes where they do not.

use super::chains::{Chains, Content, Naming};
use super::{BlockHash, BlockPool};
use crate::error::KvCacheError;
use crate::hash::{BlockHasher, ExtraKeys};
use crate::kernels::prefetch::prefetch_entry;

/// Tokens that are read at a time: they lie in the nearest cache when they are compared.
const PIECE: usize = 512;

/// A walk along one prompt, which may come in pieces of whole blocks. The pool must not change between them.
#[derive(Clone, Debug)]
pub(crate) struct PrefixWalk {
    naming: Naming,
    /// Whether the pool keeps chains of this naming.
    has_chains: bool,
    /// The last block that was found.
    at: Option<u32>,
    found: usize,
    /// The hash of the first block that is not cached.
    missed: Option<BlockHash>,
    /// The last blocks that were found, each at its position modulo the length.
    recent: [u32; Chains::AHEAD],
}

impl PrefixWalk {
    /// A walk from the start of a prompt in `pool`.
    pub(crate) fn new(pool: &mut BlockPool, naming: Naming) -> Self {
        let has_chains = pool.has_chains(&naming);
        Self { naming, has_chains, at: None, found: 0, missed: None, recent: [0; Chains::AHEAD] }
    }

    /// The hash of the first block that is not cached, once the walk is over.
    pub(crate) fn missed(&self) -> Option<&BlockHash> {
        self.missed.as_ref()
    }

    /// Goes on with the next full blocks of the prompt, in `tokens`, and tells `give` each block that is cached and its
    /// hash. `extra_keys` is asked for the keys of each block, counted from 0 at the start of the prompt.
    ///
    /// Statistics are left alone. `hasher` is of the algorithm and the block size that the walk was made with.
    #[inline]
    pub(crate) fn go_on<'k>(
        &mut self,
        pool: &mut BlockPool,
        hasher: &mut BlockHasher,
        tokens: &[u32],
        extra_keys: impl Fn(usize) -> Option<&'k ExtraKeys>,
        mut give: impl FnMut(u32, &BlockHash),
    ) {
        for block in tokens.chunks_exact(self.naming.block_size) {
            if self.missed.is_some() {
                return;
            }
            let keys = extra_keys(self.found);
            let known = if self.has_chains { pool.index.chains().follow(self.at, block, keys) } else { None };
            let id = match known {
                Some((id, false)) => Some(id),
                Some((id, true)) => self.current(pool, id),
                None => self.hash_and_find(pool, hasher, block, keys),
            };
            let Some(id) = id else { return };
            give(id, pool.index.hash_of(id));
            self.recent[self.found % Chains::AHEAD] = id;
            self.at = Some(id);
            self.found += 1;
        }
    }

    /// The block that a look-up finds which has the hash of `id`; where there is none, the walk is over.
    fn current(&mut self, pool: &BlockPool, id: u32) -> Option<u32> {
        let found = pool.current(id, self.naming.group);
        if found.is_none() {
            self.missed = Some(*pool.index.hash_of(id));
        }
        found
    }

    /// Finds the next block by its hash, and keeps what it holds; a block that is not cached is the end of the walk.
    #[cold]
    fn hash_and_find(
        &mut self,
        pool: &mut BlockPool,
        hasher: &mut BlockHasher,
        tokens: &[u32],
        keys: Option<&ExtraKeys>,
    ) -> Option<u32> {
        let before = self.at.map(|at| (at, *pool.index.hash_of(at)));
        let mut parent = before.map_or(self.naming.first_parent, |(_, hash)| hash);
        let mut hash = BlockHash::default();
        let digest_len = self.naming.algorithm.digest_len();
        hasher.continue_chain(&mut parent[..digest_len], tokens, |_| keys, &mut hash[..digest_len]);
        let Some(id) = pool.find(&hash, self.naming.group) else {
            self.missed = Some(hash);
            return None;
        };
        if self.has_chains {
            let parent = before.as_ref().map(|(at, hash)| (*at, hash));
            pool.link(id, &Content { hash: &hash, parent, tokens, keys });
            if self.found >= Chains::AHEAD {
                pool.index.chains_mut().set_ahead(self.recent[self.found % Chains::AHEAD], id);
            }
        }
        Some(id)
    }
}

impl BlockPool {
    /// How many leading full blocks of a prompt are cached, behind `first_parent`.
    ///
    /// `read` writes the tokens from a position on; it is asked for each of the `num_tokens` once, in order, and its
    /// first error is returned. `extra_keys` is asked for the keys of blocks, counted from 0.
    ///
    /// Compares tokens where the pool knows what follows, and hashes where it does not, no further than the first block
    /// that is not cached. Changes nothing that can be seen, but for the time that the next such call takes.
    pub fn cached_blocks<'k>(
        &mut self,
        hasher: &mut BlockHasher,
        first_parent: &[u8],
        num_tokens: usize,
        mut read: impl FnMut(usize, &mut [u32]) -> Result<(), KvCacheError>,
        extra_keys: impl Fn(usize) -> Option<&'k ExtraKeys>,
    ) -> Result<usize, KvCacheError> {
        let mut walk = PrefixWalk::new(self, Naming::new(hasher, first_parent, 0)?);
        let blocks_a_piece = (PIECE / hasher.block_size()).max(1);
        let mut tokens = vec![0; num_tokens.min(blocks_a_piece * hasher.block_size())];
        let mut position = 0;
        while position < num_tokens {
            let piece = tokens.len().min(num_tokens - position);
            let piece = &mut tokens[..piece];
            read(position, piece)?;
            position += piece.len();
            walk.go_on(self, hasher, piece, &extra_keys, |_, _| {});
        }
        Ok(walk.found)
    }

    /// Whether the pool keeps chains of this naming.
    pub(crate) fn has_chains(&mut self, naming: &Naming) -> bool {
        let num_blocks = self.num_blocks();
        self.index.chains_mut().are_of(naming, num_blocks)
    }

    /// Keeps what a cached block holds, where that is what block and parent are cached as; the caller has seen that the
    /// pool has chains of this naming.
    #[inline(always)]
    pub(crate) fn link(&mut self, id: u32, content: &Content<'_>) {
        let holds =
            |id: u32, hash: &BlockHash| self.blocks.get(id).is_cached() && self.index.hash_of(id) == hash;
        // Somebody who guesses handles can have blocks forgotten and cached as something else while they are lent out.
        if holds(id, content.hash) && content.parent.is_none_or(|(parent, hash)| holds(parent, hash)) {
            let is_special = !self.index.is_alone(id) || self.clock.is_limited(id);
            self.index.chains_mut().link(id, content, is_special);
        }
    }

    /// The same for a block at its place in the table of a sequence.
    #[inline(always)]
    pub(crate) fn link_in(&mut self, table: &[u32], block: usize, content: &Content<'_>) {
        if let Some(&later) = table.get(block + Chains::AHEAD) {
            self.index.chains().prefetch(later);
        }
        self.link(table[block], content);
        if let Some(before) = block.checked_sub(Chains::AHEAD) {
            self.index.chains_mut().set_ahead(table[before], table[block]);
        }
    }

    /// The block that a look-up of the hash of `id` finds, which is cached in this group.
    #[inline(always)]
    fn current(&self, id: u32, group: u8) -> Option<u32> {
        if self.index.is_alone(id) && !self.clock.is_over(id) {
            return Some(id);
        }
        self.find(self.index.hash_of(id), group)
    }

    /// The block that a look-up of `hashes[position]` finds, where `known` are blocks that held the first of them a
    /// moment ago.
    #[inline(always)]
    pub(crate) fn find_known(
        &self,
        hashes: &[BlockHash],
        known: &[u32],
        position: usize,
        group: u8,
    ) -> Option<u32> {
        let Some(&id) = known.get(position) else { return self.find_ahead(hashes, position, group) };
        if let Some(&later) = known.get(position + super::LOOKAHEAD) {
            prefetch_entry(self.blocks.entries(), later as usize);
        }
        let still = self.blocks.get(id).is_cached()
            && self.index.hash_of(id) == hashes.get(position)?
            && self.index.group_of(id) == group;
        if still { self.current(id, group) } else { self.find(hashes.get(position)?, group) }
    }
}
