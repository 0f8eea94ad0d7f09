//! Integers from Python that must fit into the core's. One that does not is an error with a code, not `OverflowError`.

use infer_accel_tensor::ErrorKind;
use pyo3::exceptions::PyOverflowError;
use pyo3::inspect::PyStaticExpr;
use pyo3::prelude::*;
use pyo3::type_hint_identifier;

use crate::errors::NativeError;

/// A type for an argument: its name, what it holds, the code and the text of the error of an integer that it cannot hold.
macro_rules! integer {
    ($(#[$about:meta])* $name:ident($held:ty), $code:literal, $what:literal) => {
        $(#[$about])*
        #[derive(Clone, Copy)]
        pub(crate) struct $name(pub(crate) $held);

        impl From<$name> for $held {
            fn from(number: $name) -> Self {
                number.0
            }
        }

        impl<'a, 'py> FromPyObject<'a, 'py> for $name {
            type Error = PyErr;

            const INPUT_TYPE: PyStaticExpr = type_hint_identifier!("builtins", "int");

            fn extract(object: Borrowed<'a, 'py, PyAny>) -> Result<Self, PyErr> {
                match fitting(object)? {
                    Some(number) => Ok(Self(number)),
                    None => Err(refused(object, $code, $what).into()),
                }
            }
        }
    };
}

integer! {
    /// A number of things.
    Count(usize), "argument.count", "came as a count; allowed are 0 to 2**64 - 1"
}

integer! {
    /// Where random numbers begin.
    Seed(u64), "argument.seed", "came as a seed; allowed are 0 to 2**64 - 1"
}

integer! {
    /// An axis of a tensor.
    Axis(isize), "argument.axis", "came as an axis; a tensor has no such axis"
}

/// The most tokens that a text may have; as many as there can be where Python's number is larger than that.
#[derive(Clone, Copy)]
pub(crate) struct Limit(pub(crate) usize);

impl<'a, 'py> FromPyObject<'a, 'py> for Limit {
    type Error = PyErr;

    const INPUT_TYPE: PyStaticExpr = type_hint_identifier!("builtins", "int");

    fn extract(object: Borrowed<'a, 'py, PyAny>) -> Result<Self, PyErr> {
        match fitting(object)? {
            Some(limit) => Ok(Self(limit)),
            None if object.gt(0)? => Ok(Self(usize::MAX)),
            None => Err(refused(object, "argument.max_tokens", "came as max_tokens; pass 0 or more").into()),
        }
    }
}

/// A token's id; one that has more than 64 bits is as wrong as the nearest one that has.
#[derive(Clone, Copy)]
pub(crate) struct Id(pub(crate) i64);

impl<'a, 'py> FromPyObject<'a, 'py> for Id {
    type Error = PyErr;

    const INPUT_TYPE: PyStaticExpr = type_hint_identifier!("builtins", "int");

    fn extract(object: Borrowed<'a, 'py, PyAny>) -> Result<Self, PyErr> {
        Ok(Self(match fitting(object)? {
            Some(id) => id,
            None if object.gt(0)? => i64::MAX,
            None => i64::MIN,
        }))
    }
}

/// Counts as the core takes them.
pub(crate) fn plain(counts: Vec<Count>) -> Vec<usize> {
    counts.into_iter().map(usize::from).collect()
}

/// The integer, or nothing where it does not fit.
fn fitting<'a, 'py, T>(object: Borrowed<'a, 'py, PyAny>) -> PyResult<Option<T>>
where
    T: FromPyObject<'a, 'py, Error = PyErr>,
{
    match object.extract::<T>() {
        Ok(number) => Ok(Some(number)),
        Err(error) if error.is_instance_of::<PyOverflowError>(object.py()) => Ok(None),
        Err(error) => Err(error),
    }
}

fn refused(object: Borrowed<'_, '_, PyAny>, code: &'static str, what: &str) -> NativeError {
    NativeError::new(ErrorKind::Argument, code, format!("{} {what}", *object))
}
