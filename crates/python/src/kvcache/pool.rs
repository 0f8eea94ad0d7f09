//! `BlockPool`.
//!
//! The interpreter's lock is held throughout: a call takes some nanoseconds a block, and so the pool's own lock
//! is never held while another thread runs Python code, and never during a fork. Where there is no such lock
//! (free-threaded builds), the pool's own does the work.

use std::borrow::Cow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, MutexGuard, PoisonError};

use infer_accel_kvcache::KvCacheError;
use infer_accel_kvcache::hash::{Algorithm, BlockHasher};
use infer_accel_kvcache::pool::{BlockPool as CorePool, Eviction, HASH_BYTES, PoolOptions, Retention};
use infer_accel_tensor::ErrorKind;
use numpy::PyArray1;
use pyo3::prelude::*;
use pyo3::sync::MutexExt;
use pyo3::types::{PyBytes, PyList};

use super::events;
use super::extra_keys::BlockKeys;
use super::hash::first_parent;
use crate::errors::NativeError;
use crate::numbers::Count;
use crate::tensor::{ByteTable, IntTable, TokenIds};

/// In the order of the fields of `PoolStats` in Python.
type Stats = (usize, usize, usize, usize, usize, u64, u64, u64, u64);

/// Blocks of a KV cache: lent out, counted, remembered by hash, evicted.
#[pyclass(frozen, module = "infer_accel._native.kvcache")]
pub(super) struct BlockPool {
    pool: Mutex<CorePool>,
    algorithm: Algorithm,
}

impl BlockPool {
    /// Runs a call on the locked pool. A panic would be a defect; it comes out as an `InternalError`.
    pub(super) fn call<T>(
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
    #[pyo3(signature = (num_blocks, *, algorithm = "sha256_cbor", eviction = "lru", pin_blocks = Count(0), event_bytes = Count(0)))]
    fn new(
        num_blocks: Count,
        algorithm: &str,
        eviction: &str,
        pin_blocks: Count,
        event_bytes: Count,
    ) -> PyResult<Self> {
        let algorithm = Algorithm::from_name(algorithm).map_err(NativeError::from)?;
        let eviction = Eviction::from_name(eviction).map_err(NativeError::from)?;
        let options =
            PoolOptions { algorithm, eviction, pin_blocks: pin_blocks.0, event_bytes: event_bytes.0 };
        let pool = CorePool::with_options(num_blocks.0, &options).map_err(NativeError::from)?;
        Ok(Self { pool: Mutex::new(pool), algorithm })
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
    #[pyo3(signature = (handles, hashes, *, priority = None, seconds = None))]
    fn cache(
        &self,
        py: Python<'_>,
        handles: IntTable,
        hashes: ByteTable,
        priority: Option<Count>,
        seconds: Option<f64>,
    ) -> PyResult<usize> {
        let handles = flat(&handles)?;
        let hashes = self.rows(&hashes)?;
        let retention = retention(priority, seconds);
        Ok(self.call(py, |pool| pool.cache(handles, &hashes, &retention))?)
    }

    /// Handles of the longest run of leading hashes that are cached, each with a reference more.
    fn lookup<'py>(&self, py: Python<'py>, hashes: ByteTable) -> PyResult<Bound<'py, PyArray1<i64>>> {
        let hashes = self.rows(&hashes)?;
        let mut handles = vec![0; hashes.len()];
        let found = self.call(py, |pool| pool.lookup(&hashes, &mut handles))?;
        handles.truncate(found);
        Ok(PyArray1::from_vec(py, handles))
    }

