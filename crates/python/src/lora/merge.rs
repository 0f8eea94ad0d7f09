//! Merging an adapter into a weight, and undoing it.

use infer_accel_lora::{self as core, Delta, Options, Rounding, SlabOptions};
use infer_accel_tensor::{TensorError, TensorRef};
use pyo3::prelude::*;

use super::multiplication_bytes;
use super::residue::Residue;
use crate::errors::NativeError;
use crate::numbers::{Count, Seed};
use crate::run::run;
use crate::tensor::TensorArg;

/// Whether two tensors are the same memory in the same order.
fn is_same(left: &TensorRef<'_>, right: &TensorRef<'_>) -> bool {
    left.as_ptr() == right.as_ptr() && left.dtype() == right.dtype() && left.layout() == right.layout()
}

/// The view of a tensor that may be left out.
fn optional<'a>(argument: Option<&'a TensorArg<'_>>) -> Result<Option<TensorRef<'a>>, TensorError> {
    argument.map(TensorArg::view).transpose()
}

/// Adds ``scaling · lora_B @ lora_A`` to `weight`, in place or into `out`; gives back the residue if it is asked for.
#[pyfunction]
#[pyo3(signature = (
    weight, lora_A, lora_B, *, scaling = 1.0, out = None, rounding = "nearest", seed = None, magnitude = None,
    return_residue = false, num_threads = None
))]
#[expect(non_snake_case, reason = "the names of the field, which callers pass as keywords")]
#[expect(clippy::too_many_arguments, reason = "each is a keyword of the Python function")]
pub(super) fn merge_weights(
    py: Python<'_>,
    weight: TensorArg<'_>,
    lora_A: TensorArg<'_>,
    lora_B: TensorArg<'_>,
    scaling: f64,
    out: Option<TensorArg<'_>>,
    rounding: &str,
    seed: Option<Seed>,
    magnitude: Option<TensorArg<'_>>,
    return_residue: bool,
    num_threads: Option<Count>,
) -> PyResult<Option<Residue>> {
    let (a, b) = (lora_A.view().map_err(NativeError::from)?, lora_B.view().map_err(NativeError::from)?);
    let source = weight.view().map_err(NativeError::from)?;
    let magnitude = optional(magnitude.as_ref()).map_err(NativeError::from)?;
    let num_threads = num_threads.map(usize::from);
    let rounding = Rounding::from_name(rounding, seed.map(u64::from)).map_err(NativeError::from)?;
    let work = source.byte_len() * 2 + multiplication_bytes(&b, a.shape().last().copied().unwrap_or(0));
    let mut target = out.as_ref().unwrap_or(&weight).view_mut()?;
    let is_plain = rounding == Rounding::Nearest && magnitude.is_none() && !return_residue;
    let in_place = is_same(&target.as_ref(), &source);
    if is_plain && target.dtype() == source.dtype() {
        let options = Options { scaling, num_threads, tier: None };
        run(py, work, || {
            if in_place {
                core::merge_weights(&mut target, &a, &b, &options)
            } else {
                core::merge_weights_into(&mut target, &source, &a, &b, &options)
            }
        })?;
        return Ok(None);
    }
    let source = (!in_place).then_some(&source);
    let deltas = [Delta { lora_a: a, lora_b: b, scaling }];
    let options = SlabOptions { rounding, magnitude, num_threads, ..SlabOptions::default() };
    run(py, work, || {
        if return_residue {
            core::merge_with_residue(&mut target, source, &deltas, &options)
                .map(|(_, residue)| Some(Residue(residue)))
        } else {
            core::merge_slab(&mut target, source, &deltas, &options).map(|_| None)
        }
    })
}

/// Gives back the bits that `weight` had before a merge, in place or into `out`.
#[pyfunction]
#[pyo3(signature = (weight, lora_A, lora_B, *, scaling = 1.0, residue, out = None, num_threads = None))]
#[expect(non_snake_case, reason = "the names of the field, which callers pass as keywords")]
#[expect(clippy::too_many_arguments, reason = "each is a keyword of the Python function")]
pub(super) fn unmerge_weights(
    py: Python<'_>,
    weight: TensorArg<'_>,
    lora_A: TensorArg<'_>,
    lora_B: TensorArg<'_>,
    scaling: f64,
    residue: &Bound<'_, Residue>,
    out: Option<TensorArg<'_>>,
    num_threads: Option<Count>,
) -> PyResult<()> {
    let (a, b) = (lora_A.view().map_err(NativeError::from)?, lora_B.view().map_err(NativeError::from)?);
    let source = weight.view().map_err(NativeError::from)?;
    let work = source.byte_len() * 2 + multiplication_bytes(&b, a.shape().last().copied().unwrap_or(0));
    let mut target = out.as_ref().unwrap_or(&weight).view_mut()?;
    let source = (!is_same(&target.as_ref(), &source)).then_some(&source);
    let deltas = [Delta { lora_a: a, lora_b: b, scaling }];
    let residue = &residue.get().0;
    let num_threads = num_threads.map(usize::from);
    run(py, work, || core::unmerge_weights(&mut target, source, &deltas, residue, num_threads))
}

/// Adds to each of `weights` the product of one of `adapters`, each ``(lora_A, lora_B, scaling)``, in place.
#[pyfunction]
#[pyo3(signature = (weights, adapters, *, num_threads = None))]
pub(super) fn merge_many(
    py: Python<'_>,
    weights: Vec<TensorArg<'_>>,
    adapters: Vec<(TensorArg<'_>, TensorArg<'_>, f64)>,
    num_threads: Option<Count>,
) -> PyResult<()> {
    let mut layers = Vec::with_capacity(weights.len());
    let mut work = 0;
    for (weight, (lora_a, lora_b, scaling)) in weights.iter().zip(&adapters) {
        let delta = Delta {
            lora_a: lora_a.view().map_err(NativeError::from)?,
            lora_b: lora_b.view().map_err(NativeError::from)?,
            scaling: *scaling,
        };
        let target = weight.view_mut()?;
        let columns = target.shape().last().copied().unwrap_or(0);
        work += target.byte_len() * 2 + multiplication_bytes(&delta.lora_b, columns);
        layers.push((target, delta));
    }
    let num_threads = num_threads.map(usize::from);
    run(py, work, || core::merge_many(&mut layers, num_threads))
}
