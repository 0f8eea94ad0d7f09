//! Block hashes: a chain in which each full block of tokens is named by its whole prefix.
//!
//! A block's hash is `H((parent, tokens, extra_keys))`, where `parent` is the hash of the block before it. The
//! serialisation is part of the name, so it follows vLLM (`vllm/utils/hashing.py`, `hash_block_tokens`) byte for
//! byte: canonical CBOR (RFC 8949, section 4.2) or pickle protocol 5 of that Python tuple, then SHA-256 or XXH3.

mod algorithm;
mod cbor;
mod digest;
mod encode;
mod extra_keys;
mod pickle;

pub use algorithm::Algorithm;
pub use extra_keys::{ExtraKey, ExtraKeys};

use crate::error::KvCacheError;
use encode::BlockEncoder;
use infer_accel_tensor::simd::{self, Tier};

/// Most tokens of a block that can be hashed.
pub const MAX_BLOCK_SIZE: usize = 1 << 24;

/// A prompt and how its blocks are named.
#[derive(Clone, Copy, Debug)]
pub struct HashRequest<'a> {
    /// The tokens; those after the last full block are not hashed.
    pub token_ids: &'a [u32],
    /// Tokens in a block.
    pub block_size: usize,
    /// Serialisation and hash function.
    pub algorithm: Algorithm,
    /// Hash of the block before the first one; [`Algorithm::none_hash`] at the start of a prompt.
    pub parent: &'a [u8],
    /// Empty, or one entry for each full block.
    pub extra_keys: &'a [Option<ExtraKeys>],
}

impl HashRequest<'_> {
    /// How many full blocks the tokens fill; an error when the request cannot be hashed.
    pub fn num_blocks(&self) -> Result<usize, KvCacheError> {
        if self.block_size == 0 {
            return Err(KvCacheError::BlockSize { got: 0, max: MAX_BLOCK_SIZE });
        }
        let num_blocks = self.token_ids.len() / self.block_size;
        let expected = self.algorithm.digest_len();
        if self.parent.len() != expected {
            let algorithm = self.algorithm.name();
            return Err(KvCacheError::ParentLength { algorithm, got: self.parent.len(), expected });
        }
        if !self.extra_keys.is_empty() && self.extra_keys.len() != num_blocks {
            return Err(KvCacheError::ExtraKeysCount { got: self.extra_keys.len(), expected: num_blocks });
        }
        if self.algorithm.is_pickle() && self.extra_keys.iter().any(Option::is_some) {
            return Err(KvCacheError::ExtraKeysPickle { algorithm: self.algorithm.name() });
        }
        Ok(num_blocks)
    }
}

/// Hashes every full block of a prompt into `out`, one digest after the other.
///
/// `out` must hold [`HashRequest::num_blocks`] digests exactly. Time is linear in the tokens; nothing is allocated
/// but one buffer as long as a serialised block.
pub fn hash_blocks(request: &HashRequest<'_>, out: &mut [u8]) -> Result<(), KvCacheError> {
    hash_blocks_with(simd::tier(), request, out)
}

fn hash_blocks_with(tier: Tier, request: &HashRequest<'_>, out: &mut [u8]) -> Result<(), KvCacheError> {
    let num_blocks = request.num_blocks()?;
    let digest_len = request.algorithm.digest_len();
    if out.len() != num_blocks * digest_len {
        return Err(KvCacheError::HashBytes { got: out.len(), expected: num_blocks * digest_len });
    }
    if num_blocks == 0 {
        return Ok(());
    }
    let mut hasher = BlockHasher::with_tier(tier, request.algorithm, request.block_size)?;
    let mut parent = [0; Algorithm::MAX_DIGEST_LEN];
    let parent = &mut parent[..digest_len];
    parent.copy_from_slice(request.parent);
    let keys = |block: usize| request.extra_keys.get(block).and_then(Option::as_ref);
    hasher.continue_chain(parent, request.token_ids, keys, out);
    Ok(())
}

