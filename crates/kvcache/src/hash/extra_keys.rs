//! What tells two blocks of equal tokens apart: adapters, salts, images.

use super::Algorithm;
use super::cbor::{self, major};
use super::digest::{Digest, PADDING_BYTES};
use crate::error::KvCacheError;
use infer_accel_tensor::simd;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, OnceLock};

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

/// The extra keys of one block, serialised. A clone shares them: all blocks of an adapter's prompt have the same.
#[derive(Clone, Debug)]
pub struct ExtraKeys {
    shared: Arc<Serialised>,
}

#[derive(Debug)]
struct Serialised {
    cbor: Vec<u8>,
    /// SHA-256 of it, once somebody has asked.
    digest: OnceLock<[u8; Digest::MAX_LEN]>,
}

impl ExtraKeys {
    /// The tuple of these keys.
    pub fn new(keys: &[ExtraKey]) -> Result<Self, KvCacheError> {
        let mut cbor = Vec::new();
        push_tuple(&mut cbor, keys, 1)?;
        Ok(Self { shared: Arc::new(Serialised { cbor, digest: OnceLock::new() }) })
    }

    pub(crate) fn as_cbor(&self) -> &[u8] {
        &self.shared.cbor
    }

    /// SHA-256 of the keys: what stands for them where there is room for 32 bytes. Computed once for all clones.
    pub(crate) fn digest(&self) -> &[u8; Digest::MAX_LEN] {
        self.shared.digest.get_or_init(|| {
            let length = self.shared.cbor.len();
            let mut padded = vec![0; length + PADDING_BYTES];
            padded[..length].copy_from_slice(&self.shared.cbor);
            let mut digest = [0; Digest::MAX_LEN];
            Digest::new(simd::tier(), Algorithm::Sha256Cbor).of(&mut padded, length, &mut digest);
            digest
        })
    }
}

impl PartialEq for ExtraKeys {
    fn eq(&self, other: &Self) -> bool {
        self.shared.cbor == other.shared.cbor
    }
}

impl Eq for ExtraKeys {}

impl Hash for ExtraKeys {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.shared.cbor.hash(state);
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
