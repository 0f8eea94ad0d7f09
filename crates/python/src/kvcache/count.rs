//! Counts: integers that must not be negative.

use infer_accel_tensor::ErrorKind;
use pyo3::exceptions::PyOverflowError;
use pyo3::inspect::PyStaticExpr;
use pyo3::prelude::*;
use pyo3::type_hint_identifier;

use crate::errors::NativeError;

/// A count from Python. One that is negative, or larger than memory, is an `ArgumentError`.
#[derive(Clone, Copy)]
pub(crate) struct Count(pub(crate) usize);

impl<'a, 'py> FromPyObject<'a, 'py> for Count {
    type Error = PyErr;

    const INPUT_TYPE: PyStaticExpr = type_hint_identifier!("builtins", "int");

    fn extract(object: Borrowed<'a, 'py, PyAny>) -> Result<Self, PyErr> {
        object.extract::<usize>().map(Self).map_err(|error| {
            if error.is_instance_of::<PyOverflowError>(object.py()) {
                refused(&object.to_string()).into()
            } else {
                error
            }
        })
    }
}

fn refused(what: &str) -> NativeError {
    NativeError::new(
        ErrorKind::Argument,
        "argument.count",
        format!("{what} came as a count; allowed are 0 to 2**64 - 1"),
    )
}
