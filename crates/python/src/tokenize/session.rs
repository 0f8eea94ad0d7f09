//! `Session`.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use infer_accel_tokenize::{self as core, EncodeOptions};
use numpy::PyArray1;
use pyo3::prelude::*;

use super::arguments::{int32, work};
use crate::errors::NativeError;
use crate::run::run;
use crate::text::utf8;

/// A text that grows, and its ids.
#[pyclass(frozen, module = "infer_accel._native.tokenize")]
pub(super) struct Session {
    state: Mutex<core::Session>,
}

impl Session {
    pub(super) fn new(tokenizer: Arc<core::Tokenizer>, options: EncodeOptions) -> PyResult<Self> {
        let session = core::Session::new(tokenizer, options).map_err(NativeError::from)?;
        Ok(Self { state: Mutex::new(session) })
    }

    /// The session. Never held while the interpreter's lock is waited for.
    fn lock(&self) -> MutexGuard<'_, core::Session> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl Session {
    /// Appends text; returns how many of the ids from before still stand.
    #[pyo3(signature = (text, /))]
    fn append(&self, py: Python<'_>, text: &Bound<'_, PyAny>) -> PyResult<usize> {
        let text = utf8(text)?;
        run(py, work(text.len()), || self.lock().append(text))
    }

    /// The ids from this place on.
    #[pyo3(signature = (start, /))]
    fn ids<'py>(&self, py: Python<'py>, start: usize) -> Bound<'py, PyArray1<i32>> {
        let ids = self.lock().ids().get(start..).unwrap_or_default().to_vec();
        PyArray1::from_vec(py, int32(ids))
    }

    /// The number of ids.
    fn __len__(&self) -> usize {
        self.lock().ids().len()
    }

    /// How many ids no appended text can change.
    #[getter]
    fn settled(&self) -> usize {
        self.lock().settled()
    }

    /// Another session with the same text.
    fn copy(&self) -> Self {
        Self { state: Mutex::new(self.lock().clone()) }
    }
}
