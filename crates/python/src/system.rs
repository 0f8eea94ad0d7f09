//! What this build and this machine are.

/// What this build and this machine are.
#[pyo3::pymodule]
pub(crate) mod system {
    use infer_accel_tensor::{simd, threads};
    use pyo3::prelude::*;

    use crate::errors::NativeError;
    use crate::tensor::TensorArg;

    /// Number format, shape, strides, address, and whether it may be written.
    type Description = (&'static str, Vec<usize>, Vec<isize>, usize, bool);

    /// The instruction tier in use: ``"portable"``, ``"avx2"``, ``"avx512"`` or ``"avx512bf16"``.
    #[pyfunction]
    fn simd_tier() -> &'static str {
        simd::tier().name()
    }

    /// The highest instruction tier of this processor.
    #[pyfunction]
    fn detected_simd_tier() -> &'static str {
        simd::detected().name()
    }

    /// Threads that a call uses when it does not say: ``INFER_ACCEL_NUM_THREADS``, or the processors of this process.
    #[pyfunction]
    fn default_threads() -> usize {
        threads::default_threads()
    }

    /// How a tensor arrives here: number format, shape, strides in elements, address of its first element, and
    /// whether it may be written. What to look at when an operation refuses a tensor.
    #[pyfunction]
    #[pyo3(signature = (tensor, /))]
    fn describe(tensor: TensorArg<'_>) -> PyResult<Description> {
        let view = tensor.view().map_err(NativeError::from)?;
        let writable = tensor.is_writable();
        Ok((
            view.dtype().name(),
            view.shape().to_vec(),
            view.strides().to_vec(),
            view.as_ptr().addr(),
            writable,
        ))
    }

    /// Whether this is a debug build, which is ten times slower.
    #[pyfunction]
    fn is_debug_build() -> bool {
        cfg!(debug_assertions)
    }
}