    /// Ids of the longest run of leading hashes that are cached, and how many of those blocks nobody holds.
    fn peek<'py>(&self, py: Python<'py>, hashes: ByteTable) -> PyResult<(Bound<'py, PyArray1<i32>>, usize)> {
        let hashes = self.rows(&hashes)?;
        let mut ids = vec![0; hashes.len()];
        let seen = self.call(py, |pool| pool.peek(&hashes, &mut ids))?;
        ids.truncate(seen.found);
        Ok((PyArray1::from_vec(py, ids), seen.idle))
    }

    /// References of a block, and its hash if it is cached.
    #[pyo3(signature = (block_id) -> "tuple[int, bytes | None]")]
    fn state_of<'py>(
        &self,
        py: Python<'py>,
        block_id: Count,
    ) -> PyResult<(u32, Option<Bound<'py, PyBytes>>)> {
        let digest_len = self.algorithm.digest_len();
        Ok(self.call(py, |pool| {
            let (references, hash) = pool.state_of(block_id.0)?;
            Ok((references, hash.map(|hash| PyBytes::new(py, &hash[..digest_len]))))
        })?)
    }

    /// Ids of all free blocks, in the order in which they will be lent out.
    fn free_order<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<i32>>> {
        Ok(PyArray1::from_vec(py, self.call(py, |pool| Ok(pool.free_order()))?))
    }

    /// How many leading hashes are cached.
    fn cached_prefix(&self, py: Python<'_>, hashes: ByteTable) -> PyResult<usize> {
        let hashes = self.rows(&hashes)?;
        Ok(self.call(py, |pool| Ok(pool.cached_prefix(&hashes)))?)
    }

    /// How many leading blocks of a prompt are cached; hashes no further than that.
    #[pyo3(signature = (token_ids, *, block_size, keys = None))]
    fn cached_blocks(
        &self,
        py: Python<'_>,
        token_ids: TokenIds<'_>,
        block_size: Count,
        keys: Option<BlockKeys>,
    ) -> PyResult<usize> {
        let ids = token_ids.view()?;
        let mut hasher = BlockHasher::new(self.algorithm, block_size.0).map_err(NativeError::from)?;
        let parent = first_parent(self.algorithm)?;
        let keys = keys.unwrap_or(BlockKeys(Vec::new())).0;
        let keys_of = |block: usize| keys.get(block.min(1)).and_then(Option::as_ref);
        let read = |position: usize, tokens: &mut [u32]| ids.read(position, tokens);
        Ok(self.call(py, |pool| pool.cached_blocks(&mut hasher, &parent, ids.len(), read, keys_of))?)
    }

    /// Keeps the longest cached prefix, within the budget; returns its length.
    #[pyo3(signature = (hashes, *, seconds = None))]
    fn pin(&self, py: Python<'_>, hashes: ByteTable, seconds: Option<f64>) -> PyResult<usize> {
        let hashes = self.rows(&hashes)?;
        Ok(self.call(py, |pool| pool.pin(&hashes, seconds))?)
    }

    /// Takes pins off; returns how many.
    fn unpin(&self, py: Python<'_>, hashes: ByteTable) -> PyResult<usize> {
        let hashes = self.rows(&hashes)?;
        Ok(self.call(py, |pool| Ok(pool.unpin(&hashes)))?)
    }

    /// Forgets the blocks of these hashes; returns how many.
    fn forget(&self, py: Python<'_>, hashes: ByteTable) -> PyResult<usize> {
        let hashes = self.rows(&hashes)?;
        Ok(self.call(py, |pool| Ok(pool.forget(&hashes)))?)
    }

    /// Forgets what every block holds.
    fn reset(&self, py: Python<'_>) -> PyResult<()> {
        Ok(self.call(py, |pool| {
            pool.reset();
            Ok(())
        })?)
    }

    /// Tells the pool the time.
    fn advance(&self, py: Python<'_>, seconds: f64) -> PyResult<()> {
        Ok(self.call(py, |pool| pool.advance(seconds))?)
    }

    /// The events since the last drain, as tuples.
    #[pyo3(signature = () -> "list[tuple[object, ...]]")]
    fn drain_events<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let events = self.call(py, |pool| Ok(pool.events().map(events::owned).unwrap_or_default()))?;
        events::to_list(py, events)
    }

    /// The events since the last drain, as vLLM's `EventBatch` in `MessagePack`.
    fn drain_events_msgpack<'py>(
        &self,
        py: Python<'py>,
        timestamp: f64,
        rank: Option<u32>,
        hashes: &str,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let form = events::hash_form(hashes)?;
        let bytes = self.call(py, |pool| Ok(events::batch(pool.events(), timestamp, rank, form)))?;
        Ok(PyBytes::new(py, &bytes))
    }

    /// Events that wait, and events that were given up.
    fn event_counts(&self, py: Python<'_>) -> PyResult<(usize, u64)> {
        Ok(self.call(py, |pool| Ok(pool.events().map_or((0, 0), |log| (log.len(), log.lost()))))?)
    }

    /// Blocks: in all, free, used, cached, pinned; so far: allocated, evicted, asked for, found.
    fn stats(&self, py: Python<'_>) -> PyResult<Stats> {
        let stats = self.call(py, |pool| Ok(pool.stats()))?;
        Ok((
            stats.num_blocks,
            stats.free_blocks,
            stats.used_blocks,
            stats.cached_blocks,
            stats.pinned_blocks,
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

/// How long and how dearly; a priority beyond 255 is beyond the highest one, too.
pub(super) fn retention(priority: Option<Count>, seconds: Option<f64>) -> Retention {
    Retention { priority: priority.map(|count| count.0.min(255) as u8), seconds }
}

impl BlockPool {
    pub(super) fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Hashes one after the other, filled up with zeros to the pool's width.
    pub(super) fn rows<'t>(&self, hashes: &'t ByteTable) -> Result<Cow<'t, [[u8; HASH_BYTES]]>, NativeError> {
        let digest_len = self.algorithm.digest_len();
        if hashes.shape() == [0] {
            return Ok(Cow::Borrowed(&[]));
        }
        if !matches!(hashes.shape(), [_, width] if *width == digest_len) {
            return Err(NativeError::new(
                ErrorKind::Shape,
                "shape.hashes",
                format!(
                    "hashes of shape {:?} came; pass one row of {digest_len} bytes for each block",
                    hashes.shape()
                ),
            ));
        }
        Ok(full_width(hashes.bytes(), digest_len))
    }
}

/// Digests one after the other, each filled up with zeros to the pool's width.
pub(super) fn full_width(bytes: &[u8], digest_len: usize) -> Cow<'_, [[u8; HASH_BYTES]]> {
    if digest_len == HASH_BYTES {
        return Cow::Borrowed(bytes.as_chunks().0);
    }
    let wide = |digest: &[u8]| {
        let mut hash = [0; HASH_BYTES];
        hash[..digest_len].copy_from_slice(digest);
        hash
    };
    Cow::Owned(bytes.chunks_exact(digest_len).map(wide).collect())
}

pub(super) fn flat(handles: &IntTable) -> Result<&[i64], NativeError> {
    if handles.shape().len() == 1 {
        return Ok(handles.values());
    }
    Err(NativeError::new(
        ErrorKind::Shape,
        "shape.handles",
        format!("handles of shape {:?} came; pass them in one dimension", handles.shape()),
    ))
}
