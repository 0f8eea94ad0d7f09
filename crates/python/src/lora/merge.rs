//! Merging an adapter into a weight.

use infer_accel_lora::{self as core, Options};
use infer_accel_tensor::TensorRef;
use pyo3::prelude::*;

use super::multiplication_bytes;
use crate::errors::NativeError;
use crate::run::run;
use crate::tensor::TensorArg;

/// Whether two tensors are the same memory in the same order.
fn is_same(left: &TensorRef<'_>, right: &TensorRef<'_>) -> bool {
    left.as_ptr() == right.as_ptr() && left.dtype() == right.dtype() && left.layout() == right.layout()
}

/// Adds ``scaling · lora_B @ lora_A`` to `weight`, in place or into `out`.
#[pyfunction]
#[pyo3(signature = (weight, lora_A, lora_B, *, scaling = 1.0, out = None, num_threads = None))]
#[expect(non_snake_case, reason = "the names of the field, which callers pass as keywords")]
pub(super) fn merge_weights(
    py: Python<'_>,
    weight: TensorArg<'_>,
    lora_A: TensorArg<'_>,
    lora_B: TensorArg<'_>,
    scaling: f64,
    out: Option<TensorArg<'_>>,
    num_threads: Option<usize>,
) -> PyResult<()> {
    let options = Options { scaling, num_threads, tier: None };
    let (a, b) = (lora_A.view().map_err(NativeError::from)?, lora_B.view().map_err(NativeError::from)?);
    let source = weight.view().map_err(NativeError::from)?;
    let work = source.byte_len() * 2 + multiplication_bytes(&b, a.shape().last().copied().unwrap_or(0));
    let mut target = out.as_ref().unwrap_or(&weight).view_mut()?;
    if is_same(&target.as_ref(), &source) {
        run(py, work, || core::merge_weights(&mut target, &a, &b, &options))
    } else {
        run(py, work, || core::merge_weights_into(&mut target, &source, &a, &b, &options))
    }
}
