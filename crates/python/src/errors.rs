//! From the core's errors to Python's.
//!
//! The exception classes live in `infer_accel.errors`, in Python, because each has two bases. They are looked
//! up when an error is raised, never before.

use std::borrow::Cow;

use infer_accel_tensor::threads::Interrupted;
use infer_accel_tensor::{ErrorKind, TensorError};
use pyo3::exceptions::PyKeyboardInterrupt;
use pyo3::prelude::*;
use pyo3::types::PyDict;

/// An error on its way to Python: the class, the stable code, the message.
#[derive(Debug)]
pub(crate) struct NativeError {
    kind: ErrorKind,
    code: Cow<'static, str>,
    message: String,
    /// Attributes that the class takes beside the message.
    attributes: Vec<(&'static str, usize)>,
}

impl NativeError {
    pub(crate) fn new(
        kind: ErrorKind,
        code: impl Into<Cow<'static, str>>,
        message: impl Into<String>,
    ) -> Self {
        Self { kind, code: code.into(), message: message.into(), attributes: Vec::new() }
    }

    pub(crate) fn with(mut self, name: &'static str, value: usize) -> Self {
        self.attributes.push((name, value));
        self
    }

    fn class(&self) -> &'static str {
        match self.kind {
            ErrorKind::Shape => "ShapeError",
            ErrorKind::DType => "DTypeError",
            ErrorKind::Device => "DeviceError",
            ErrorKind::Layout => "LayoutError",
            ErrorKind::ReadOnly => "ReadOnlyError",
            ErrorKind::Overlap => "OverlapError",
            ErrorKind::Gradient => "GradientError",
            ErrorKind::Argument => "ArgumentError",
            ErrorKind::Id => "IdError",
            ErrorKind::OutOfBlocks => "OutOfBlocksError",
            ErrorKind::StoreFull => "StoreFullError",
            ErrorKind::StaleBlock => "StaleBlockError",
            ErrorKind::Adapter => "AdapterError",
            ErrorKind::Tokenizer => "TokenizerError",
            ErrorKind::Integrity => "IntegrityError",
            ErrorKind::Checkpoint => "CheckpointError",
            ErrorKind::Storage => "StorageError",
            _ => "InternalError",
        }
    }

    fn raise(self, py: Python<'_>) -> PyErr {
        if self.kind == ErrorKind::Interrupted {
            return PyKeyboardInterrupt::new_err(());
        }
        let build = || -> PyResult<PyErr> {
            let class = py.import("infer_accel.errors")?.getattr(self.class())?;
            let keywords = PyDict::new(py);
            keywords.set_item("code", self.code.as_ref())?;
            for (name, value) in &self.attributes {
                keywords.set_item(name, value)?;
            }
            Ok(PyErr::from_value(class.call((self.message.as_str(),), Some(&keywords))?))
        };
        build().unwrap_or_else(|error| error)
    }
}

impl From<NativeError> for PyErr {
    fn from(error: NativeError) -> Self {
        Python::attach(|py| error.raise(py))
    }
}

impl From<TensorError> for NativeError {
    fn from(error: TensorError) -> Self {
        Self::new(error.kind(), error.code(), error.to_string())
    }
}

impl From<Interrupted> for NativeError {
    fn from(error: Interrupted) -> Self {
        Self::new(ErrorKind::Interrupted, "interrupted", error.to_string())
    }
}
