//! What this machine can do at best, for `infer-accel bench` and `infer-accel info`.

/// What this machine can do at best: the ceilings that benchmarks are held against.
#[pyo3::pymodule]
pub(crate) mod machine {
    use infer_accel_tensor::machine::{self, FmaKind};
    use pyo3::exceptions::PyValueError;
    use pyo3::prelude::*;

    /// The names of the instruction sets that matter here and that this processor has.
    #[pyfunction]
    fn cpu_features() -> Vec<&'static str> {
        machine::cpu_features()
    }

    /// Bytes a second, read and written, of the best contiguous copy of ``num_bytes`` on ``num_threads`` threads.
    #[pyfunction]
    fn copy_bandwidth(py: Python<'_>, num_bytes: usize, num_threads: usize) -> f64 {
        py.detach(|| machine::copy_bandwidth(num_bytes, num_threads))
    }

    /// Bytes a second, read and written, of the best update in place of ``num_bytes`` on ``num_threads`` threads.
    #[pyfunction]
    fn read_modify_write_bandwidth(py: Python<'_>, num_bytes: usize, num_threads: usize) -> f64 {
        py.detach(|| machine::read_modify_write_bandwidth(num_bytes, num_threads))
    }

    /// Floating-point operations a second, two a multiply-add, of ``kind`` ``"f32"`` or ``"bf16"``.
    #[pyfunction]
    fn fma_rate(py: Python<'_>, kind: &str, num_threads: usize) -> PyResult<f64> {
        let kind = match kind {
            "f32" => FmaKind::F32,
            "bf16" => FmaKind::Bf16,
            _ => {
                return Err(PyValueError::new_err(format!("kind {kind:?} is not known; allowed: f32, bf16")));
            }
        };
        Ok(py.detach(|| machine::fma_rate(kind, num_threads)))
    }

    /// Bytes a second through the rounds of SHA-256 on one thread, ``streams`` (1, 2 or 4) messages at once.
    #[pyfunction]
    fn sha256_rate(py: Python<'_>, streams: usize) -> f64 {
        py.detach(|| machine::sha256_rate(streams))
    }
}
