//! Whole checkpoints: paths in, a report as JSON out.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use infer_accel_lora::adapter::{Adapter, LoadOptions};
use infer_accel_lora::checkpoint::{
    AdapterInput, CheckpointError, MergeOptions, Progress, UnmergeOptions, merge_checkpoint as merge,
    unmerge_checkpoint as unmerge,
};
use infer_accel_lora::{Method, MethodSettings};
use infer_accel_tensor::{DType, ErrorKind};
use pyo3::prelude::*;

use crate::errors::NativeError;
use crate::numbers::{Count, Seed};
use crate::run::run;

impl From<CheckpointError> for NativeError {
    fn from(error: CheckpointError) -> Self {
        Self::new(error.kind(), error.code(), error.to_string())
    }
}

/// Whoever watches from Python, and the exception that it raised.
struct Watcher {
    callback: Option<Py<PyAny>>,
    raised: Option<PyErr>,
    last: Option<Progress>,
}

impl Watcher {
    /// Tells Python how far the work is, and asks whether Ctrl-C was pressed.
    fn observe(&mut self, progress: Progress) -> ControlFlow<()> {
        let told = Python::attach(|py| {
            py.check_signals()?;
            match &self.callback {
                Some(callback) if self.last != Some(progress) && progress.total > 0 => {
                    callback.call1(py, (progress.done, progress.total)).map(drop)
                }
                _ => Ok(()),
            }
        });
        self.last = Some(progress);
        match told {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                self.raised = Some(error);
                ControlFlow::Break(())
            }
        }
    }
}

/// Runs long work; an exception out of the callback, or of Ctrl-C, is the one that is raised.
fn watched<T: Send>(
    py: Python<'_>,
    callback: Option<Py<PyAny>>,
    work: impl FnOnce(&mut Watcher) -> Result<T, NativeError> + Send,
) -> PyResult<T> {
    let mut watcher = Watcher { callback, raised: None, last: None };
    let result = run(py, usize::MAX, || work(&mut watcher));
    match watcher.raised {
        Some(error) => Err(error),
        None => result,
    }
}

/// An adapter as it comes: loaded, or the path that it is to be loaded from.
#[derive(FromPyObject)]
pub(super) enum AdapterArg<'py> {
    /// Loaded.
    Loaded(Bound<'py, super::adapter::Adapter>),
    /// A path.
    Path(PathBuf),
}

/// The same, for work without the interpreter's lock.
enum Given {
    Loaded(String, Adapter),
    Path(PathBuf),
}

fn given(adapters: Vec<AdapterArg<'_>>) -> Vec<Given> {
    let own = |(index, adapter)| match adapter {
        AdapterArg::Loaded(loaded) => Given::Loaded(format!("adapter {}", index + 1), loaded.get().0.clone()),
        AdapterArg::Path(path) => Given::Path(path),
    };
    adapters.into_iter().enumerate().map(own).collect()
}

/// Paths of the adapters that have one.
fn paths(adapters: &[Given]) -> Vec<PathBuf> {
    let path = |adapter: &Given| match adapter {
        Given::Loaded(..) => None,
        Given::Path(path) => Some(path.clone()),
    };
    adapters.iter().filter_map(path).collect()
}

fn load(adapters: Vec<Given>, num_threads: Option<usize>) -> Result<Vec<(String, Adapter)>, NativeError> {
    let options = LoadOptions { num_threads, ..LoadOptions::default() };
    let named = |adapter| match adapter {
        Given::Loaded(name, adapter) => Ok((name, adapter)),
        Given::Path(path) => Ok((path.display().to_string(), Adapter::load(&path, &options)?)),
    };
    adapters.into_iter().map(named).collect()
}

fn inputs<'a>(adapters: &'a [(String, Adapter)], weights: &[f64]) -> Vec<AdapterInput<'a>> {
    let weights = weights.iter().copied().chain(std::iter::repeat(1.0));
    adapters
        .iter()
        .zip(weights)
        .map(|((name, adapter), weight)| AdapterInput { name, adapter, weight })
        .collect()
}

fn json(report: &impl serde::Serialize) -> Result<String, NativeError> {
    serde_json::to_string(report)
        .map_err(|error| NativeError::new(ErrorKind::Internal, "internal.report", error.to_string()))
}

