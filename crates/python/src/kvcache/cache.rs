//! `TieredCache`.
//!
//! Every call gives the interpreter's lock away first: it may wait for a disk.

use infer_accel_kvcache::tier::{CacheOptions, LoadOptions, TieredCache as CoreCache};
use numpy::PyArray1;
use pyo3::prelude::*;

use super::tier::{DiskTier, key_bytes, seconds};
use crate::errors::NativeError;
use crate::numbers::Count;
use crate::run::{interrupted, run};
use crate::tensor::{ByteTable, TensorArg};

/// Pages that may be asked for ahead, where nobody says how many.
const PREFETCHES: usize = 64;
/// Work that always takes longer than giving the lock away.
const LONG: usize = usize::MAX;

/// Pages in host memory in front of pages on disk.
#[pyclass(frozen, module = "infer_accel._native.kvcache")]
pub(super) struct TieredCache {
    cache: CoreCache,
}

#[pymethods]
impl TieredCache {
    #[new]
    #[pyo3(signature = (disk, *, host_pages, queued_writes = None, queued_prefetches = None, store_deadline = None))]
    fn new(
        py: Python<'_>,
        disk: &Bound<'_, DiskTier>,
        host_pages: Count,
        queued_writes: Option<Count>,
        queued_prefetches: Option<Count>,
        store_deadline: Option<f64>,
    ) -> PyResult<Self> {
        let options = CacheOptions {
            host_pages: host_pages.0,
            queued_writes: queued_writes.map(|count| count.0),
            queued_prefetches: queued_prefetches.map_or(PREFETCHES, |count| count.0),
            store_deadline: store_deadline.map(seconds).transpose()?,
        };
        let disk = disk.get();
        run(py, LONG, || CoreCache::new(&disk.tier, &options)).map(|cache| Self { cache })
    }

    /// Takes pages in; returns which.
    fn store<'py>(
        &self,
        py: Python<'py>,
        keys: ByteTable,
        pages: TensorArg<'_>,
    ) -> PyResult<Bound<'py, PyArray1<bool>>> {
        let key_bytes = key_bytes(&keys)?;
        let pages = pages.view().map_err(NativeError::from)?;
        let taken = run(py, LONG, || self.cache.store(keys.bytes(), key_bytes, &pages))?;
        Ok(PyArray1::from_vec(py, taken))
    }

    /// Loads pages to the rows of ``out``; returns which were there.
    #[pyo3(signature = (keys, out, *, num_threads = None))]
    fn load<'py>(
        &self,
        py: Python<'py>,
        keys: ByteTable,
        out: TensorArg<'_>,
        num_threads: Option<Count>,
    ) -> PyResult<Bound<'py, PyArray1<bool>>> {
        let key_bytes = key_bytes(&keys)?;
        let mut out = out.view_mut()?;
        let num_threads = num_threads.map(|count| count.0);
        let found = run(py, LONG, || {
            let options = LoadOptions { num_threads, stop: &interrupted };
            self.cache.load(keys.bytes(), key_bytes, &mut out, &options)
        })?;
        Ok(PyArray1::from_vec(py, found))
    }

    /// Asks for pages to be brought from disk; returns for how many there was a place.
    fn prefetch(&self, py: Python<'_>, keys: ByteTable) -> PyResult<usize> {
        let key_bytes = key_bytes(&keys)?;
        run(py, LONG, || self.cache.prefetch(keys.bytes(), key_bytes))
    }

    /// Waits until all that was asked for has been brought.
    fn wait_for_prefetches(&self, py: Python<'_>) -> PyResult<()> {
        run(py, LONG, || self.cache.wait_for_prefetches())
    }

    /// Which pages are in host memory or known to be on disk.
    fn contains<'py>(&self, py: Python<'py>, keys: ByteTable) -> PyResult<Bound<'py, PyArray1<bool>>> {
        let key_bytes = key_bytes(&keys)?;
        let found = run(py, LONG, || self.cache.contains(keys.bytes(), key_bytes))?;
        Ok(PyArray1::from_vec(py, found))
    }

    /// Waits until all that was taken in before is on disk, and durable there.
    fn flush(&self, py: Python<'_>) -> PyResult<()> {
        run(py, LONG, || self.cache.flush())
    }

    /// What the cache holds and has done, figure by figure.
    fn stats(&self, py: Python<'_>) -> PyResult<Vec<(&'static str, u64)>> {
        run(py, LONG, || self.cache.stats().map(|stats| stats.fields()))
    }

    /// Writes everything, makes it durable and ends the threads.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        run(py, LONG, || self.cache.close())
    }
}
