//! The extra keys of blocks, from Python's values.

use infer_accel_kvcache::KvCacheError;
use infer_accel_kvcache::hash::{ExtraKey, ExtraKeys};
use infer_accel_tensor::ErrorKind;
use pyo3::inspect::PyStaticExpr;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyInt, PyList, PyString, PyTuple};
use pyo3::{type_hint_identifier, type_hint_subscript};

use crate::errors::NativeError;

/// Deeper than any real key; what is nested deeper is refused before it can exhaust the stack.
const MAX_DEPTH: usize = 64;

/// One entry for each block.
pub(super) struct BlockKeys(pub(super) Vec<Option<ExtraKeys>>);

impl<'a, 'py> FromPyObject<'a, 'py> for BlockKeys {
    type Error = PyErr;

    const INPUT_TYPE: PyStaticExpr = type_hint_subscript!(
        type_hint_identifier!("collections.abc", "Sequence"),
        type_hint_identifier!("typing", "Any")
    );

    fn extract(object: Borrowed<'a, 'py, PyAny>) -> Result<Self, PyErr> {
        let blocks = object.try_iter().map_err(|_| refused(&object))?;
        blocks.map(|block| keys_of_block(&block?)).collect::<PyResult<_>>().map(Self)
    }
}

fn keys_of_block(block: &Bound<'_, PyAny>) -> PyResult<Option<ExtraKeys>> {
    if block.is_none() {
        return Ok(None);
    }
    match key(block, 0)? {
        ExtraKey::Tuple(keys) => Ok(Some(ExtraKeys::new(&keys).map_err(NativeError::from)?)),
        _ => Err(refused(block).into()),
    }
}

fn key(value: &Bound<'_, PyAny>, depth: usize) -> PyResult<ExtraKey> {
    if depth > MAX_DEPTH {
        return Err(NativeError::from(KvCacheError::ExtraKeyDepth { max: MAX_DEPTH }).into());
    }
    if value.is_none() {
        Ok(ExtraKey::None)
    } else if let Ok(flag) = value.cast::<PyBool>() {
        Ok(ExtraKey::Bool(flag.is_true()))
    } else if value.is_exact_instance_of::<PyInt>() {
        // Beyond 128 bits; between 64 and 128 the core says what is allowed.
        value.extract::<i128>().map(ExtraKey::Integer).map_err(|_| refused(value).into())
    } else if value.is_exact_instance_of::<PyString>() {
        // A lone surrogate has no UTF-8.
        value.extract::<String>().map(ExtraKey::Text).map_err(|_| refused(value).into())
    } else if let Ok(bytes) = value.cast_exact::<PyBytes>() {
        Ok(ExtraKey::Bytes(bytes.as_bytes().to_vec()))
    } else if value.is_instance_of::<PyTuple>() || value.is_instance_of::<PyList>() {
        let items = value.try_iter()?.map(|item| key(&item?, depth + 1));
        items.collect::<PyResult<_>>().map(ExtraKey::Tuple)
    } else {
        Err(refused(value).into())
    }
}

fn refused(value: &Bound<'_, PyAny>) -> NativeError {
    let text: String = value.repr().map_or_else(|_| String::new(), |repr| repr.to_string());
    let shown: String = text.chars().take(80).collect();
    NativeError::new(
        ErrorKind::Argument,
        "argument.extra_keys",
        format!(
            "{shown} came in extra_keys; allowed are, for each block, None or a tuple of None, bool, int (64 bits), \
             str, bytes and further tuples"
        ),
    )
}
