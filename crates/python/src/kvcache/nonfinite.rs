//! `scan_nonfinite` and `scrub`.

use infer_accel_kvcache::KvCacheError;
use infer_accel_kvcache::nonfinite as core;
use infer_accel_tensor::{DType, ErrorKind, TensorMut};
use numpy::PyArray1;
use pyo3::prelude::*;

use crate::errors::NativeError;
use crate::numbers::{Axis, Count};
use crate::run::{interrupted, run};
use crate::tensor::{IntTable, TensorArg};

/// Which pages hold a NaN or an infinity.
#[pyfunction]
#[pyo3(signature = (pages, *, dtype = None, num_threads = None))]
pub(super) fn scan_nonfinite<'py>(
    py: Python<'py>,
    pages: TensorArg<'_>,
    dtype: Option<&str>,
    num_threads: Option<Count>,
) -> PyResult<Bound<'py, PyArray1<bool>>> {
    let pages = pages.view().map_err(NativeError::from)?;
    let dtype = dtype.map(float_named).transpose()?;
    let num_threads = num_threads.map(|count| count.0);
    let found = run(py, pages.byte_len(), || core::scan_nonfinite(&pages, dtype, num_threads, &interrupted))?;
    Ok(PyArray1::from_vec(py, found))
}

/// Writes zeros to the pages ``ids`` of every layer.
#[pyfunction]
#[pyo3(signature = (targets, ids, *, axis = Axis(0)))]
pub(super) fn scrub(py: Python<'_>, targets: Vec<TensorArg<'_>>, ids: IntTable, axis: Axis) -> PyResult<()> {
    let ids = super::copy::flat(&ids)?;
    let mut targets: Vec<_> = targets.iter().map(TensorArg::view_mut).collect::<Result<_, _>>()?;
    let axis = super::copy::from_front(axis.0, targets.first().map_or(0, TensorMut::ndim));
    let work = targets.iter().map(|target| target.as_ref().byte_len()).sum();
    run(py, work, || -> Result<(), KvCacheError> { core::scrub_pages(&mut targets, ids, axis) })
}

fn float_named(name: &str) -> Result<DType, NativeError> {
    const FLOATS: [DType; 6] =
        [DType::F64, DType::F32, DType::F16, DType::BF16, DType::F8E4M3, DType::F8E5M2];
    FLOATS.into_iter().find(|dtype| dtype.name() == name).ok_or_else(|| {
        NativeError::new(
            ErrorKind::Argument,
            "argument.dtype",
            format!(
                "dtype={name:?} came; allowed: float64, float32, float16, bfloat16, float8_e4m3fn, float8_e5m2"
            ),
        )
    })
}