/// Hashes blocks of one size, one after the other or chain by chain; made once, it allocates nothing more.
#[derive(Clone, Debug)]
pub struct BlockHasher {
    encoder: BlockEncoder,
    algorithm: Algorithm,
    block_size: usize,
}

impl BlockHasher {
    /// Hashes blocks of `block_size` tokens.
    pub fn new(algorithm: Algorithm, block_size: usize) -> Result<Self, KvCacheError> {
        Self::with_tier(simd::tier(), algorithm, block_size)
    }

    fn with_tier(tier: Tier, algorithm: Algorithm, block_size: usize) -> Result<Self, KvCacheError> {
        if !(1..=MAX_BLOCK_SIZE).contains(&block_size) {
            return Err(KvCacheError::BlockSize { got: block_size, max: MAX_BLOCK_SIZE });
        }
        Ok(Self { encoder: BlockEncoder::new(tier, algorithm, block_size), algorithm, block_size })
    }

    /// How blocks are serialised and hashed.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Tokens in a block.
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// Hashes every full block of `tokens` behind `parent`, writes the digests one after the other, and leaves the
    /// last of them in `parent`. Returns the number of blocks.
    ///
    /// What does not fit into `out` is not hashed, and nothing is where `parent` has not the length of a digest.
    /// `extra_keys` is asked for the keys of each block, counted from 0 in this call; where the algorithm is pickle
    /// they are ignored (see [`HashRequest::num_blocks`]).
    pub fn continue_chain<'k>(
        &mut self,
        parent: &mut [u8],
        tokens: &[u32],
        extra_keys: impl Fn(usize) -> Option<&'k ExtraKeys>,
        out: &mut [u8],
    ) -> usize {
        let digest_len = self.algorithm.digest_len();
        if parent.len() != digest_len {
            return 0;
        }
        let blocks = tokens.chunks_exact(self.block_size).zip(out.chunks_exact_mut(digest_len));
        let mut count = 0;
        for (block, digest) in blocks {
            self.encoder.hash(parent, block, extra_keys(count), digest);
            parent.copy_from_slice(digest);
            count += 1;
        }
        count
    }
}

/// 128 bits of XXH3 in their canonical form: what `xxhash_cbor` and `xxhash` make of a serialised block.
pub fn xxh3_128(message: &[u8]) -> [u8; 16] {
    xxhash_rust::xxh3::xxh3_128(message).to_be_bytes()
}

/// Writes token ids as the hashes take them; an error names the first that is negative or above `u32::MAX`, where
/// the first of `ids` stands at `position`. Both slices are of one length.
pub fn narrow_token_ids(ids: &[i64], position: usize, out: &mut [u32]) -> Result<(), KvCacheError> {
    // One pass without branches: an id outside 32 bits leaves a bit in the upper half.
    let mut bits = 0;
    for (id, narrow) in ids.iter().zip(out) {
        bits |= id;
        *narrow = *id as u32;
    }
    if bits >> 32 == 0 {
        return Ok(());
    }
    let outside = |id: &&i64| u32::try_from(**id).is_err();
    let found = ids.iter().enumerate().find(|(_, id)| outside(id));
    found.map_or(Ok(()), |(at, value)| Err(KvCacheError::TokenId { position: position + at, value: *value }))
}

/// The same for ids that were read from 32 bits with a sign.
pub fn check_signed_ids(ids: &[u32], position: usize) -> Result<(), KvCacheError> {
    if ids.iter().fold(0, |bits, id| bits | id).cast_signed() >= 0 {
        return Ok(());
    }
    let found = ids.iter().enumerate().find(|(_, id)| id.cast_signed() < 0);
    found.map_or(Ok(()), |(at, id)| {
        Err(KvCacheError::TokenId { position: position + at, value: id.cast_signed().into() })
    })
}

#[cfg(test)]
mod tests;
