//! `DiskTier`.
//!
//! Every call that may ask the device gives the interpreter's lock away first: how long a device takes is nobody's
//! to say.

use std::path::PathBuf;
use std::time::Duration;

use infer_accel_kvcache::KvCacheError;
use infer_accel_kvcache::tier::{
    Checksum, Compression, DiskTier as CoreTier, LoadOptions, TierError, TierOptions,
};
use infer_accel_tensor::ErrorKind;
use numpy::PyArray1;
use pyo3::prelude::*;

use crate::errors::NativeError;
use crate::numbers::Count;
use crate::run::{interrupted, run};
use crate::tensor::{ByteTable, TensorArg};

/// Work that always takes longer than giving the lock away.
const LONG: usize = usize::MAX;

/// Pages on disk: bounded, checked, shared by processes.
#[pyclass(frozen, module = "infer_accel._native.kvcache")]
pub(super) struct DiskTier {
    pub(super) tier: CoreTier,
}

#[pymethods]
impl DiskTier {
    #[new]
    #[pyo3(signature = (
        path, *, capacity_bytes, page_bytes, fingerprint, segment_bytes = None, writer = None, checksum = "xxh3",
        compression = None, deadline = None, write_deadline = None
    ))]
    #[allow(clippy::too_many_arguments)] // options, each by its name
    fn new(
        py: Python<'_>,
        path: PathBuf,
        capacity_bytes: Count,
        page_bytes: Count,
        fingerprint: &[u8],
        segment_bytes: Option<Count>,
        writer: Option<Count>,
        checksum: &str,
        compression: Option<&str>,
        deadline: Option<f64>,
        write_deadline: Option<f64>,
    ) -> PyResult<Self> {
        let mut options = TierOptions::new(capacity_bytes.0 as u64, page_bytes.0, fingerprint);
        options.segment_bytes = segment_bytes.map(|bytes| bytes.0 as u64);
        options.writer = writer.map(|writer| u32::try_from(writer.0).unwrap_or(u32::MAX));
        options.checksum =
            Checksum::from_name(checksum).map_err(KvCacheError::from).map_err(NativeError::from)?;
        options.compression = Compression::from_name(compression.unwrap_or("none"))
            .map_err(KvCacheError::from)
            .map_err(NativeError::from)?;
        options.deadline = deadline.map(seconds).transpose()?;
        options.write_deadline = write_deadline.map(seconds).transpose()?;
        run(py, LONG, || CoreTier::open(&path, &options)).map(|tier| Self { tier })
    }

    /// Stores the pages whose keys are new; returns how many those were.
    fn store(&self, py: Python<'_>, keys: ByteTable, pages: TensorArg<'_>) -> PyResult<usize> {
        let key_bytes = key_bytes(&keys)?;
        let pages = pages.view().map_err(NativeError::from)?;
        run(py, LONG, || self.tier.store(keys.bytes(), key_bytes, &pages))
    }

    /// Loads the pages that are there to the rows of ``out``; returns which those are.
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
            self.tier.load(keys.bytes(), key_bytes, &mut out, &options)
        })?;
        Ok(PyArray1::from_vec(py, found))
    }

    /// As ``store``, of pages that lie apart.
    fn store_apart(&self, py: Python<'_>, keys: ByteTable, pages: Vec<TensorArg<'_>>) -> PyResult<usize> {
        let key_bytes = key_bytes(&keys)?;
        let pages: Vec<_> =
            pages.iter().map(TensorArg::view).collect::<Result<_, _>>().map_err(NativeError::from)?;
        run(py, LONG, || self.tier.store_apart(keys.bytes(), key_bytes, &pages))
    }

    /// As ``load``, to pages that lie apart.
    #[pyo3(signature = (keys, out, *, num_threads = None))]
    fn load_apart<'py>(
        &self,
        py: Python<'py>,
        keys: ByteTable,
        out: Vec<TensorArg<'_>>,
        num_threads: Option<Count>,
    ) -> PyResult<Bound<'py, PyArray1<bool>>> {
        let key_bytes = key_bytes(&keys)?;
        let mut pages: Vec<_> = out.iter().map(TensorArg::view_mut).collect::<Result<_, _>>()?;
        let num_threads = num_threads.map(|count| count.0);
        let found = run(py, LONG, || {
            let options = LoadOptions { num_threads, stop: &interrupted };
            self.tier.load_apart(keys.bytes(), key_bytes, &mut pages, &options)
        })?;
        Ok(PyArray1::from_vec(py, found))
    }

    /// Which of the pages this process knows to be there.
    fn contains<'py>(&self, py: Python<'py>, keys: ByteTable) -> PyResult<Bound<'py, PyArray1<bool>>> {
        let key_bytes = key_bytes(&keys)?;
        let found = run(py, LONG, || self.tier.contains(keys.bytes(), key_bytes))?;
        Ok(PyArray1::from_vec(py, found))
    }

    /// Makes all that was stored before this call durable.
    fn flush(&self, py: Python<'_>) -> PyResult<()> {
        run(py, LONG, || self.tier.flush())
    }

    /// Looks for what other processes have stored and removed since.
    fn refresh(&self, py: Python<'_>) -> PyResult<()> {
        run(py, LONG, || self.tier.refresh())
    }

    /// What the tier holds and has done, figure by figure.
    fn stats(&self, py: Python<'_>) -> PyResult<Vec<(&'static str, u64)>> {
        run(py, LONG, || self.tier.stats().map(|stats| stats.fields()))
    }

    /// Which writer of the directory this is.
    fn writer(&self) -> PyResult<u32> {
        Ok(self.tier.writer().map_err(NativeError::from)?)
    }

    /// Flushes and gives the writer's place back.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        run(py, LONG, || self.tier.close())
    }
}

/// A time in seconds.
pub(super) fn seconds(value: f64) -> PyResult<Duration> {
    let refused = || TierError::Deadline { seconds: value.to_string() };
    let duration = Duration::try_from_secs_f64(value).ok().filter(|duration| !duration.is_zero());
    Ok(duration.ok_or_else(refused).map_err(KvCacheError::from).map_err(NativeError::from)?)
}

/// Bytes of each key: keys come as rows.
pub(super) fn key_bytes(keys: &ByteTable) -> Result<usize, NativeError> {
    match keys.shape() {
        [rows, length] if *length > 0 || *rows == 0 => Ok(*length),
        [0] => Ok(0),
        other => Err(NativeError::new(
            ErrorKind::Shape,
            "shape.keys",
            format!("keys of shape {other:?} came; pass one row of bytes for each page"),
        )),
    }
}
