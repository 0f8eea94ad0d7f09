//! What a pool stored and removed: kept until somebody drains it, within a bound.
//!
//! A router that follows the events of a server knows which prefixes it has. The wire format is that of vLLM
//! (`vllm/distributed/kv_events.py`): `MessagePack` of an `EventBatch`.
//!
//! When nobody drains, the log does not grow and does not lie: at its bound it forgets what it holds and says "all
//! cleared" instead. Whoever reads it then believes that less is cached than is, which costs a hit and never a wrong
//! one.

mod keys;
mod msgpack;
mod wire;

pub use wire::HashForm;

use crate::hash::ExtraKeys;
use crate::pool::BlockHash;

/// What a cache group is called in events, and its window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupName {
    /// `"full_attention"` or `"sliding_window"`.
    pub kind: &'static str,
    /// Tokens of the window.
    pub window: Option<u32>,
}

/// Blocks that can be found from now on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stored<'a> {
    pub(crate) hashes: &'a [BlockHash],
    /// The hash of the block before them.
    pub(crate) parent: Option<&'a BlockHash>,
    /// Their tokens.
    pub(crate) tokens: &'a [u32],
    pub(crate) block_size: usize,
    pub(crate) group: u8,
    pub(crate) name: Option<GroupName>,
}

/// One event, as [`EventLog::drain`] passes it on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event<'a> {
    /// Blocks that can be found from now on.
    Stored {
        /// Their hashes, each with the zeros that fill it up.
        hashes: &'a [BlockHash],
        /// The hash of the block before them.
        parent: Option<BlockHash>,
        /// Their tokens; none where the caller of the pool named hashes only.
        tokens: &'a [u32],
        /// Tokens in a block.
        block_size: usize,
        /// Their cache group.
        group: u8,
        /// What that is called.
        name: Option<GroupName>,
        /// Name of the adapter, in `MessagePack`; empty where there is none.
        adapter: &'a [u8],
        /// The extra keys of each block, in `MessagePack`.
        keys: &'a [u8],
    },
    /// Blocks that cannot be found any more.
    Removed {
        /// Their hashes, each with the zeros that fill it up.
        hashes: &'a [BlockHash],
        /// Their cache group.
        group: u8,
    },
    /// No block can be found any more.
    Cleared,
}

#[derive(Clone, Copy, Debug)]
enum Record {
    Stored {
        hashes: u32,
        parent: Option<BlockHash>,
        tokens: u32,
        block_size: u32,
        group: u8,
        name: Option<GroupName>,
        adapter: u32,
        keys: u32,
    },
    Removed {
        hashes: u32,
        group: u8,
    },
    Cleared,
}

/// The events since the last drain.
#[derive(Debug)]
pub struct EventLog {
    records: Vec<Record>,
    /// What the records speak of, in their order.
    hashes: Vec<BlockHash>,
    tokens: Vec<u32>,
    keys: Vec<u8>,
    max_bytes: usize,
    digest_len: usize,
    lost: u64,
}

impl EventLog {
    pub(crate) fn new(max_bytes: usize, digest_len: usize) -> Self {
        Self {
            records: Vec::new(),
            hashes: Vec::new(),
            tokens: Vec::new(),
            keys: Vec::new(),
            max_bytes,
            digest_len,
            lost: 0,
        }
    }

    /// Events that wait.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether no event waits.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Events that were given up because nobody drained them in time.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// Bytes of a hash without the zeros that fill it up.
    pub fn digest_len(&self) -> usize {
        self.digest_len
    }

    /// Passes every event to `visit`, the oldest first, and forgets them.
    pub fn drain(&mut self, mut visit: impl FnMut(Event<'_>)) {
        self.visit(&mut visit);
        self.forget();
    }

    fn visit(&self, visit: &mut dyn FnMut(Event<'_>)) {
        let (mut hashes, mut tokens, mut bytes) = (&self.hashes[..], &self.tokens[..], &self.keys[..]);
        for record in &self.records {
            visit(match *record {
                Record::Cleared => Event::Cleared,
                Record::Removed { hashes: count, group } => {
                    Event::Removed { hashes: next(&mut hashes, count), group }
                }
                Record::Stored {
                    hashes: count,
                    parent,
                    tokens: length,
                    block_size,
                    group,
                    name,
                    adapter,
                    keys,
                } => Event::Stored {
                    hashes: next(&mut hashes, count),
                    parent,
                    tokens: next(&mut tokens, length),
                    block_size: block_size as usize,
                    group,
                    name,
                    adapter: next(&mut bytes, adapter),
                    keys: next(&mut bytes, keys),
                },
            });
        }
    }

    fn forget(&mut self) {
        self.records.clear();
        self.hashes.clear();
        self.tokens.clear();
        self.keys.clear();
    }

    pub(crate) fn stored<'k>(&mut self, stored: &Stored<'_>, keys: impl Fn(usize) -> Option<&'k ExtraKeys>) {
        let start = self.keys.len();
        if let Some(first) = keys(0) {
            keys::push_adapter(&mut self.keys, first.as_cbor());
        }
        let adapter = self.keys.len() - start;
        msgpack::push_array_head(&mut self.keys, stored.hashes.len());
        for block in 0..stored.hashes.len() {
            match keys(block) {
                Some(keys) => keys::push_untagged(&mut self.keys, keys.as_cbor()),
                None => msgpack::push_nil(&mut self.keys),
            }
        }
        self.hashes.extend_from_slice(stored.hashes);
        self.tokens.extend_from_slice(stored.tokens);
        self.push(Record::Stored {
            hashes: stored.hashes.len() as u32,
            parent: stored.parent.copied(),
            tokens: stored.tokens.len() as u32,
            block_size: stored.block_size as u32,
            group: stored.group,
            name: stored.name,
            adapter: adapter as u32,
            keys: (self.keys.len() - start - adapter) as u32,
        });
    }

    /// The same for a caller who names nothing but hashes.
    pub(crate) fn stored_hashes(&mut self, hashes: &[BlockHash]) {
        let stored = Stored { hashes, parent: None, tokens: &[], block_size: 0, group: 0, name: None };
        self.stored(&stored, |_| None);
    }

    #[inline(always)]
    pub(crate) fn removed(&mut self, hash: &BlockHash, group: u8) {
        self.hashes.push(*hash);
        if let Some(Record::Removed { hashes, group: last }) = self.records.last_mut()
            && *last == group
        {
            *hashes += 1;
            if *hashes % 1024 == 0 {
                self.keep_within_bound();
            }
            return;
        }
        self.push(Record::Removed { hashes: 1, group });
    }

    pub(crate) fn cleared(&mut self) {
        self.forget();
        self.push(Record::Cleared);
    }

    fn push(&mut self, record: Record) {
        self.records.push(record);
        self.keep_within_bound();
    }

    fn keep_within_bound(&mut self) {
        let bytes = size_of_val(&self.records[..])
            + size_of_val(&self.hashes[..])
            + size_of_val(&self.tokens[..])
            + self.keys.len();
        if bytes > self.max_bytes {
            self.lost += self.records.len() as u64;
            self.forget();
            self.records.push(Record::Cleared);
        }
    }
}

fn next<'a, T>(rest: &mut &'a [T], count: u32) -> &'a [T] {
    let (taken, left) = rest.split_at(count as usize);
    *rest = left;
    taken
}

#[cfg(test)]
mod tests;
