//! The hash functions behind the algorithms' names.

use super::Algorithm;
use crate::kernels::sha256::{self, Kernel};
use infer_accel_tensor::simd::Tier;
use xxhash_rust::xxh3::xxh3_128;

/// Bytes to keep free behind a message: SHA-256 pads it in place.
pub(super) const PADDING_BYTES: usize = sha256::PADDING_BYTES;

/// A hash function, chosen once for a chain.
#[derive(Clone, Copy, Debug)]
pub(super) enum Digest {
    Sha256(Kernel),
    /// 128 bits, written in the canonical (big-endian) form.
    Xxh3,
}

impl Digest {
    /// Bytes of the longest digest.
    pub(super) const MAX_LEN: usize = sha256::DIGEST_BYTES;

    pub(super) fn new(tier: Tier, algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Sha256Cbor | Algorithm::Sha256 => Self::Sha256(Kernel::for_tier(tier)),
            Algorithm::XxhashCbor | Algorithm::Xxhash => Self::Xxh3,
        }
    }

    /// Writes the digest of `buffer[..length]`, behind which [`PADDING_BYTES`] may be overwritten. `digest` is as long
    /// as the algorithm says.
    #[inline(always)]
    pub(super) fn of(self, buffer: &mut [u8], length: usize, digest: &mut [u8]) {
        match self {
            Self::Sha256(kernel) => {
                let padded = sha256::pad(buffer, length);
                digest.copy_from_slice(&kernel.digest(&buffer[..padded]));
            }
            Self::Xxh3 => digest.copy_from_slice(&xxh3_128(&buffer[..length]).to_be_bytes()),
        }
    }
}
