//! Chains: which cached block follows which, by its tokens.
//!
//! A block's hash follows from three things: its parent's hash, its tokens and its extra keys. For each cached block that
//! came with its tokens the pool keeps all three, so that a prompt that is seen again is compared, which takes a
//! twentieth of the time that hashing takes. The parent is kept as a number that its content has and no other content
//! ever had, so what a link says stays true whatever is evicted; a link ends with the block's own entry in the
//! index. The extra keys are kept as their SHA-256.
//!
//! Each block names one that followed it: a hint, checked whenever it is taken. Where it does not fit, the walk
//! ([`super::walk`]) hashes one block, looks it up, and sets the hint right.

use super::index::{BlockHash, filled};
use crate::error::KvCacheError;
use crate::hash::{Algorithm, BlockHasher, ExtraKeys};
use crate::kernels::prefetch::prefetch_entry;
use std::collections::TryReserveError;

/// Longest blocks whose tokens are kept: 4 KiB each, where a block's page takes a megabyte.
const MAX_BLOCK_SIZE: usize = 1024;
/// The number of what stands before first blocks.
const START: u64 = 1;
/// Tokens that are compared at a time.
const LANES: usize = 16;

/// How the blocks of a chain are named. A pool keeps chains of the first kind that it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Naming {
    pub(crate) algorithm: Algorithm,
    pub(crate) block_size: usize,
    /// The parent of first blocks, filled up with zeros.
    pub(crate) first_parent: BlockHash,
    /// The cache group.
    pub(crate) group: u8,
}

impl Naming {
    pub(crate) fn new(hasher: &BlockHasher, first_parent: &[u8], group: u8) -> Result<Self, KvCacheError> {
        let algorithm = hasher.algorithm();
        let (got, expected) = (first_parent.len(), algorithm.digest_len());
        if got != expected {
            return Err(KvCacheError::ParentLength { algorithm: algorithm.name(), got, expected });
        }
        let mut parent = BlockHash::default();
        parent[..expected].copy_from_slice(first_parent);
        Ok(Self { algorithm, block_size: hasher.block_size(), first_parent: parent, group })
    }
}

/// What is known of one cached block; half a cache line, so that a walk waits for two lines a block and no more.
#[derive(Clone, Copy, Debug, Default)]
#[repr(align(32))]
struct Link {
    /// Of the block's content: no other hash or group ever has it. 0 until it is needed.
    number: u64,
    /// Of the content before it; 0 where that is not known.
    parent: u64,
    /// A block that followed this one; 0 for none. Only a hint.
    next: u32,
    /// A block that stood [`Chains::AHEAD`] blocks behind this one. Only for prefetching.
    ahead: u32,
    has_keys: bool,
    /// Whether another block may have the same hash, or this one's time may be over: then the index is asked.
    is_special: bool,
}

/// Tokens of a block, or the beginning of them, in one cache line.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
struct Lane([u32; LANES]);

/// The links of a pool's blocks; without memory until the first call that has tokens.
#[derive(Debug, Default)]
pub(super) struct Chains {
    naming: Option<Naming>,
    links: Vec<Link>,
    /// The tokens of each block, the last lane filled up with zeros.
    tokens: Vec<Lane>,
    lanes_a_block: usize,
    /// Of each block; without memory until the first block that has keys.
    key_digests: Vec<[u8; 32]>,
    /// A block that was first in a prompt; 0 for none. Only a hint.
    first: u32,
    last_number: u64,
}

/// What a block holds, and behind which one it stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Content<'a> {
    pub(crate) hash: &'a BlockHash,
    /// The block before it and its hash; None for a first block.
    pub(crate) parent: Option<(u32, &'a BlockHash)>,
    pub(crate) tokens: &'a [u32],
    pub(crate) keys: Option<&'a ExtraKeys>,
}

impl Chains {
    /// How far a walk looks ahead with [`Self::prefetch`]: it takes about 10 ns a block, and memory 80 ns.
    pub(super) const AHEAD: usize = 8;

    /// Whether the chains are of this kind, or are from now on.
    pub(super) fn are_of(&mut self, naming: &Naming, num_blocks: usize) -> bool {
        if self.naming.is_none() {
            self.naming = Some(*naming);
            self.last_number = START;
            if naming.block_size <= MAX_BLOCK_SIZE && self.reserve(naming.block_size, num_blocks).is_err() {
                // Chains save time, no more: a pool without the memory for them hashes.
                (self.links, self.tokens) = (Vec::new(), Vec::new());
            }
        }
        self.naming.as_ref() == Some(naming) && !self.links.is_empty()
    }

    fn reserve(&mut self, block_size: usize, num_blocks: usize) -> Result<(), TryReserveError> {
        self.lanes_a_block = block_size.div_ceil(LANES);
        self.tokens = filled(Lane([0; LANES]), self.lanes_a_block * num_blocks)?;
        self.links = filled(Link::default(), num_blocks)?;
        Ok(())
    }

    /// A block is cached now that holds what `twin` holds already.
    #[inline(always)]
    pub(super) fn begin(&mut self, id: u32, twin: u32) {
        if let Some(link) = self.links.get_mut(twin as usize) {
            link.is_special = true;
            let number = link.number;
            self.links[id as usize] = Link { number, is_special: true, ..Link::default() };
        }
    }

    /// A block's time may be over some day.
    #[inline(always)]
    pub(super) fn limit(&mut self, id: u32) {
        if let Some(link) = self.links.get_mut(id as usize) {
            link.is_special = true;
        }
    }

    /// A block is not cached any more.
    #[inline(always)]
    pub(super) fn end(&mut self, id: u32) {
        if let Some(link) = self.links.get_mut(id as usize) {
            *link = Link::default();
        }
    }

