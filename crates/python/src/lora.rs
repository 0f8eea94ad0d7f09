//! Low-rank adapters: see the typed module `infer_accel.lora`.

use infer_accel_lora::Error;
use infer_accel_tensor::TensorRef;

use crate::errors::NativeError;

impl From<Error> for NativeError {
    fn from(error: Error) -> Self {
        Self::new(error.kind(), error.code(), error.to_string())
    }
}

/// About how many bytes of memory traffic take as long as `rows · columns · rank` multiplications.
fn multiplication_bytes(rows: &TensorRef<'_>, columns: usize) -> usize {
    rows.len().saturating_mul(columns) / 4
}

/// Whether two tensors are the same memory in the same order.
fn is_same(left: &TensorRef<'_>, right: &TensorRef<'_>) -> bool {
    left.as_ptr() == right.as_ptr() && left.dtype() == right.dtype() && left.layout() == right.layout()
}

/// Low-rank adapters.
#[pyo3::pymodule]
pub(crate) mod lora {
    use infer_accel_lora::{self as core, Options};
    use pyo3::prelude::*;

    use super::{is_same, multiplication_bytes};
    use crate::errors::NativeError;
    use crate::run::run;
    use crate::tensor::TensorArg;

    /// Adds ``scaling · lora_B @ lora_A`` to `weight`, in place or into `out`.
    #[pyfunction]
    #[pyo3(signature = (weight, lora_A, lora_B, *, scaling = 1.0, out = None, num_threads = None))]
    #[expect(non_snake_case, reason = "the names of the field, which callers pass as keywords")]
    fn merge_weights(
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

    /// Adds ``scaling · (x @ lora_A.T) @ lora_B.T`` to `out`.
    #[pyfunction]
    #[pyo3(signature = (x, lora_A, lora_B, *, scaling = 1.0, out, num_threads = None))]
    #[expect(non_snake_case, reason = "the names of the field, which callers pass as keywords")]
    fn apply_adapter(
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
}
