//! The check that every page carries.

use super::TierError;

/// Bytes of a check.
pub(super) const CHECK_BYTES: usize = 16;

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
            Self::Xxh3 => twox_hash::XxHash3_128::oneshot(bytes).to_le_bytes(),
            Self::Blake3 => {
                let mut check = [0; CHECK_BYTES];
                check.copy_from_slice(&blake3::hash(bytes).as_bytes()[..CHECK_BYTES]);
                check
            }
        }
    }
}

/// A check that is made piece by piece.
pub(super) enum Checker {
    Xxh3(Box<twox_hash::xxhash3_128::Hasher>),
    Blake3(Box<blake3::Hasher>),
}

impl Checker {
    pub(super) fn new(checksum: Checksum) -> Self {
        match checksum {
            Checksum::Xxh3 => Self::Xxh3(Box::new(twox_hash::xxhash3_128::Hasher::new())),
            Checksum::Blake3 => Self::Blake3(Box::new(blake3::Hasher::new())),
        }
    }

    pub(super) fn write(&mut self, piece: &[u8]) {
        match self {
            Self::Xxh3(hasher) => hasher.write(piece),
            Self::Blake3(hasher) => drop(hasher.update(piece)),
        }
    }

    /// The check of all pieces together: that of [`Checksum::of`].
    pub(super) fn finish(self) -> [u8; CHECK_BYTES] {
        match self {
            Self::Xxh3(hasher) => hasher.finish_128().to_le_bytes(),
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
