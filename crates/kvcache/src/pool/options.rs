//! What a pool is made with, and how long it keeps what.

use crate::error::KvCacheError;
use crate::hash::Algorithm;

/// Highest priority of a cached block.
pub const MAX_PRIORITY: u8 = 100;
/// Priority of a block for which none is named.
pub const DEFAULT_PRIORITY: u8 = 50;

/// Which cached block goes first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Eviction {
    /// The least recently used one.
    #[default]
    Lru,
    /// The one of the lowest priority; among equals the least recently used one.
    Priority,
}

impl Eviction {
    /// The policy with this name, `"lru"` or `"priority"`.
    pub fn from_name(name: &str) -> Result<Self, KvCacheError> {
        match name {
            "lru" => Ok(Self::Lru),
            "priority" => Ok(Self::Priority),
            _ => Err(KvCacheError::UnknownEviction { name: name.to_owned() }),
        }
    }
}

/// What a pool is made with beside its size.
#[derive(Clone, Copy, Debug)]
pub struct PoolOptions {
    /// What makes the hashes; says how long they are.
    pub algorithm: Algorithm,
    /// Which cached block goes first.
    pub eviction: Eviction,
    /// Most blocks that may be pinned.
    pub pin_blocks: usize,
    /// Bytes of events that are kept until somebody drains them; 0 for no events.
    pub event_bytes: usize,
}

impl Default for PoolOptions {
    fn default() -> Self {
        Self { algorithm: Algorithm::Sha256Cbor, eviction: Eviction::Lru, pin_blocks: 0, event_bytes: 0 }
    }
}

/// How long a block is remembered, and how dearly.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Retention {
    /// From 0 to [`MAX_PRIORITY`], for pools that evict by priority; [`DEFAULT_PRIORITY`] where it is left out.
    pub priority: Option<u8>,
    /// Seconds after which look-ups do not find the block any more.
    pub seconds: Option<f64>,
}
