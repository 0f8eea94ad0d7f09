//! Applying adapters to activations.

use std::sync::Arc;

use infer_accel_lora::{self as core, Options, PackedLayer, RunOptions, StackedAdapter};
use infer_accel_tensor::ErrorKind;
use pyo3::prelude::*;

use super::multiplication_bytes;
use crate::errors::NativeError;
use crate::numbers::{Count, plain};
use crate::run::run;
use crate::tensor::{IntTable, TensorArg};

/// Adds ``scaling · (x @ lora_A.T) @ lora_B.T`` to `out`.
#[pyfunction]
#[pyo3(signature = (x, lora_A, lora_B, *, scaling = 1.0, out, num_threads = None))]
#[expect(non_snake_case, reason = "the names of the field, which callers pass as keywords")]
pub(super) fn apply_adapter(
    py: Python<'_>,
    x: TensorArg<'_>,
    lora_A: TensorArg<'_>,
    lora_B: TensorArg<'_>,
    scaling: f64,
    out: TensorArg<'_>,
    num_threads: Option<Count>,
) -> PyResult<()> {
    let options = Options { scaling, num_threads: num_threads.map(usize::from), tier: None };
    let (x, a, b) = (
        x.view().map_err(NativeError::from)?,
        lora_A.view().map_err(NativeError::from)?,
        lora_B.view().map_err(NativeError::from)?,
    );
    let mut target = out.view_mut()?;
    let tokens = x.shape().first().copied().unwrap_or(0);
    let work = x.byte_len()
        + 2 * target.byte_len()
        + multiplication_bytes(&a, tokens)
        + multiplication_bytes(&b, tokens);
    run(py, work, || core::apply_adapter(&mut target, &x, &a, &b, &options))
}

/// `lora_A`, `lora_B` and the scaling of an adapter for one slice.
pub(super) type Product<'py> = (TensorArg<'py>, TensorArg<'py>, f64);

/// The adapters of one layer, packed.
#[pyclass(frozen, module = "infer_accel._native.lora")]
pub(super) struct AdapterStack {
    pub(super) stack: Arc<core::AdapterStack>,
}

#[pymethods]
impl AdapterStack {
    /// Packs the adapters: of each its products, one for each slice or one for all, and its id.
    #[new]
    #[pyo3(signature = (adapters, ids, slices = None))]
    fn new(
        py: Python<'_>,
        adapters: Vec<Vec<Option<Product<'_>>>>,
        ids: IntTable,
        slices: Option<Vec<Count>>,
    ) -> PyResult<Self> {
        let mut views = Vec::with_capacity(adapters.len());
        let mut work = 0_usize;
        for adapter in &adapters {
            let mut layers = Vec::with_capacity(adapter.len());
            for product in adapter {
                let Some((a, b, scaling)) = product else {
                    layers.push(None);
                    continue;
                };
                let (a, b) = (a.view().map_err(NativeError::from)?, b.view().map_err(NativeError::from)?);
                work += 2 * (a.byte_len() + b.byte_len());
                layers.push(Some((a, b, *scaling)));
            }
            views.push(layers);
        }
        let ids = ids.into_values();
        let slices = slices.map(plain);
        let stack = run(py, work, || {
            let pack = |(a, b, scaling): &(_, _, f64)| PackedLayer::new(a, b, *scaling);
            let adapters = views.iter().zip(ids).map(|(layers, id)| {
                let layers = layers.iter().map(|product| product.as_ref().map(pack).transpose());
                Ok(StackedAdapter::new(id, layers.collect::<Result<_, core::Error>>()?))
            });
            core::AdapterStack::new(adapters.collect::<Result<_, core::Error>>()?, slices.as_deref())
        })?;
        Ok(Self { stack: Arc::new(stack) })
    }

    /// Ids of the adapters, ascending.
    #[getter]
    fn ids(&self) -> Vec<i64> {
        self.stack.ids().collect()
    }

    /// The largest rank of each adapter.
    #[getter]
    fn ranks(&self) -> Vec<usize> {
        self.stack.ranks().collect()
    }

    /// Features of a token, where an adapter tells.
    #[getter]
    fn in_features(&self) -> Option<usize> {
        self.stack.in_features()
    }

    /// Outputs of each slice, where an adapter or the caller told.
    #[getter]
    fn slices(&self) -> Vec<Option<usize>> {
        self.stack.slices().to_vec()
    }

    /// Bytes of the packed matrices.
    #[getter]
    fn nbytes(&self) -> usize {
        self.stack.byte_len()
    }
}

/// Adds to each token's outputs what its adapter makes of it.
#[pyfunction]
#[pyo3(signature = (x, stack, adapter_ids, *, out, num_threads = None))]
pub(super) fn apply_adapters(
    py: Python<'_>,
    x: TensorArg<'_>,
    stack: &Bound<'_, AdapterStack>,
    adapter_ids: IntTable,
    out: TensorArg<'_>,
    num_threads: Option<Count>,
) -> PyResult<()> {
    if adapter_ids.shape().len() != 1 {
        let shape = adapter_ids.shape();
        let text =
            format!("adapter ids of shape {shape:?} came; pass them in one dimension, one for each token");
        return Err(NativeError::new(ErrorKind::Shape, "shape.adapter_ids", text).into());
    }
    let options = RunOptions { num_threads: num_threads.map(usize::from), tier: None };
    let x = x.view().map_err(NativeError::from)?;
    let mut target = out.view_mut()?;
    let stack = &*stack.get().stack;
    // A token passes over the matrices of its adapter, or a fraction of them.
    let work = x.byte_len() + 2 * target.byte_len() + stack.byte_len() / stack.ids().len().max(1);
    run(py, work, || core::apply_adapters(&mut target, &x, stack, adapter_ids.values(), &options))
}
