//! `hash_blocks` and `none_hash`.

use std::env::{VarError, var};

use infer_accel_kvcache::KvCacheError;
use infer_accel_kvcache::hash::{self as core, Algorithm, HashRequest};
use infer_accel_tensor::ErrorKind;
use numpy::{PyArray1, PyArray2, PyArrayMethods};
use pyo3::prelude::*;

use super::count::Count;
use super::extra_keys::BlockKeys;
use crate::errors::NativeError;
use crate::run::run;
use crate::tensor::IntTable;

/// Hashing a token takes as long as moving about this many bytes.
const BYTES_PER_TOKEN: usize = 90;

/// Hashes every full block of `token_ids`, as a chain that begins at `parent`.
#[pyfunction]
#[pyo3(signature = (token_ids, *, block_size, algorithm = "sha256_cbor", parent = None, extra_keys = None))]
pub(super) fn hash_blocks<'py>(
    py: Python<'py>,
    token_ids: IntTable,
    block_size: Count,
    algorithm: &str,
    parent: Option<&[u8]>,
    extra_keys: Option<BlockKeys>,
) -> PyResult<Bound<'py, PyArray2<u8>>> {
    if token_ids.shape().len() != 1 {
        let error = NativeError::new(
            ErrorKind::Shape,
            "shape.token_ids",
            format!(
                "token_ids of shape {:?} came; pass the ids of one prompt, in one dimension",
                token_ids.shape()
            ),
        );
        return Err(error.into());
    }
    let algorithm = Algorithm::from_name(algorithm).map_err(NativeError::from)?;
    let parent = parent.map_or_else(|| first_parent(algorithm), |parent| Ok(parent.to_vec()))?;
    let keys = extra_keys.map(|keys| keys.0);
    let work = token_ids.values().len() * BYTES_PER_TOKEN;
    let hashes = run(py, work, || {
        let token_ids = core::checked_token_ids(token_ids.values())?;
        let mut request = HashRequest {
            token_ids: &token_ids,
            block_size: block_size.0,
            algorithm,
            parent: &parent,
            extra_keys: &[],
        };
        let num_blocks = request.num_blocks()?;
        if let Some(keys) = &keys {
            // An empty list is not "no keys": it is too short for any block.
            if keys.len() != num_blocks {
                return Err(KvCacheError::ExtraKeysCount { got: keys.len(), expected: num_blocks });
            }
            request.extra_keys = keys;
        }
        let mut hashes = vec![0; num_blocks * algorithm.digest_len()];
        core::hash_blocks(&request, &mut hashes).map(|()| hashes)
    })?;
    let digest_len = algorithm.digest_len();
    let num_blocks = hashes.len() / digest_len;
    PyArray1::from_vec(py, hashes).reshape([num_blocks, digest_len])
}

/// The parent of a first block, vLLM's ``NONE_HASH``; depends on ``PYTHONHASHSEED``.
#[pyfunction]
#[pyo3(signature = (algorithm = "sha256_cbor"))]
pub(super) fn none_hash(algorithm: &str) -> PyResult<Vec<u8>> {
    Ok(first_parent(Algorithm::from_name(algorithm).map_err(NativeError::from)?)?)
}

fn first_parent(algorithm: Algorithm) -> Result<Vec<u8>, NativeError> {
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
