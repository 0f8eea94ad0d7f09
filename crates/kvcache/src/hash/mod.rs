//! Block hashes: a chain in which each full block of tokens is named by its whole prefix.
//!
//! A block's hash is `H((parent, tokens, extra_keys))`, where `parent` is the hash of the block before it. The
//! serialisation is part of the name, so it follows vLLM (`vllm/utils/hashing.py`, `hash_block_tokens`) byte for
//! byte: canonical CBOR (RFC 8949, section 4.2) or pickle protocol 5 of that Python tuple.

mod algorithm;
mod cbor;
mod encode;
mod extra_keys;
mod pickle;

pub use algorithm::Algorithm;
pub use extra_keys::{ExtraKey, ExtraKeys};

use crate::error::KvCacheError;
use encode::BlockEncoder;
use infer_accel_tensor::simd::{self, Tier};

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
            return Err(KvCacheError::BlockSize { got: 0 });
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
    let mut encoder = BlockEncoder::new(tier, request);
    let mut parent = [0; Algorithm::MAX_DIGEST_LEN];
    let parent = &mut parent[..digest_len];
    parent.copy_from_slice(request.parent);
    let blocks = request.token_ids.chunks_exact(request.block_size);
    for (index, (tokens, digest)) in blocks.zip(out.chunks_exact_mut(digest_len)).enumerate() {
        let extra_keys = request.extra_keys.get(index).and_then(Option::as_ref);
        encoder.hash(parent, tokens, extra_keys, digest);
        parent.copy_from_slice(digest);
    }
    Ok(())
}

/// Token ids as the hashes take them; an error names the first id that is negative or above `u32::MAX`.
pub fn checked_token_ids(ids: &[i64]) -> Result<Vec<u32>, KvCacheError> {
    // One pass without branches: an id outside 32 bits leaves a bit in the upper half.
    if ids.iter().fold(0, |bits, id| bits | id) >> 32 != 0 {
        let outside = |id: &&i64| u32::try_from(**id).is_err();
        if let Some((position, value)) = ids.iter().enumerate().find(|(_, id)| outside(id)) {
            return Err(KvCacheError::TokenId { position, value: *value });
        }
    }
    Ok(ids.iter().map(|id| *id as u32).collect())
}

#[cfg(test)]
mod tests;
