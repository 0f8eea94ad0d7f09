//! Lists of ids to a list of strings.

use infer_accel_tokenize::Tokenizer;
use pyo3::prelude::*;
use pyo3::types::{PyList, PyString};

use super::arguments::{flat_ids, invalid_utf8, threads_of};
use crate::numbers::Count;
use crate::run::{interrupted, run};
use crate::tensor::IdList;

/// Decoding an id takes about as long as moving this many bytes of memory.
const WORK_PER_ID: usize = 16;

/// How a batch is decoded, as Python says it.
pub(super) struct Decoding<'a> {
    pub(super) skip_special_tokens: bool,
    pub(super) errors: &'a str,
    pub(super) num_threads: Option<Count>,
}

/// The texts of the ids between neighbouring offsets.
pub(super) fn texts<'py>(
    py: Python<'py>,
    tokenizer: &Tokenizer,
    ids: IdList,
    offsets: &[i64],
    decoding: &Decoding<'_>,
) -> PyResult<Bound<'py, PyList>> {
    let ids = flat_ids(ids, tokenizer)?;
    let (invalid, threads) = (invalid_utf8(decoding.errors)?, threads_of(decoding.num_threads)?);
    let skip = decoding.skip_special_tokens;
    let texts = run(py, ids.len() * WORK_PER_ID, || {
        tokenizer.decode_batch(&ids, offsets, skip, invalid, threads, &interrupted)
    })?;
    let list = PyList::empty(py);
    texts.iter().try_for_each(|text| list.append(PyString::new(py, text)))?;
    Ok(list)
}
