//! The names of the hash algorithms, and where a chain of hashes begins.

use super::digest::{Digest, PADDING_BYTES};
use super::{cbor, pickle};
use crate::error::KvCacheError;
use infer_accel_tensor::simd;
use std::fmt::Write as _;
use std::hash::{BuildHasher, RandomState};
use std::sync::OnceLock;

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
    /// XXH3 with 128 bits of canonical CBOR: fast, and easy to forge for whoever knows where the chain begins.
    XxhashCbor,
    /// XXH3 with 128 bits of Python's pickle, protocol 5.
    Xxhash,
}

impl Algorithm {
    /// Every algorithm.
    pub const ALL: [Self; 4] = [Self::Sha256Cbor, Self::Sha256, Self::XxhashCbor, Self::Xxhash];
    /// Bytes of the longest digest.
    pub const MAX_DIGEST_LEN: usize = Digest::MAX_LEN;

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
            Self::XxhashCbor => "xxhash_cbor",
            Self::Xxhash => "xxhash",
        }
    }

    /// Bytes of a digest.
    pub const fn digest_len(self) -> usize {
        match self {
            Self::Sha256Cbor | Self::Sha256 => 32,
            Self::XxhashCbor | Self::Xxhash => 16,
        }
    }

    /// Whether blocks are serialised by pickle, whose bytes depend on which Python objects are one and the same.
    pub const fn is_pickle(self) -> bool {
        matches!(self, Self::Sha256 | Self::Xxhash)
    }

    /// Whether nobody can find two prompts of one hash.
    pub const fn is_collision_resistant(self) -> bool {
        matches!(self, Self::Sha256Cbor | Self::Sha256)
    }

    /// The parent of a first block, vLLM's `NONE_HASH`: the hash of `seed`, which is the value of `PYTHONHASHSEED`.
    ///
    /// Without one it is the hash of `"vllm-none-hash"` where the algorithm resists collisions, and otherwise of a
    /// random text of this process, so that nobody can prepare colliding prompts.
    pub fn none_hash(self, seed: Option<&str>) -> Result<Vec<u8>, KvCacheError> {
        let unseeded = if self.is_collision_resistant() { DEFAULT_SEED } else { random_seed() };
        let seed = seed.unwrap_or(unseeded);
        if seed.len() > pickle::MAX_TEXT_BYTES {
            return Err(KvCacheError::SeedLength { got: seed.len(), max: pickle::MAX_TEXT_BYTES });
        }
        let mut message = if self.is_pickle() { pickle::text(seed) } else { cbor::text(seed) };
        let length = message.len();
        message.resize(length + PADDING_BYTES, 0);
        let mut digest = vec![0; self.digest_len()];
        Digest::new(simd::tier(), self).of(&mut message, length, &mut digest);
        Ok(digest)
    }
}

/// 256 random bits as text, the same for the whole life of the process.
fn random_seed() -> &'static str {
    static SEED: OnceLock<String> = OnceLock::new();
    SEED.get_or_init(|| {
        let mut seed = String::with_capacity(64);
        for word in 0..4_u64 {
            let _ = write!(seed, "{:016x}", RandomState::new().hash_one(word)); // writing to a string cannot fail
        }
        seed
    })
}
