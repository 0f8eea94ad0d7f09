//! Events as bytes: vLLM's `EventBatch`.

use super::msgpack::{push_array_head, push_bytes, push_float, push_nil, push_text, push_unsigned};
use super::{Event, EventLog};
use crate::pool::BlockHash;

/// How hashes are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HashForm {
    /// Their last eight bytes as an integer: vLLM's default.
    Integer,
    /// All their bytes.
    Bytes,
}

/// Where the blocks are, by vLLM's name.
const MEDIUM: &[u8] = b"GPU";

impl EventLog {
    /// Writes all events as one `EventBatch` in `MessagePack`, and forgets them.
    ///
    /// `timestamp` is in seconds since 1970; `rank` is the data-parallel rank of the server.
    pub fn drain_wire(&mut self, timestamp: f64, rank: Option<u32>, form: HashForm) -> Vec<u8> {
        let mut bytes =
            Vec::with_capacity(16 * self.records.len() + 9 * self.hashes.len() + 5 * self.tokens.len());
        push_array_head(&mut bytes, 3);
        push_float(&mut bytes, timestamp);
        push_array_head(&mut bytes, self.records.len());
        let writer = HashWriter { form, digest_len: self.digest_len };
        self.drain(|event| push_event(&mut bytes, &event, writer));
        match rank {
            Some(rank) => push_unsigned(&mut bytes, rank.into()),
            None => push_nil(&mut bytes),
        }
        bytes
    }

    /// The batch of a pool that keeps no events.
    pub fn empty_batch(timestamp: f64, rank: Option<u32>) -> Vec<u8> {
        Self::new(0, 0).drain_wire(timestamp, rank, HashForm::Bytes)
    }
}

#[derive(Clone, Copy)]
struct HashWriter {
    form: HashForm,
    digest_len: usize,
}

impl HashWriter {
    fn push(self, bytes: &mut Vec<u8>, hash: &BlockHash) {
        let digest = &hash[..self.digest_len];
        match self.form {
            HashForm::Bytes => push_bytes(bytes, digest),
            HashForm::Integer => push_unsigned(bytes, integer(digest)),
        }
    }

    fn push_all(self, bytes: &mut Vec<u8>, hashes: &[BlockHash]) {
        push_array_head(bytes, hashes.len());
        for hash in hashes {
            self.push(bytes, hash);
        }
    }
}

/// The last eight bytes of a digest as a big-endian integer.
fn integer(digest: &[u8]) -> u64 {
    digest.iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

fn push_event(bytes: &mut Vec<u8>, event: &Event<'_>, hashes_as: HashWriter) {
    match event {
        Event::Cleared => {
            bytes.push(0x81);
            push_type(bytes, b"AllBlocksCleared");
        }
        Event::Removed { hashes, group } => {
            bytes.push(0x84);
            push_type(bytes, b"BlockRemoved");
            push_text(bytes, b"block_hashes");
            hashes_as.push_all(bytes, hashes);
            push_text(bytes, b"medium");
            push_text(bytes, MEDIUM);
            push_text(bytes, b"group_idx");
            push_unsigned(bytes, (*group).into());
        }
        Event::Stored { .. } => push_stored(bytes, event, hashes_as),
    }
}

fn push_type(bytes: &mut Vec<u8>, name: &[u8]) {
    push_text(bytes, b"type");
    push_text(bytes, name);
}

fn push_stored(bytes: &mut Vec<u8>, event: &Event<'_>, hashes_as: HashWriter) {
    let Event::Stored { hashes, parent, tokens, block_size, group, name, adapter, keys } = event else {
        return;
    };
    let fields = 10 + u8::from(name.is_some()) + u8::from(name.is_some_and(|name| name.window.is_some()));
    // The long form of a map's head: the class has more than fifteen fields, most of them left out.
    bytes.extend_from_slice(&[0xde, 0, fields]);
    push_type(bytes, b"BlockStored");
    push_text(bytes, b"block_hashes");
    hashes_as.push_all(bytes, hashes);
    push_text(bytes, b"parent_block_hash");
    match parent {
        Some(parent) => hashes_as.push(bytes, parent),
        None => push_nil(bytes),
    }
    push_text(bytes, b"token_ids");
    push_array_head(bytes, tokens.len());
    for &token in *tokens {
        push_unsigned(bytes, token.into());
    }
    push_text(bytes, b"block_size");
    push_unsigned(bytes, *block_size as u64);
    push_text(bytes, b"lora_id");
    push_nil(bytes);
    push_text(bytes, b"medium");
    push_text(bytes, MEDIUM);
    push_text(bytes, b"lora_name");
    if adapter.is_empty() {
        push_nil(bytes);
    } else {
        bytes.extend_from_slice(adapter);
    }
    push_text(bytes, b"extra_keys");
    bytes.extend_from_slice(keys);
    push_text(bytes, b"group_idx");
    push_unsigned(bytes, (*group).into());
    if let Some(name) = name {
        push_text(bytes, b"kv_cache_spec_kind");
        push_text(bytes, name.kind.as_bytes());
        if let Some(window) = name.window {
            push_text(bytes, b"kv_cache_spec_sliding_window");
            push_unsigned(bytes, window.into());
        }
    }
}
