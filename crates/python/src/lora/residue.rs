//! What makes a merge undoable, as a Python object.

use infer_accel_lora as core;
use numpy::PyArray1;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::errors::NativeError;

/// The index of each exception, and what is added to its bits.
type Entries<'py> = (Bound<'py, PyArray1<i64>>, Bound<'py, PyArray1<u32>>);

/// The exceptions of the merge of one weight.
#[pyclass(frozen, module = "infer_accel._native.lora")]
#[derive(Clone)]
pub(crate) struct Residue(pub(super) core::Residue);

#[pymethods]
impl Residue {
    /// The residue that was stored.
    #[staticmethod]
    fn from_bytes(data: &[u8]) -> PyResult<Self> {
        Ok(Self(core::Residue::from_bytes(data).map_err(NativeError::from)?))
    }

    /// The residue as bytes.
    fn to_bytes<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.0.to_bytes())
    }

    /// The index of each exception in a dense weight, and what is added to its bits.
    fn entries<'py>(&self, py: Python<'py>) -> Entries<'py> {
        let (indices, differences): (Vec<i64>, Vec<u32>) =
            self.0.entries().map(|(index, difference)| (index.cast_signed(), difference)).unzip();
        (PyArray1::from_vec(py, indices), PyArray1::from_vec(py, differences))
    }

    /// Bytes that it takes when it is stored.
    #[getter]
    fn nbytes(&self) -> usize {
        self.0.nbytes()
    }

    /// Elements that are noted.
    #[getter]
    fn exceptions(&self) -> u64 {
        self.0.exceptions()
    }

    /// Shape of the weight.
    #[getter]
    fn shape(&self) -> (usize, usize) {
        let [rows, columns] = self.0.shape();
        (rows, columns)
    }

    /// Name of the number format before the merge.
    #[getter]
    fn base_dtype(&self) -> &'static str {
        self.0.base_dtype().name()
    }

    /// Name of the number format after the merge.
    #[getter]
    fn merged_dtype(&self) -> &'static str {
        self.0.merged_dtype().name()
    }

    /// The revision of the arithmetic.
    #[getter]
    fn kernel_revision(&self) -> u32 {
        self.0.kernel_revision()
    }

    /// The digest of the adapter.
    #[getter]
    fn adapter_digest(&self) -> u64 {
        self.0.adapter_digest().get()
    }

    /// The digest of the merged weight.
    #[getter]
    fn merged_digest(&self) -> u64 {
        self.0.merged_digest()
    }
}
