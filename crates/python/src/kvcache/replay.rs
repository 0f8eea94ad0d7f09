//! `Trace` and `replay`.

use infer_accel_kvcache::replay::{self as core, ReplayOptions, ReplayOutcome, SyntheticOptions};
use numpy::PyArray1;
use pyo3::prelude::*;

use crate::errors::NativeError;
use crate::numbers::{Count, Seed};
use crate::run::{interrupted, run};

/// In the order of the fields of `ReplayReport` in Python: of each request its blocks, hits, hits of the second tier,
/// milliseconds of waiting, blocks in use; then evictions, and what the second tier took.
type Outcome<'py> = (
    Bound<'py, PyArray1<u32>>,
    Bound<'py, PyArray1<u32>>,
    Bound<'py, PyArray1<u32>>,
    Bound<'py, PyArray1<i64>>,
    Bound<'py, PyArray1<u32>>,
    u64,
    u64,
);

/// Recorded requests.
#[pyclass(frozen, module = "infer_accel._native.kvcache")]
pub(super) struct Trace {
    core: core::Trace,
}

#[pymethods]
impl Trace {
    /// Reads JSON lines of Mooncake or CSV of Azure.
    #[staticmethod]
    fn parse(py: Python<'_>, data: &[u8]) -> PyResult<Self> {
        run(py, data.len().saturating_mul(8), || core::Trace::parse(data)).map(|core| Self { core })
    }

    /// Makes conversations behind shared system prompts.
    #[staticmethod]
    fn synthetic(
        requests: Count,
        system_prompts: Count,
        continued: f64,
        rate: f64,
        seed: Seed,
    ) -> PyResult<Self> {
        let options = SyntheticOptions {
            requests: requests.0,
            system_prompts: system_prompts.0,
            continued,
            rate,
            seed: seed.0,
        };
        Ok(Self { core: core::Trace::synthetic(&options).map_err(NativeError::from)? })
    }

    fn __len__(&self) -> usize {
        self.core.requests().len()
    }

    /// Whether prompts have ids.
    fn has_ids(&self) -> bool {
        self.core.has_ids()
    }

    /// Arrival in milliseconds, input tokens, output tokens and ids of a request.
    fn request(&self, index: Count) -> Option<(u64, usize, usize, Vec<u64>)> {
        let request = self.core.requests().get(index.0)?;
        let ids = self.core.ids_of(request).to_vec();
        Some((request.arrival, request.input_tokens, request.output_tokens, ids))
    }
}

/// Replays a trace; `progress` is called with the number of requests that are done.
#[pyfunction]
#[pyo3(signature = (trace, *, num_blocks, block_size, host_blocks, outputs, seconds_per_token, progress = None))]
#[allow(clippy::too_many_arguments)] // what is replayed, and how
pub(super) fn replay<'py>(
    py: Python<'py>,
    trace: PyRef<'py, Trace>,
    num_blocks: Count,
    block_size: Count,
    host_blocks: Count,
    outputs: bool,
    seconds_per_token: Option<f64>,
    progress: Option<Py<PyAny>>,
) -> PyResult<Outcome<'py>> {
    let options = ReplayOptions {
        num_blocks: num_blocks.0,
        block_size: block_size.0,
        host_blocks: host_blocks.0,
        outputs,
        seconds_per_token,
    };
    let trace = &trace.core;
    let mut tell = |done: usize| {
        if let Some(progress) = &progress {
            // What the callback raises is its own affair: it only draws a bar.
            Python::attach(|py| drop(progress.call1(py, (done,))));
        }
    };
    let outcome: ReplayOutcome =
        run(py, usize::MAX, || core::replay(trace, &options, &interrupted, &mut tell))?;
    Ok((
        PyArray1::from_vec(py, outcome.blocks),
        PyArray1::from_vec(py, outcome.hits),
        PyArray1::from_vec(py, outcome.host_hits),
        PyArray1::from_vec(py, outcome.waits),
        PyArray1::from_vec(py, outcome.used),
        outcome.evictions,
        outcome.host_stores,
    ))
}
