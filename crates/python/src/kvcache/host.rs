//! `HostPool`.
#![allow(unsafe_code)] // lends the pool's memory to numpy

use infer_accel_kvcache::host::HostPool as CorePool;
use numpy::PyArray2;
use pyo3::prelude::*;

use crate::numbers::Count;
use crate::run::run;
use crate::tensor::lend;

/// Memory for pages, in huge pages where the system has them.
#[pyclass(frozen, module = "infer_accel._native.kvcache")]
pub(super) struct HostPool {
    pool: CorePool,
}

#[pymethods]
impl HostPool {
    #[new]
    #[pyo3(signature = (num_pages, page_bytes, *, prefault = false))]
    fn new(py: Python<'_>, num_pages: Count, page_bytes: Count, prefault: bool) -> PyResult<Self> {
        let work = if prefault { usize::MAX } else { 0 };
        run(py, work, || CorePool::new(num_pages.0, page_bytes.0, prefault)).map(|pool| Self { pool })
    }

    /// The pages, ``uint8[num_pages, page_bytes]``; the array keeps the pool alive.
    fn pages<'py>(slf: &Bound<'py, Self>) -> Bound<'py, PyArray2<u8>> {
        let pool = &slf.get().pool;
        let owner = slf.clone().into_any();
        // SAFETY: the pool's memory lives as long as the pool, which is frozen and kept by the array; the core never
        // refers to it.
        unsafe { lend(owner, pool.as_ptr(), pool.num_pages(), pool.page_bytes()) }
    }
}
