//! The tokens of a byte-pair encoder, checked once: bytes → id.

use std::sync::atomic::{AtomicU64, Ordering};

use ahash::AHashMap;

use super::key::{Key, NO_KEY, SHORT, key_of};
use super::token_table::TokenTable;
use crate::error::TokenizeError;

/// Ids must stay below this: three numbers of 21 bits make a merge of 8 bytes.
pub(crate) const ID_LIMIT: u32 = 1 << 21;

/// Stands beside an id in a table of spans: it is the only one.
const SINGLE: u32 = 1 << 24;

/// Bytes → id, without duplicates, with a token for each single byte.
pub(crate) struct Vocabulary {
    /// Tokens of up to [`TokenTable::LONGEST`] bytes: nearly all.
    short: TokenTable,
    /// Longer ones that have a key: open addressing, empty slots have the default key, a power of two long.
    middling: Box<[Slot]>,
    long: AHashMap<Box<[u8]>, u32>,
    /// Id of each single byte.
    byte_ids: [u32; 256],
    /// Length of each token in bytes, by id; 0 where there is none.
    lengths: Box<[u32]>,
    /// One bit an id: merging the token's bytes is known to give the token.
    confirmed: Box<[AtomicU64]>,
}

#[derive(Clone, Copy)]
struct Slot {
    key: Key,
    id: u32,
}

fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl Vocabulary {
    pub(crate) fn new(tokens: &[(Vec<u8>, u32)]) -> Result<Self, TokenizeError> {
        let short = tokens.iter().filter(|(bytes, _)| bytes.len() <= TokenTable::LONGEST).count();
        let slots = ((tokens.len() - short) * 4 / 3 + 16).next_power_of_two();
        let ids = tokens.iter().map(|(_, id)| *id as usize + 1).max().unwrap_or(0);
        if let Some((_, id)) = tokens.iter().find(|(_, id)| *id >= ID_LIMIT) {
            return Err(TokenizeError::IdOutOfRange { id: i64::from(*id), limit: ID_LIMIT - 1 });
        }
        let mut vocabulary = Self {
            short: TokenTable::with_room(short),
            middling: vec![Slot { key: Key::default(), id: 0 }; slots].into_boxed_slice(),
            long: AHashMap::new(),
            byte_ids: [0; 256],
            lengths: vec![0; ids].into_boxed_slice(),
            confirmed: (0..ids.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
        };
        for (bytes, id) in tokens {
            vocabulary.add(bytes, *id, tokens)?;
        }
        for byte in 0..=u8::MAX {
            let id = vocabulary.id(&[byte]).ok_or(TokenizeError::MissingByte { byte })?;
            vocabulary.byte_ids[usize::from(byte)] = id;
        }
        Ok(vocabulary)
    }

    fn add(&mut self, bytes: &[u8], id: u32, tokens: &[(Vec<u8>, u32)]) -> Result<(), TokenizeError> {
        if bytes.is_empty() {
            return Err(TokenizeError::malformed(format!(
                "the token with id {id} is empty; a token has at least one byte"
            )));
        }
        let length = &mut self.lengths[id as usize];
        if *length != 0 {
            let first = tokens.iter().find(|token| token.1 == id).map_or(&[][..], |token| &token.0);
            return Err(TokenizeError::malformed(format!(
                "id {id} belongs to two tokens, {:?} and {:?}; each id may be used once",
                shown(first),
                shown(bytes)
            )));
        }
        *length = bytes.len() as u32;
        let key = key_of(bytes);
        let before = if bytes.len() <= TokenTable::LONGEST {
            self.short.insert(key, SINGLE | id).map(|value| value & !SINGLE)
        } else if key == NO_KEY {
            self.long.insert(bytes.into(), id)
        } else {
            let place = self.place(key);
            let before = self.middling[place];
            self.middling[place] = Slot { key, id };
            (before.key == key).then_some(before.id)
        };
        match before {
            None => Ok(()),
            Some(first) => Err(TokenizeError::malformed(format!(
                "the token {:?} has two ids, {first} and {id}; each token may have one",
                shown(bytes)
            ))),
        }
    }

    /// Slot of the key, or the empty slot where it would go. A quarter of the slots is always empty.
    #[inline(always)]
    fn place(&self, key: Key) -> usize {
        let last = self.middling.len() - 1;
        let mut place = key.hash() & last;
        while self.middling[place].key != key && !self.middling[place].key.is_empty() {
            place = (place + 1) & last;
        }
        place
    }

    /// The short tokens, as tables of spans hold them.
    #[inline(always)]
    pub(crate) fn short(&self) -> &TokenTable {
        &self.short
    }

    /// Id of the token with these bytes.
    #[inline]
    pub(crate) fn id(&self, bytes: &[u8]) -> Option<u32> {
        if bytes.len() > SHORT {
            return self.long.get(bytes).copied();
        }
        if bytes.len() <= TokenTable::LONGEST {
            let value = self.short.get(key_of(bytes));
            return (value != 0).then_some(value & !SINGLE);
        }
        let slot = &self.middling[self.place(key_of(bytes))];
        (!slot.key.is_empty()).then_some(slot.id)
    }

    #[inline(always)]
    pub(crate) fn byte_id(&self, byte: u8) -> u32 {
        self.byte_ids[usize::from(byte)]
    }

    /// One more than the highest id.
    pub(crate) fn ids(&self) -> usize {
        self.lengths.len()
    }

    /// Length in bytes of the token `id`, 0 if there is none.
    #[inline]
    pub(crate) fn length(&self, id: u32) -> usize {
        self.lengths.get(id as usize).map_or(0, |&length| length as usize)
    }

    /// Whether merging the bytes of token `id` is known to give that token.
    #[inline]
    pub(crate) fn is_confirmed(&self, id: u32) -> bool {
        self.confirmed
            .get(id as usize / 64)
            .is_some_and(|word| word.load(Ordering::Relaxed) >> (id % 64) & 1 != 0)
    }

    /// Notes that merging the bytes of token `id` gave that token.
    pub(crate) fn confirm(&self, id: u32) {
        if let Some(word) = self.confirmed.get(id as usize / 64) {
            word.fetch_or(1 << (id % 64), Ordering::Relaxed);
        }
    }
}
