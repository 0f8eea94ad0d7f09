//! A part of a prompt, and how it is named.

use std::hash::{BuildHasher, RandomState};
use std::sync::OnceLock;

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Least bytes of a part of the lowest level. Shorter parts save more of a prompt's end and cost more look-ups.
pub(super) const SMALLEST: usize = 1024;
/// A part of one level is made of so many of the level below.
pub(super) const JOINED: usize = 8;
/// Levels: parts of 1 KiB, of 8 KiB and of 64 KiB, or a little more. Long ones are read at the speed of memory,
/// where each of the short ones costs some hundred nanoseconds.
pub(super) const LEVELS: u8 = 3;

/// Which parts may stand for each other: those of one level, encoded with the same option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kind {
    pub(super) level: u8,
    pub(super) parse_special: bool,
    /// Whether it begins a text, where that makes a difference.
    pub(super) begins: bool,
}

impl Kind {
    /// Bytes that every part of this kind has, and that name it.
    pub(super) fn window(self) -> usize {
        SMALLEST * JOINED.pow(u32::from(self.level))
    }

    /// The hash of a part's first [`Self::window`] bytes, under a seed that strangers do not know.
    pub(super) fn hash(self, window: &[u8]) -> u64 {
        xxh3_64_with_seed(window, seed() ^ self.number())
    }

    /// The hash of the little that a part begins with.
    pub(super) fn hash_beginning(self, window: &[u8]) -> u64 {
        let beginning = window.get(..BEGINNING).unwrap_or(window);
        xxh3_64_with_seed(beginning, !seed() ^ self.number())
    }

    fn number(self) -> u64 {
        u64::from(self.level) << 2 | u64::from(self.begins) << 1 | u64::from(self.parse_special)
    }
}

/// Bytes by which a part is guessed before it is read: enough to tell turns apart, and one line of memory.
const BEGINNING: usize = 64;

fn seed() -> u64 {
    static SEED: OnceLock<u64> = OnceLock::new();
    *SEED.get_or_init(|| RandomState::new().hash_one(0_u64))
}

/// Text that may be cut at both ends, and its ids.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) kind: Kind,
    text: Box<[u8]>,
    ids: Box<[u32]>,
}

/// What a part costs beside its text and its ids: its place in a shard, the index and three allocations.
const OVERHEAD: usize = 192;

impl Part {
    pub(super) fn new(kind: Kind, text: &[u8], ids: &[u32]) -> Self {
        Self { kind, text: text.into(), ids: ids.into() }
    }

    /// Parts that follow each other as one, of the next level.
    pub(super) fn joined(kind: Kind, parts: &[impl AsRef<Self>]) -> Self {
        let texts: Vec<&[u8]> = parts.iter().map(|part| &*part.as_ref().text).collect();
        let ids: Vec<&[u32]> = parts.iter().map(|part| &*part.as_ref().ids).collect();
        Self { kind, text: texts.concat().into(), ids: ids.concat().into() }
    }

    pub(super) fn text(&self) -> &[u8] {
        &self.text
    }

    pub(super) fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Memory that it takes.
    pub(super) fn bytes(&self) -> usize {
        OVERHEAD + self.text.len() + self.ids.len() * 4
    }
}
