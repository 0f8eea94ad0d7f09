//! `StreamDecoder`.

use std::sync::{Arc, Mutex, PoisonError};

use infer_accel_tokenize::{self as core, InvalidUtf8, TokenizeError};
use pyo3::prelude::*;
use pyo3::types::PyString;

use super::arguments::flat_ids;
use crate::errors::NativeError;
use crate::numbers::Id;
use crate::run::{run, run_short};
use crate::tensor::IdList;

/// Decoding an id takes about as long as moving this many bytes of memory.
const WORK_PER_ID: usize = 64;

/// Ids to text, one at a time.
#[pyclass(frozen, module = "infer_accel._native.tokenize")]
pub(super) struct StreamDecoder {
    tokenizer: Arc<core::Tokenizer>,
    /// The stream, and the text of one step: memory that is used again.
    state: Mutex<(core::StreamDecoder, String)>,
}

impl StreamDecoder {
    pub(super) fn new(
        tokenizer: Arc<core::Tokenizer>,
        skip_special_tokens: bool,
        invalid: InvalidUtf8,
        prompt: Option<&[u32]>,
    ) -> PyResult<Self> {
        let mut stream = core::StreamDecoder::new(Arc::clone(&tokenizer), skip_special_tokens, invalid);
        if let Some(prompt) = prompt {
            stream = stream.after(prompt).map_err(NativeError::from)?;
        }
        Ok(Self { tokenizer, state: Mutex::new((stream, String::new())) })
    }

    /// Calls the stream, and hands out the text that it appended.
    fn with<R>(
        &self,
        call: impl FnOnce(&mut core::StreamDecoder, &mut String) -> Result<(), TokenizeError>,
        take: impl FnOnce(&str) -> R,
    ) -> Result<R, TokenizeError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (stream, text) = &mut *state;
        text.clear();
        call(stream, text)?;
        Ok(take(text))
    }
}

#[pymethods]
impl StreamDecoder {
    /// The text that one more id makes certain.
    #[pyo3(signature = (token_id, /))]
    fn step<'py>(&self, py: Python<'py>, token_id: Id) -> PyResult<Bound<'py, PyString>> {
        let id = u32::try_from(token_id.0)
            .map_err(|_| NativeError::from(self.tokenizer.no_such_id(token_id.0)))?;
        run_short(|| self.with(|stream, text| stream.step(id, text), |text| PyString::new(py, text)))
    }

    /// The text that these ids make certain; on an error those before the wrong one have been taken.
    #[pyo3(signature = (ids, /))]
    fn step_all(&self, py: Python<'_>, ids: IdList) -> PyResult<String> {
        let ids = flat_ids(ids, &self.tokenizer)?;
        run(py, ids.len() * WORK_PER_ID, || {
            self.with(|stream, text| ids.iter().try_for_each(|&id| stream.step(id, text)), str::to_owned)
        })
    }

    /// The text of what is held back; the stream begins anew.
    fn finish(&self, py: Python<'_>) -> PyResult<String> {
        run(py, 0, || self.with(core::StreamDecoder::finish, str::to_owned))
    }
}
