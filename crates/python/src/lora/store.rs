//! `AdapterStore`.

use std::sync::Arc;

use infer_accel_lora::{self as core, LayerSource, StoredAdapter};
use pyo3::prelude::*;

use super::adapter::Adapter;
use super::apply::{AdapterStack, Product};
use crate::errors::NativeError;
use crate::numbers::{Count, plain};
use crate::run::run;

/// In the order of the fields of `StoredAdapter` in Python.
type Described = (String, i64, u64, Vec<String>, usize, usize, usize);

/// In the order of the fields of `StoreStats` in Python.
type Stats = (usize, usize, usize, usize, usize, u64, u64, u64, u64, u64);

/// Work that always gives the interpreter's lock away: others may hold the store's own meanwhile.
const DETACHED: usize = usize::MAX;

/// Adapters in memory, packed, bounded by bytes.
#[pyclass(frozen, module = "infer_accel._native.lora")]
pub(super) struct AdapterStore {
    store: core::AdapterStore,
}

fn described(adapter: StoredAdapter) -> Described {
    let StoredAdapter { name, id, version, layers, rank, bytes, pins, .. } = adapter;
    (name, id, version, layers, rank, bytes, pins)
}

#[pymethods]
impl AdapterStore {
    #[new]
    fn new(capacity_bytes: Count) -> Self {
        Self { store: core::AdapterStore::new(capacity_bytes.0) }
    }

    /// Checks and packs an adapter, layer by layer, and puts it in under a name.
    fn load(&self, py: Python<'_>, name: &str, layers: Vec<(String, Product<'_>)>) -> PyResult<Described> {
        let mut sources = Vec::with_capacity(layers.len());
        for (layer, (a, b, scaling)) in &layers {
            sources.push(LayerSource {
                name: layer.clone(),
                lora_a: a.view().map_err(NativeError::from)?,
                lora_b: b.view().map_err(NativeError::from)?,
                scaling: *scaling,
            });
        }
        run(py, DETACHED, || self.store.load(name, &sources)).map(described)
    }

    /// Packs an adapter that was read from a file, and puts it in under a name.
    fn load_adapter(&self, py: Python<'_>, name: &str, adapter: &Bound<'_, Adapter>) -> PyResult<Described> {
        let adapter = &adapter.get().0;
        run(py, DETACHED, || self.store.load_adapter(name, adapter)).map(described)
    }

    /// What the store says of an adapter, which counts as used now.
    fn get(&self, py: Python<'_>, name: &str) -> PyResult<Described> {
        run(py, DETACHED, || self.store.get(name)).map(described)
    }

    /// Keeps an adapter from being evicted.
    fn pin(&self, py: Python<'_>, name: &str) -> PyResult<Described> {
        run(py, DETACHED, || self.store.pin(name)).map(described)
    }

    /// Takes a pin away.
    fn unpin(&self, py: Python<'_>, name: &str) -> PyResult<()> {
        run(py, DETACHED, || self.store.unpin(name))
    }

    /// Takes an adapter out.
    fn evict(&self, py: Python<'_>, name: &str) -> PyResult<()> {
        run(py, DETACHED, || self.store.evict(name))
    }

    /// The adapters of a layer, or of several that the model has fused.
    #[pyo3(signature = (layers, slices = None))]
    fn stack(
        &self,
        py: Python<'_>,
        layers: Vec<String>,
        slices: Option<Vec<Count>>,
    ) -> PyResult<AdapterStack> {
        let slices = slices.map(plain);
        let stack: Arc<core::AdapterStack> =
            run(py, DETACHED, || self.store.stack(&layers, slices.as_deref()))?;
        Ok(AdapterStack { stack })
    }

    /// The stacks of several layers at one moment.
    fn stacks(
        &self,
        py: Python<'_>,
        layers: Vec<(Vec<String>, Option<Vec<usize>>)>,
    ) -> PyResult<Vec<AdapterStack>> {
        let stacks = run(py, DETACHED, || self.store.stacks(&layers))?;
        Ok(stacks.into_iter().map(|stack| AdapterStack { stack }).collect())
    }

    /// Names, the least recently used first.
    fn names(&self, py: Python<'_>) -> Vec<String> {
        py.detach(|| self.store.names())
    }

    /// Bytes: capacity, used, stored, pinned; adapters; loads, swaps, evictions, hits, misses.
    fn stats(&self, py: Python<'_>) -> Stats {
        let stats = py.detach(|| self.store.stats());
        (
            stats.capacity_bytes,
            stats.used_bytes,
            stats.stored_bytes,
            stats.pinned_bytes,
            stats.adapters,
            stats.loads,
            stats.swaps,
            stats.evictions,
            stats.hits,
            stats.misses,
        )
    }
}
