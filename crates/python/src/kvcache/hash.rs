//! `hash_blocks`, `none_hash`.

use std::env::{VarError, var};

use infer_accel_kvcache::KvCacheError;
use infer_accel_kvcache::hash::{Algorithm, BlockHasher, ExtraKeys};
use infer_accel_tensor::ErrorKind;
use numpy::{PyArray1, PyArray2, PyArrayMethods};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::extra_keys::BlockKeys;
use crate::errors::NativeError;
use crate::numbers::Count;
use crate::run::run;
use crate::tensor::{TokenIds, TokenView};

/// Hashing a token takes as long as moving about this many bytes.
const BYTES_PER_TOKEN: usize = 90;
/// Ids that are read and hashed at a time.
const PIECE: usize = 1024;

/// Hashes every full block of `token_ids`, as a chain that begins at `parent`.
#[pyfunction]
#[pyo3(signature = (token_ids, *, block_size, algorithm = "sha256_cbor", parent = None, extra_keys = None))]
pub(super) fn hash_blocks<'py>(
    py: Python<'py>,
    token_ids: TokenIds<'py>,
    block_size: Count,
    algorithm: &str,
    parent: Option<&[u8]>,
    extra_keys: Option<BlockKeys>,
) -> PyResult<Bound<'py, PyArray2<u8>>> {
    let algorithm = Algorithm::from_name(algorithm).map_err(NativeError::from)?;
    let parent = parent.map_or_else(|| first_parent(algorithm), |parent| Ok(parent.to_vec()))?;
    let ids = token_ids.view()?;
    let hashes = run(py, ids.len() * BYTES_PER_TOKEN, || {
        let keys = extra_keys.as_ref().map(|keys| keys.0.as_slice());
        hash_ids(ids, block_size.0, algorithm, &parent, keys)
    })?;
    rows(py, hashes, algorithm)
}

/// Hashes the ids piece by piece: what is read is then in the nearest cache when it is hashed.
fn hash_ids(
    ids: TokenView<'_>,
    block_size: usize,
    algorithm: Algorithm,
    parent: &[u8],
    keys: Option<&[Option<ExtraKeys>]>,
) -> Result<Vec<u8>, KvCacheError> {
    let digest_len = algorithm.digest_len();
    if block_size == 0 {
        return Err(KvCacheError::BlockSize { got: 0, max: usize::MAX });
    }
    if parent.len() != digest_len {
        let algorithm = algorithm.name();
        return Err(KvCacheError::ParentLength { algorithm, got: parent.len(), expected: digest_len });
    }
    let num_blocks = ids.len() / block_size;
    if let Some(keys) = keys {
        if keys.len() != num_blocks {
            return Err(KvCacheError::ExtraKeysCount { got: keys.len(), expected: num_blocks });
        }
        if algorithm.is_pickle() && keys.iter().any(Option::is_some) {
            return Err(KvCacheError::ExtraKeysPickle { algorithm: algorithm.name() });
        }
    }
    let blocks_a_piece = (PIECE / block_size).max(1);
    let mut buffer = vec![0; (blocks_a_piece.saturating_mul(block_size)).min(ids.len())];
    let mut hashes = vec![0; num_blocks * digest_len];
    let mut parent = parent.to_vec();
    let mut hasher = if num_blocks > 0 { Some(BlockHasher::new(algorithm, block_size)?) } else { None };
    let (mut position, mut block) = (0, 0);
    while position < ids.len() {
        let piece = buffer.len().min(ids.len() - position);
        let piece = &mut buffer[..piece];
        ids.read(position, piece)?;
        position += piece.len();
        if let Some(hasher) = &mut hasher {
            let keys_of =
                |index: usize| keys.and_then(|keys| keys.get(block + index)).and_then(Option::as_ref);
            let out = &mut hashes[block * digest_len..];
            block += hasher.continue_chain(&mut parent, piece, keys_of, out);
        }
    }
    Ok(hashes)
}

pub(super) fn rows(
    py: Python<'_>,
    hashes: Vec<u8>,
    algorithm: Algorithm,
) -> PyResult<Bound<'_, PyArray2<u8>>> {
    let digest_len = algorithm.digest_len();
    let num_blocks = hashes.len() / digest_len;
    PyArray1::from_vec(py, hashes).reshape([num_blocks, digest_len])
}

/// 128 bits of XXH3, as the algorithms of this family write them.
#[pyfunction]
#[pyo3(signature = (message, /))]
pub(super) fn xxh3_128<'py>(py: Python<'py>, message: &[u8]) -> Bound<'py, PyBytes> {
    PyBytes::new(py, &infer_accel_kvcache::hash::xxh3_128(message))
}

/// The parent of a first block, vLLM's ``NONE_HASH``; depends on ``PYTHONHASHSEED``.
#[pyfunction]
#[pyo3(signature = (algorithm = "sha256_cbor"))]
pub(super) fn none_hash<'py>(py: Python<'py>, algorithm: &str) -> PyResult<Bound<'py, PyBytes>> {
    let parent = first_parent(Algorithm::from_name(algorithm).map_err(NativeError::from)?)?;
    Ok(PyBytes::new(py, &parent))
}

pub(super) fn first_parent(algorithm: Algorithm) -> Result<Vec<u8>, NativeError> {
    let seed = match var("PYTHONHASHSEED") {
        Ok(seed) => Some(seed),
        Err(VarError::NotPresent) => None,
        Err(VarError::NotUnicode(seed)) => {
            return Err(NativeError::new(
                ErrorKind::Argument,
                "argument.hash_seed",
                format!("PYTHONHASHSEED is {}, which is no text; set it to a number", seed.display()),
            ));
        }
    };
    Ok(algorithm.none_hash(seed.as_deref())?)
}
