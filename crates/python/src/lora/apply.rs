//! Applying an adapter to activations.

use infer_accel_lora::{self as core, Options};
use pyo3::prelude::*;

use super::multiplication_bytes;
use crate::errors::NativeError;
use crate::run::run;
use crate::tensor::TensorArg;

/// Adds ``scaling · (x @ lora_A.T) @ lora_B.T`` to `out`.
#[pyfunction]
#[pyo3(signature = (x, lora_A, lora_B, *, scaling = 1.0, out, num_threads = None))]
#[expect(non_snake_case, reason = "the names of the field, which callers pass as keywords")]
pub(super) fn apply_adapter(
    py: Python<'_>,
    x: TensorArg<'_>,
    lora_A: TensorArg<'_>,
    lora_B: TensorArg<'_>,
    scaling: f64,
    out: TensorArg<'_>,
    num_threads: Option<usize>,
) -> PyResult<()> {
    let options = Options { scaling, num_threads, tier: None };
    let (x, a, b) = (
        x.view().map_err(NativeError::from)?,
        lora_A.view().map_err(NativeError::from)?,
        lora_B.view().map_err(NativeError::from)?,
    );
    let mut target = out.view_mut()?;
    let tokens = x.shape().first().copied().unwrap_or(0);
    let work = x.byte_len()
        + 2 * target.byte_len()
        + multiplication_bytes(&a, tokens)
        + multiplication_bytes(&b, tokens);
    run(py, work, || core::apply_adapter(&mut target, &x, &a, &b, &options))
}
