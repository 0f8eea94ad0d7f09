//! The check that every page carries.

use super::TierError;
use crate::kernels::xxh3;
use infer_accel_tensor::simd;

/// Bytes of a check.
pub(super) const CHECK_BYTES: usize = 16;

/// Pages that are longer are checked, copied and moved to and from the device in pieces of this length: long enough that
/// a call is nothing beside the bytes, short enough that a piece lies in a core's cache from one step to the next.
pub(super) const PIECE_BYTES: usize = 128 << 10;
/// What is read at once straight to the caller's memory: it is checked there, so that it may fill more of the cache of a
/// core. (Zen 4, GB/s of 2 MiB pages by 64, 128, 256, 512 KiB: 10.3, 11.4, 12.1, 12.3.)
pub(super) const STRAIGHT_BYTES: usize = 256 << 10;
const _: () = assert!(STRAIGHT_BYTES.is_multiple_of(xxh3::BLOCK_BYTES));
/// Pages that are longer are checked while they are copied.
pub(super) const SHORT_BYTES: usize = xxh3::BLOCK_BYTES;
const _: () = assert!(SHORT_BYTES > xxh3::LONGEST_SHORT);
const _: () = assert!(PIECE_BYTES.is_multiple_of(xxh3::BLOCK_BYTES));

/// How a stored page is checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Checksum {
    /// xxh3, 128 bits: as fast as memory. Finds what devices and crashes do; anybody can make pages that fit it.
    #[default]
    Xxh3,
    /// blake3, cut to 128 bits: slower, and nobody can make another page with the same check.
    Blake3,
}

impl Checksum {
    /// The checksum of a name.
    pub fn from_name(name: &str) -> Result<Self, TierError> {
        match name {
            "xxh3" => Ok(Self::Xxh3),
            "blake3" => Ok(Self::Blake3),
            _ => Err(TierError::UnknownChecksum { name: name.to_owned() }),
        }
    }

    pub(super) fn number(self) -> u8 {
        match self {
            Self::Xxh3 => 1,
            Self::Blake3 => 2,
        }
    }

    /// The check of `bytes`.
    pub(super) fn of(self, bytes: &[u8]) -> [u8; CHECK_BYTES] {
        match self {
            Self::Xxh3 if bytes.len() > xxh3::LONGEST_SHORT => xxh3::digest(simd::tier(), bytes),
            Self::Xxh3 => xxhash_rust::xxh3::xxh3_128(bytes).to_le_bytes(),
            Self::Blake3 => {
                let mut check = [0; CHECK_BYTES];
                check.copy_from_slice(&blake3::hash(bytes).as_bytes()[..CHECK_BYTES]);
                check
            }
        }
    }
}

/// A check that is made piece by piece, while the pieces are copied (see `rows`).
pub(super) enum Checker {
    Xxh3(Box<xxh3::Hasher>),
    Blake3(Box<blake3::Hasher>),
}

impl Checker {
    /// Of so many bytes, more than [`SHORT_BYTES`].
    pub(super) fn new(checksum: Checksum, bytes: usize) -> Self {
        match checksum {
            Checksum::Xxh3 => Self::Xxh3(Box::new(xxh3::Hasher::new(simd::tier(), bytes))),
            Checksum::Blake3 => Self::Blake3(Box::new(blake3::Hasher::new())),
        }
    }

    /// The check of all pieces together: that of [`Checksum::of`].
    pub(super) fn finish(&self) -> [u8; CHECK_BYTES] {
        match self {
            Self::Xxh3(hasher) => hasher.digest(),
            Self::Blake3(hasher) => {
                let mut check = [0; CHECK_BYTES];
                check.copy_from_slice(&hasher.finalize().as_bytes()[..CHECK_BYTES]);
                check
            }
        }
    }
}

/// How pages are packed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Compression {
    /// As they are.
    #[default]
    None,
    /// zstd, level 1; a page that does not shrink is stored as it is.
    Zstd,
}

impl Compression {
    /// The compression of a name.
    pub fn from_name(name: &str) -> Result<Self, TierError> {
        match name {
            "none" => Ok(Self::None),
            "zstd" => Ok(Self::Zstd),
            _ => Err(TierError::UnknownCompression { name: name.to_owned() }),
        }
    }
}
