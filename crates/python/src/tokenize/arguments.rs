//! What the calls of this part have in common: their arguments, checked, and their results.

use infer_accel_tensor::{ErrorKind, threads};
use infer_accel_tokenize::InvalidUtf8;
use pyo3::prelude::*;

use crate::errors::NativeError;
use crate::numbers::Count;
use crate::tensor::IdList;

/// Encoding a byte of text takes about as long as moving this many bytes of memory.
const WORK_PER_BYTE: usize = 48;

pub(super) fn work(text_bytes: usize) -> usize {
    text_bytes.saturating_mul(WORK_PER_BYTE)
}

pub(super) fn threads_of(num_threads: Option<Count>) -> PyResult<usize> {
    Ok(threads::resolve(num_threads.map(|count| count.0)).map_err(NativeError::from)?)
}

/// What `bytes.decode` calls `errors`.
pub(super) fn invalid_utf8(errors: &str) -> Result<InvalidUtf8, NativeError> {
    match errors {
        "replace" => Ok(InvalidUtf8::Replace),
        "ignore" => Ok(InvalidUtf8::Ignore),
        "strict" => Ok(InvalidUtf8::Strict),
        _ => Err(NativeError::new(
            ErrorKind::Argument,
            "argument.errors",
            format!("errors={errors:?} came; allowed: 'replace', 'ignore', 'strict'"),
        )),
    }
}

/// Ids that fit the vocabulary's type; what the vocabulary lacks is found in the core.
pub(super) fn flat_ids(
    ids: IdList,
    tokenizer: &infer_accel_tokenize::Tokenizer,
) -> Result<Vec<u32>, NativeError> {
    ids.into_ids().map_err(|id| tokenizer.no_such_id(id).into())
}

/// Ids as numpy's int32.
pub(super) fn int32(ids: Vec<u32>) -> Vec<i32> {
    // In place: the standard library reuses the allocation, and ids are below 2^24.
    ids.into_iter().map(u32::cast_signed).collect()
}

/// Sizes as numpy's int64.
pub(super) fn int64(values: Vec<usize>) -> Vec<i64> {
    values.into_iter().map(|value| value as i64).collect()
}

/// The bytes of many texts, and something for each of them.
pub(super) fn total(texts: &[&str]) -> usize {
    texts.iter().map(|text| text.len() + 32).sum()
}
