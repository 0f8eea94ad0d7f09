//! How the core is called: without the interpreter's lock when it takes long, and never with a panic going out.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use infer_accel_tensor::ErrorKind;
use pyo3::prelude::*;

use crate::errors::NativeError;

/// Bytes of memory traffic that take about 10 µs. Below, giving the interpreter's lock away and taking it back
/// costs more than it brings.
const DETACH_BYTES: usize = 128 * 1024;

/// Calls the core on work that moves about `work_bytes` bytes.
pub(crate) fn run<T, E>(
    py: Python<'_>,
    work_bytes: usize,
    core: impl FnOnce() -> Result<T, E> + Send,
) -> PyResult<T>
where
    T: Send,
    E: Into<NativeError> + Send,
{
    let guarded = || catch_unwind(AssertUnwindSafe(core));
    let outcome = if work_bytes < DETACH_BYTES { guarded() } else { py.detach(guarded) };
    match outcome {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(error.into().into()),
        Err(panic) => Err(panicked(&*panic).into()),
    }
}

/// Calls the core on work that is shorter than giving the lock away, and may touch Python's objects.
pub(crate) fn run_short<T, E: Into<NativeError>>(core: impl FnOnce() -> Result<T, E>) -> PyResult<T> {
    match catch_unwind(AssertUnwindSafe(core)) {
        Ok(outcome) => outcome.map_err(|error| error.into().into()),
        Err(panic) => Err(panicked(&*panic).into()),
    }
}

/// Whether Ctrl-C was pressed: what long calls ask between two pieces of work. Takes the interpreter's lock for
/// a moment; only the thread that called from Python may ask.
pub(crate) fn interrupted() -> bool {
    // The raised KeyboardInterrupt is dropped here and made anew from `ErrorKind::Interrupted`.
    Python::attach(|py| py.check_signals().is_err())
}

fn panicked(panic: &(dyn Any + Send)) -> NativeError {
    let text = panic
        .downcast_ref::<&str>()
        .map(ToString::to_string)
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_string());
    NativeError::new(
        ErrorKind::Internal,
        "internal.panic",
        format!("a defect of infer-accel, please report it with the call that led here: {text}"),
    )
}
