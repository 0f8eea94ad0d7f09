//! `BlockPool`.
//!
//! The interpreter's lock is held throughout: a call takes some nanoseconds a block, and so the pool's own lock
//! is never held while another thread runs Python code, and never during a fork. Where there is no such lock
//! (free-threaded builds), the pool's own does the work.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, MutexGuard, PoisonError};

use infer_accel_kvcache::KvCacheError;
use infer_accel_kvcache::pool::{BlockPool as CorePool, HASH_BYTES};
use infer_accel_tensor::ErrorKind;
use numpy::PyArray1;
use pyo3::prelude::*;
use pyo3::sync::MutexExt;

use super::count::Count;
use crate::errors::NativeError;
use crate::tensor::{ByteTable, IntTable};

/// In the order of the fields of `PoolStats` in Python.
type Stats = (usize, usize, usize, usize, u64, u64, u64, u64);

/// Blocks of a KV cache: lent out, counted, remembered by hash, evicted.
#[pyclass(frozen, module = "infer_accel._native.kvcache")]
pub(super) struct BlockPool {
    pool: Mutex<CorePool>,
}

impl BlockPool {
    /// Runs a call on the locked pool. A panic would be a defect; it comes out as an `InternalError`.
    fn call<T>(
        &self,
        py: Python<'_>,
        call: impl FnOnce(&mut CorePool) -> Result<T, KvCacheError>,
    ) -> Result<T, NativeError> {
        let mut pool: MutexGuard<'_, CorePool> =
            self.pool.lock_py_attached(py).unwrap_or_else(PoisonError::into_inner);
        match catch_unwind(AssertUnwindSafe(|| call(&mut pool))) {
            Ok(outcome) => Ok(outcome?),
            Err(_) => Err(NativeError::new(
                ErrorKind::Internal,
                "internal.pool",
                "the pool's books are broken by a defect of infer-accel, please report it; make a new pool",
            )),
        }
    }
}

#[pymethods]
impl BlockPool {
    #[new]
    fn new(num_blocks: Count) -> PyResult<Self> {
        let pool = CorePool::new(num_blocks.0).map_err(NativeError::from)?;
        Ok(Self { pool: Mutex::new(pool) })
    }

    /// Lends `count` blocks and returns their handles.
    fn alloc<'py>(&self, py: Python<'py>, count: Count) -> PyResult<Bound<'py, PyArray1<i64>>> {
        let handles = self.call(py, |pool| {
            // Before the memory for the handles: `count` may be anything.
            let (needed, free) = (count.0, pool.num_free());
            if needed > free {
                return Err(KvCacheError::OutOfBlocks { needed, free });
            }
            let mut handles = vec![0; needed];
            pool.alloc(&mut handles).map(|()| handles)
        })?;
        Ok(PyArray1::from_vec(py, handles))
    }

    /// Adds a reference to each block.
    fn retain(&self, py: Python<'_>, handles: IntTable) -> PyResult<()> {
        let handles = flat(&handles)?;
        Ok(self.call(py, |pool| pool.retain(handles))?)
    }

    /// Takes a reference from each block.
    fn free(&self, py: Python<'_>, handles: IntTable) -> PyResult<()> {
        let handles = flat(&handles)?;
        Ok(self.call(py, |pool| pool.free(handles))?)
    }

    /// The id of each block.
    fn ids<'py>(&self, py: Python<'py>, handles: IntTable) -> PyResult<Bound<'py, PyArray1<i32>>> {
        let handles = flat(&handles)?;
        let mut ids = vec![0; handles.len()];
        self.call(py, |pool| pool.ids(handles, &mut ids))?;
        Ok(PyArray1::from_vec(py, ids))
    }

    /// Remembers what full blocks hold; returns how many were new.
    fn cache(&self, py: Python<'_>, handles: IntTable, hashes: ByteTable) -> PyResult<usize> {
        let handles = flat(&handles)?;
        let hashes = rows(&hashes)?;
        Ok(self.call(py, |pool| pool.cache(handles, hashes))?)
    }

    /// Handles of the longest run of leading hashes that are cached, each with a reference more.
    fn lookup<'py>(&self, py: Python<'py>, hashes: ByteTable) -> PyResult<Bound<'py, PyArray1<i64>>> {
        let hashes = rows(&hashes)?;
        let mut handles = vec![0; hashes.len()];
        let found = self.call(py, |pool| pool.lookup(hashes, &mut handles))?;
        handles.truncate(found);
        Ok(PyArray1::from_vec(py, handles))
    }

    /// How many leading hashes are cached.
    fn cached_prefix(&self, py: Python<'_>, hashes: ByteTable) -> PyResult<usize> {
        let hashes = rows(&hashes)?;
        Ok(self.call(py, |pool| Ok(pool.cached_prefix(hashes)))?)
    }

    /// Blocks: in all, free, used, cached; so far: allocated, evicted, asked for, found.
    fn stats(&self, py: Python<'_>) -> PyResult<Stats> {
        let stats = self.call(py, |pool| Ok(pool.stats()))?;
        Ok((
            stats.num_blocks,
            stats.free_blocks,
            stats.used_blocks,
            stats.cached_blocks,
            stats.allocations,
            stats.evictions,
            stats.queries,
            stats.hits,
        ))
    }

    /// Proves that the books are right.
    fn check_invariants(&self, py: Python<'_>) -> PyResult<()> {
        Ok(self.call(py, |pool| pool.check_invariants())?)
    }
}

fn flat(handles: &IntTable) -> Result<&[i64], NativeError> {
    if handles.shape().len() == 1 {
        return Ok(handles.values());
    }
    Err(NativeError::new(
        ErrorKind::Shape,
        "shape.handles",
        format!("handles of shape {:?} came; pass them in one dimension", handles.shape()),
    ))
}

fn rows(hashes: &ByteTable) -> Result<&[[u8; HASH_BYTES]], NativeError> {
    if let [_, HASH_BYTES] = hashes.shape() {
        return Ok(hashes.bytes().as_chunks().0);
    }
    if hashes.shape() == [0] {
        return Ok(&[]);
    }
    Err(NativeError::new(
        ErrorKind::Shape,
        "shape.hashes",
        format!(
            "hashes of shape {:?} came; pass one row of {HASH_BYTES} bytes for each block",
            hashes.shape()
        ),
    ))
}
