//! Adapters that are made into one before they are merged.

use std::cell::RefCell;

use serde::{Deserialize, Serialize};

use super::control::{Observer, Progress};
use super::error::CheckpointError;
use super::prepare::AdapterInput;
use super::report::AdapterReport;
use crate::adapter::Adapter;
use crate::{Error, Method, MethodSettings, combine};

/// How adapters were put together, as manifests and reports write it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct MethodRecord {
    pub(super) name: String,
    pub(super) density: Option<f64>,
    pub(super) rank: Option<usize>,
    pub(super) seed: Option<u64>,
}

impl MethodRecord {
    pub(super) fn of(method: &Method) -> Self {
        let MethodSettings { density, rank, seed } = method.settings();
        Self { name: method.name().to_owned(), density, rank, seed }
    }

    /// The method that was written.
    pub(super) fn method(&self) -> Result<Method, Error> {
        let settings = MethodSettings { density: self.density, rank: self.rank, seed: self.seed };
        Method::from_name(&self.name, &settings)
    }
}

/// Makes one adapter out of all of them. The observer is asked whether to go on.
pub(super) fn combined(
    adapters: &[AdapterInput<'_>],
    method: &Method,
    threads: usize,
    observer: &mut Observer<'_>,
) -> Result<Adapter, CheckpointError> {
    let parts: Vec<&Adapter> = adapters.iter().map(|input| input.adapter).collect();
    let weights: Vec<f64> = adapters.iter().map(|input| input.weight).collect();
    let observer = RefCell::new(observer);
    let stop = || observer.borrow_mut()(Progress::default()).is_break();
    combine(&parts, &weights, method, Some(threads), &stop).map_err(|error| match error {
        Error::Interrupted(_) => CheckpointError::Interrupted,
        other => {
            CheckpointError::Tensor { name: format!("method={}", method.name()), source: Box::new(other) }
        }
    })
}

/// What is told about the adapters that were made into one, given what is told about that one.
pub(super) fn reports_of(adapters: &[AdapterInput<'_>], one: &[AdapterReport]) -> Vec<AdapterReport> {
    let unused: Vec<&String> = one.iter().flat_map(|report| &report.unused).collect();
    let report = |input: &AdapterInput<'_>| {
        let has = |name: &str| input.adapter.layers().iter().any(|layer| layer.path == *name);
        AdapterReport {
            name: input.name.to_owned(),
            digest: input.adapter.digest().to_string(),
            weight: input.weight,
            unused: unused.iter().filter(|name| has(name)).map(|name| (*name).clone()).collect(),
        }
    };
    adapters.iter().map(report).collect()
}
