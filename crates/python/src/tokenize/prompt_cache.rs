//! `PromptCache`.

use std::sync::Arc;

use infer_accel_tokenize::{self as core, EncodeOptions};
use numpy::{IntoPyArray, PyArray1};
use pyo3::prelude::*;

use super::arguments::int32;
use super::tokenizer::Tokenizer;
use crate::numbers::Count;
use crate::run::run;
use crate::text::LongText;

/// What a cache holds and has done: entries, bytes, capacity, bytes of text reused and encoded, evictions.
type Stats = (usize, usize, usize, u64, u64, u64);

/// A byte of a prompt, most of which is found in the cache, costs about as much as moving these.
const WORK_PER_BYTE: usize = 4;

/// Ids of prompts that begin like earlier ones.
#[pyclass(frozen, module = "infer_accel._native.tokenize")]
pub(super) struct PromptCache {
    cache: core::PromptCache,
}

#[pymethods]
impl PromptCache {
    #[new]
    fn new(tokenizer: &Bound<'_, Tokenizer>, capacity_bytes: Count) -> Self {
        Self { cache: core::PromptCache::new(Arc::clone(&tokenizer.get().core), capacity_bytes.0) }
    }

    /// The ids of a prompt.
    fn encode<'py>(
        &self,
        py: Python<'py>,
        text: &Bound<'py, PyAny>,
        add_special_tokens: bool,
        parse_special: bool,
    ) -> PyResult<Bound<'py, PyArray1<i32>>> {
        let text = &*LongText::of(text)?;
        let options = EncodeOptions { add_special_tokens, parse_special };
        let ids = run(py, text.len() * WORK_PER_BYTE, || self.cache.encode(text, options))?;
        Ok(int32(ids).into_pyarray(py))
    }

    /// The number of ids of a prompt.
    fn count(
        &self,
        py: Python<'_>,
        text: &Bound<'_, PyAny>,
        add_special_tokens: bool,
        parse_special: bool,
    ) -> PyResult<usize> {
        let text = &*LongText::of(text)?;
        let options = EncodeOptions { add_special_tokens, parse_special };
        run(py, text.len() * WORK_PER_BYTE, || self.cache.count(text, options))
    }

    /// What the cache holds and has done.
    fn stats(&self) -> Stats {
        let stats = self.cache.stats();
        let held = (stats.entries, stats.bytes, stats.capacity_bytes);
        (held.0, held.1, held.2, stats.reused_bytes, stats.encoded_bytes, stats.evictions)
    }

    /// Forgets everything.
    fn clear(&self) {
        self.cache.clear();
    }
}