    /// No block is cached any more.
    pub(super) fn clear(&mut self) {
        self.links.fill(Link::default());
        self.first = 0;
    }

    /// Keeps what a cached block holds. The caller has seen that `id` and the parent have these hashes.
    pub(super) fn link(&mut self, id: u32, content: &Content<'_>, is_special: bool) {
        if let Some(keys) = content.keys {
            if self.key_digests.is_empty() {
                let Ok(digests) = filled([0; 32], self.links.len()) else { return };
                self.key_digests = digests;
            }
            self.key_digests[id as usize] = *keys.digest();
        }
        let parent = match content.parent {
            None => {
                self.first = id;
                START
            }
            Some((parent, _)) => {
                self.links[parent as usize].next = id;
                self.number_of(parent)
            }
        };
        let lanes = &mut self.tokens[id as usize * self.lanes_a_block..][..self.lanes_a_block];
        for (lane, tokens) in lanes.iter_mut().zip(content.tokens.chunks(LANES)) {
            lane.0[..tokens.len()].copy_from_slice(tokens);
        }
        let link = &mut self.links[id as usize];
        link.parent = parent;
        link.has_keys = content.keys.is_some();
        link.is_special |= is_special;
    }

    /// Asks the cache for what is known of a block.
    #[inline(always)]
    pub(super) fn prefetch(&self, id: u32) {
        prefetch_entry(&self.links, id as usize);
        prefetch_entry(&self.tokens, id as usize * self.lanes_a_block);
    }

    /// Notes which block stands [`Self::AHEAD`] blocks behind `id`.
    #[inline(always)]
    pub(super) fn set_ahead(&mut self, id: u32, ahead: u32) {
        if let Some(link) = self.links.get_mut(id as usize) {
            link.ahead = ahead;
        }
    }

    /// The block that the hint of `at` (None: the start) names, if that is what holds these tokens behind `at`; and
    /// whether the index must be asked which block is found.
    #[inline(always)]
    pub(super) fn follow(
        &self,
        at: Option<u32>,
        tokens: &[u32],
        keys: Option<&ExtraKeys>,
    ) -> Option<(u32, bool)> {
        let (next, number) = match at {
            None => (self.first, START),
            Some(at) => {
                let link = self.links.get(at as usize)?;
                self.prefetch(link.ahead);
                (link.next, link.number)
            }
        };
        let link = self.links.get(next as usize)?;
        let lanes = self.tokens.get(next as usize * self.lanes_a_block..)?;
        let fits = link.parent == number
            && number != 0
            && link.has_keys == keys.is_some()
            && hold(lanes, tokens)
            && keys.is_none_or(|keys| self.key_digests[next as usize] == *keys.digest());
        fits.then_some((next, link.is_special))
    }

    fn number_of(&mut self, id: u32) -> u64 {
        let link = &mut self.links[id as usize];
        if link.number == 0 {
            self.last_number += 1;
            link.number = self.last_number;
        }
        link.number
    }

    /// Proves that every link tells the truth, by hashing what can be hashed: blocks whose parent is cached, and whose
    /// keys are not kept as a digest only.
    pub(super) fn check(
        &self,
        is_cached: impl Fn(u32) -> bool,
        hash_of: impl Fn(u32) -> BlockHash,
        group_of: impl Fn(u32) -> u8,
        is_special: impl Fn(u32) -> bool,
    ) -> Result<(), String> {
        let Some(Naming { algorithm, block_size, first_parent, group }) = self.naming else { return Ok(()) };
        let mut hasher = BlockHasher::new(algorithm, block_size).map_err(|error| error.to_string())?;
        let digest_len = algorithm.digest_len();
        let mut hash_of_number = std::collections::BTreeMap::from([(START, first_parent)]);
        for (id, link) in (0_u32..).zip(&self.links) {
            if link.number == 0 && link.parent == 0 {
                continue;
            }
            if !is_cached(id) || (link.parent != 0 && group_of(id) != group) {
                return Err(format!("block {id} is linked and not cached"));
            }
            if link.parent != 0 && is_special(id) && !link.is_special {
                return Err(format!("block {id} is taken without a look at the index"));
            }
            if link.number != 0 && *hash_of_number.entry(link.number).or_insert(hash_of(id)) != hash_of(id) {
                return Err(format!("block {id} has the number of another content"));
            }
        }
        for (id, link) in (0_u32..).zip(&self.links) {
            let Some(parent) = hash_of_number.get(&link.parent).filter(|_| !link.has_keys) else { continue };
            let (mut parent, mut hash) = (*parent, BlockHash::default());
            let lanes = &self.tokens[id as usize * self.lanes_a_block..][..self.lanes_a_block];
            let tokens: Vec<u32> = lanes.iter().flat_map(|lane| lane.0).take(block_size).collect();
            hasher.continue_chain(&mut parent[..digest_len], &tokens, |_| None, &mut hash[..digest_len]);
            if hash != hash_of(id) {
                return Err(format!("block {id} is linked with tokens that it does not hold"));
            }
        }
        Ok(())
    }
}

/// Whether lanes begin with these tokens. A call of `memcmp` for each block would take as long as the comparison.
#[inline(always)]
fn hold(lanes: &[Lane], tokens: &[u32]) -> bool {
    let (whole, rest) = tokens.as_chunks::<LANES>();
    let differ = |(lane, tokens): (&Lane, &[u32; LANES])| {
        lane.0.iter().zip(tokens).fold(0, |bits, (kept, token)| bits | (kept ^ token))
    };
    lanes.iter().zip(whole).all(|pair| differ(pair) == 0)
        && (rest.is_empty() || lanes.get(whole.len()).is_some_and(|lane| lane.0.starts_with(rest)))
}