/// The format of a name that `merge_checkpoint` takes.
fn dtype_of(name: Option<&str>) -> Result<Option<DType>, NativeError> {
    match name {
        None => Ok(None),
        Some("float32") => Ok(Some(DType::F32)),
        Some("float16") => Ok(Some(DType::F16)),
        Some("bfloat16") => Ok(Some(DType::BF16)),
        Some(other) => Err(NativeError::new(
            ErrorKind::DType,
            "dtype.output",
            format!(
                "dtype={other:?} came; allowed: float32, float16, bfloat16, or None to leave formats as they are"
            ),
        )),
    }
}

/// Adds adapters to a checkpoint; the report as JSON.
#[pyfunction]
#[pyo3(signature = (base_dir, adapters, out_dir, *, weights, method = "sum", density = None, rank = None, seed = None, dtype = None, residue = false, verify = true,
                    resume = true, allow_unused = false, dry_run = false, num_threads = None, progress = None))]
#[expect(
    clippy::too_many_arguments,
    clippy::fn_params_excessive_bools,
    reason = "the options of the Python call"
)]
pub(super) fn merge_checkpoint(
    py: Python<'_>,
    base_dir: PathBuf,
    adapters: Vec<AdapterArg<'_>>,
    out_dir: PathBuf,
    weights: Vec<f64>,
    method: &str,
    density: Option<f64>,
    rank: Option<Count>,
    seed: Option<Seed>,
    dtype: Option<&str>,
    residue: bool,
    verify: bool,
    resume: bool,
    allow_unused: bool,
    dry_run: bool,
    num_threads: Option<Count>,
    progress: Option<Py<PyAny>>,
) -> PyResult<String> {
    let (dtype, num_threads) = (dtype_of(dtype)?, num_threads.map(usize::from));
    let (rank, seed) = (rank.map(usize::from), seed.map(u64::from));
    let method = match method {
        "sum" if (density, rank, seed) == (None, None, None) => None,
        "sum" => {
            let problem = "density, rank or seed came, and the plain sum has no use for them: leave them out";
            return Err(NativeError::new(ErrorKind::Argument, "argument.combine", problem).into());
        }
        name => Some(
            Method::from_name(name, &MethodSettings { density, rank, seed }).map_err(NativeError::from)?,
        ),
    };
    let options = MergeOptions { method, dtype, residue, verify, resume, allow_unused, dry_run, num_threads };
    let adapters = given(adapters);
    watched(py, progress, move |watcher| {
        let paths = paths(&adapters);
        let paths: Vec<&Path> = paths.iter().map(PathBuf::as_path).collect();
        let loaded = load(adapters, num_threads)?;
        let inputs = inputs(&loaded, &weights);
        let observer = &mut |progress| watcher.observe(progress);
        json(&merge(&base_dir, &inputs, &out_dir, &paths, &options, observer)?)
    })
}

/// Gives the base of a merged checkpoint back; the report as JSON.
#[pyfunction]
#[pyo3(signature = (merged_dir, out_dir, *, adapters, residue_dir = None, resume = true, num_threads = None,
                    progress = None))]
#[expect(clippy::too_many_arguments, reason = "the options of the Python call")]
pub(super) fn unmerge_checkpoint(
    py: Python<'_>,
    merged_dir: PathBuf,
    out_dir: PathBuf,
    adapters: Vec<AdapterArg<'_>>,
    residue_dir: Option<PathBuf>,
    resume: bool,
    num_threads: Option<Count>,
    progress: Option<Py<PyAny>>,
) -> PyResult<String> {
    let num_threads = num_threads.map(usize::from);
    let options = UnmergeOptions { resume, num_threads };
    let adapters = given(adapters);
    watched(py, progress, move |watcher| {
        let paths = paths(&adapters);
        let paths: Vec<&Path> = paths.iter().map(PathBuf::as_path).collect();
        let loaded = load(adapters, num_threads)?;
        let inputs = inputs(&loaded, &[]);
        let observer = &mut |progress| watcher.observe(progress);
        let residue = residue_dir.as_deref();
        json(&unmerge(&merged_dir, residue, &inputs, &out_dir, &paths, &options, observer)?)
    })
}
