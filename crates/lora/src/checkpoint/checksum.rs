//! The checksum of a file: XXH3, 128 bits, as `xxhsum -H128` prints it.

use xxhash_rust::xxh3::Xxh3;

/// The name of the checksum in reports.
pub(super) const ALGORITHM: &str = "xxh3-128";

/// A checksum of bytes that come piece by piece.
#[derive(Clone, Default)]
pub(super) struct Checksum(Xxh3);

impl Checksum {
    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The checksum of what came so far.
    pub(super) fn hex(&self) -> String {
        format!("{:032x}", self.0.digest128())
    }
}
