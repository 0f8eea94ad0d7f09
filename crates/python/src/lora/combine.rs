//! Several adapters made into one.

use infer_accel_lora::{Method, MethodSettings, combine as core};
use pyo3::prelude::*;

use super::adapter::Adapter;
use crate::errors::NativeError;
use crate::numbers::{Count, Seed};
use crate::run::{interrupted, run};

/// One adapter out of several.
#[pyfunction]
#[pyo3(signature = (adapters, weights, *, method, density = None, rank = None, seed = None, num_threads = None))]
#[allow(clippy::too_many_arguments)] // settings, each by its name
pub(crate) fn combine(
    py: Python<'_>,
    adapters: Vec<Bound<'_, Adapter>>,
    weights: Vec<f64>,
    method: &str,
    density: Option<f64>,
    rank: Option<Count>,
    seed: Option<Seed>,
    num_threads: Option<Count>,
) -> PyResult<Adapter> {
    let num_threads = num_threads.map(usize::from);
    let settings = MethodSettings { density, rank: rank.map(usize::from), seed: seed.map(u64::from) };
    let method = Method::from_name(method, &settings).map_err(NativeError::from)?;
    let adapters: Vec<_> = adapters.iter().map(|adapter| &adapter.get().0).collect();
    let work = adapters.iter().map(|adapter| adapter.nbytes()).sum();
    let combined = run(py, work, || core(&adapters, &weights, &method, num_threads, &interrupted))?;
    Ok(Adapter(combined))
}
