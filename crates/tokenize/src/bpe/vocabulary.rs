//! The tokens of a byte-pair encoder, checked once: bytes → id and id → bytes.

use std::collections::HashMap;

use crate::error::TokenizeError;

/// Ids must stay below this: a cache entry keeps a count in the upper byte of an id.
pub(crate) const ID_LIMIT: u32 = 1 << 24;

/// Bytes → id and back, without duplicates, with a token for each single byte.
pub(crate) struct Vocabulary {
    ids: HashMap<Box<[u8]>, u32>,
    /// Id of each single byte.
    byte_ids: [u32; 256],
    /// Length of each token in bytes, by id; 0 where there is none.
    lengths: Vec<u32>,
}

fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl Vocabulary {
    pub(crate) fn new(tokens: &[(Vec<u8>, u32)]) -> Result<Self, TokenizeError> {
        let mut ids = HashMap::with_capacity(tokens.len());
        let mut by_id: HashMap<u32, &[u8]> = HashMap::with_capacity(tokens.len());
        for (bytes, id) in tokens {
            let id = *id;
            if id >= ID_LIMIT {
                return Err(TokenizeError::IdOutOfRange { id: i64::from(id), limit: ID_LIMIT - 1 });
            }
            if bytes.is_empty() {
                return Err(TokenizeError::malformed(format!(
                    "the token with id {id} is empty; a token has at least one byte"
                )));
            }
            if let Some(first) = ids.insert(bytes.clone().into_boxed_slice(), id) {
                return Err(TokenizeError::malformed(format!(
                    "the token {:?} has two ids, {first} and {id}; each token may have one",
                    shown(bytes)
                )));
            }
            if let Some(first) = by_id.insert(id, bytes) {
                return Err(TokenizeError::malformed(format!(
                    "id {id} belongs to two tokens, {:?} and {:?}; each id may be used once",
                    shown(first),
                    shown(bytes)
                )));
            }
        }
        let mut byte_ids = [0; 256];
        for (byte, slot) in (0..=u8::MAX).zip(&mut byte_ids) {
            *slot = *ids.get([byte].as_slice()).ok_or(TokenizeError::MissingByte { byte })?;
        }
        let mut lengths = vec![0; tokens.iter().map(|(_, id)| *id as usize + 1).max().unwrap_or(0)];
        for (bytes, id) in tokens {
            lengths[*id as usize] = bytes.len() as u32;
        }
        Ok(Self { ids, byte_ids, lengths })
    }

    pub(crate) fn id(&self, bytes: &[u8]) -> Option<u32> {
        self.ids.get(bytes).copied()
    }

    pub(crate) fn length(&self, id: u32) -> usize {
        self.lengths.get(id as usize).map_or(0, |&length| length as usize)
    }

    pub(crate) fn byte_id(&self, byte: u8) -> u32 {
        self.byte_ids[usize::from(byte)]
    }
}
