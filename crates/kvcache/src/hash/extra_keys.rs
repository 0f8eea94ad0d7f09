//! What tells two blocks of equal tokens apart: adapters, salts, images.

use super::cbor::{self, major};
use crate::error::KvCacheError;

/// One value in a block's extra keys.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ExtraKey {
    /// Python's `None`.
    None,
    /// A truth value.
    Bool(bool),
    /// An integer from -2⁶⁴ to 2⁶⁴-1.
    Integer(i128),
    /// Text.
    Text(String),
    /// Bytes.
    Bytes(Vec<u8>),
    /// A tuple of further values.
    Tuple(Vec<ExtraKey>),
}

/// How deep tuples may lie in each other; encoding is recursive, and a key of real use is two deep.
const MAX_DEPTH: usize = 32;

/// The extra keys of one block, serialised.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ExtraKeys {
    cbor: Vec<u8>,
}

impl ExtraKeys {
    /// The tuple of these keys.
    pub fn new(keys: &[ExtraKey]) -> Result<Self, KvCacheError> {
        let mut cbor = Vec::new();
        push_tuple(&mut cbor, keys, 1)?;
        Ok(Self { cbor })
    }

    pub(crate) fn as_cbor(&self) -> &[u8] {
        &self.cbor
    }
}

fn push_tuple(bytes: &mut Vec<u8>, keys: &[ExtraKey], depth: usize) -> Result<(), KvCacheError> {
    if depth > MAX_DEPTH {
        return Err(KvCacheError::ExtraKeyDepth { max: MAX_DEPTH });
    }
    cbor::push_head(bytes, major::ARRAY, keys.len() as u64);
    keys.iter().try_for_each(|key| push(bytes, key, depth))
}

fn push(bytes: &mut Vec<u8>, key: &ExtraKey, depth: usize) -> Result<(), KvCacheError> {
    match key {
        ExtraKey::None => bytes.push(cbor::NULL),
        ExtraKey::Bool(value) => bytes.push(0xf4 + u8::from(*value)),
        ExtraKey::Integer(value) => {
            let (major, argument) =
                if *value < 0 { (major::NEGATIVE, -1 - value) } else { (major::UNSIGNED, *value) };
            let argument = u64::try_from(argument).map_err(|_| KvCacheError::ExtraKeyInteger)?;
            cbor::push_head(bytes, major, argument);
        }
        ExtraKey::Text(text) => {
            cbor::push_head(bytes, major::TEXT, text.len() as u64);
            bytes.extend_from_slice(text.as_bytes());
        }
        ExtraKey::Bytes(value) => {
            cbor::push_head(bytes, major::BYTES, value.len() as u64);
            bytes.extend_from_slice(value);
        }
        ExtraKey::Tuple(keys) => push_tuple(bytes, keys, depth + 1)?,
    }
    Ok(())
}
