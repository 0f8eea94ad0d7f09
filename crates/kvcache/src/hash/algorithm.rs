//! The names of the hash algorithms, and where a chain of hashes begins.

use super::{cbor, pickle};
use crate::error::KvCacheError;
use crate::kernels::sha256;
use infer_accel_tensor::simd;

/// The seed that vLLM takes for a first parent when `PYTHONHASHSEED` is not set.
const DEFAULT_SEED: &str = "vllm-none-hash";

/// How a block is serialised and hashed, by vLLM's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Algorithm {
    /// SHA-256 of canonical CBOR: equal content, equal hash, in every language.
    Sha256Cbor,
    /// SHA-256 of Python's pickle, protocol 5.
    Sha256,
}

impl Algorithm {
    /// Every algorithm.
    pub const ALL: [Self; 2] = [Self::Sha256Cbor, Self::Sha256];
    /// Bytes of the longest digest.
    pub const MAX_DIGEST_LEN: usize = sha256::DIGEST_BYTES;

    /// The algorithm with this name.
    pub fn from_name(name: &str) -> Result<Self, KvCacheError> {
        let found = Self::ALL.into_iter().find(|algorithm| algorithm.name() == name);
        found.ok_or_else(|| KvCacheError::UnknownAlgorithm { name: name.to_owned() })
    }

    /// vLLM's name for this algorithm.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sha256Cbor => "sha256_cbor",
            Self::Sha256 => "sha256",
        }
    }

    /// Bytes of a digest.
    pub const fn digest_len(self) -> usize {
        match self {
            Self::Sha256Cbor | Self::Sha256 => sha256::DIGEST_BYTES,
        }
    }

    /// Whether blocks are serialised by pickle, whose bytes depend on which Python objects are one and the same.
    pub const fn is_pickle(self) -> bool {
        matches!(self, Self::Sha256)
    }

    /// The parent of a first block, vLLM's `NONE_HASH`: the hash of `seed` (the value of `PYTHONHASHSEED`), or of
    /// `"vllm-none-hash"`.
    pub fn none_hash(self, seed: Option<&str>) -> Result<Vec<u8>, KvCacheError> {
        let seed = seed.unwrap_or(DEFAULT_SEED);
        if seed.len() > pickle::MAX_TEXT_BYTES {
            return Err(KvCacheError::SeedLength { got: seed.len(), max: pickle::MAX_TEXT_BYTES });
        }
        let mut message = match self {
            Self::Sha256Cbor => cbor::text(seed),
            Self::Sha256 => pickle::text(seed),
        };
        let length = message.len();
        message.resize(length + sha256::PADDING_BYTES, 0);
        let padded = sha256::pad(&mut message, length);
        Ok(sha256::Kernel::for_tier(simd::tier()).digest(&message[..padded]).to_vec())
    }
}
