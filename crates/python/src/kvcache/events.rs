//! Events on their way to Python.

use infer_accel_kvcache::events::{Event, EventLog, HashForm};
use infer_accel_tensor::ErrorKind;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};

use crate::errors::NativeError;

/// An event that owns what it says.
pub(super) enum Owned {
    Stored {
        hashes: Vec<Vec<u8>>,
        parent: Option<Vec<u8>>,
        tokens: Vec<u32>,
        block_size: usize,
        group: u8,
        kind: Option<(&'static str, Option<u32>)>,
        adapter: Vec<u8>,
        keys: Vec<u8>,
    },
    Removed {
        hashes: Vec<Vec<u8>>,
        group: u8,
    },
    Cleared,
}

/// Drains a log: Python objects are made when the pool's lock is given back.
pub(super) fn owned(log: &mut EventLog) -> Vec<Owned> {
    let digest_len = log.digest_len();
    let digest = |hash: &[u8; 32]| hash[..digest_len].to_vec();
    let mut events = Vec::with_capacity(log.len());
    log.drain(|event| {
        events.push(match event {
            Event::Stored { hashes, parent, tokens, block_size, group, name, adapter, keys } => {
                Owned::Stored {
                    hashes: hashes.iter().map(digest).collect(),
                    parent: parent.as_ref().map(digest),
                    tokens: tokens.to_vec(),
                    block_size,
                    group,
                    kind: name.map(|name| (name.kind, name.window)),
                    adapter: adapter.to_vec(),
                    keys: keys.to_vec(),
                }
            }
            Event::Removed { hashes, group } => {
                Owned::Removed { hashes: hashes.iter().map(digest).collect(), group }
            }
            _ => Owned::Cleared,
        });
    });
    events
}

pub(super) fn to_list(py: Python<'_>, events: Vec<Owned>) -> PyResult<Bound<'_, PyList>> {
    let list = PyList::empty(py);
    for event in events {
        match event {
            Owned::Stored { hashes, parent, tokens, block_size, group, kind, adapter, keys } => {
                list.append((
                    "stored",
                    digests(py, &hashes)?,
                    parent.map(|parent| PyBytes::new(py, &parent)),
                    tokens,
                    block_size,
                    group,
                    kind.map(|(kind, _)| kind),
                    kind.and_then(|(_, window)| window),
                    PyBytes::new(py, &adapter),
                    PyBytes::new(py, &keys),
                ))?;
            }
            Owned::Removed { hashes, group } => list.append(("removed", digests(py, &hashes)?, group))?,
            Owned::Cleared => list.append(("cleared",))?,
        }
    }
    Ok(list)
}

/// One `EventBatch`; without a log an empty one.
pub(super) fn batch(
    log: Option<&mut EventLog>,
    timestamp: f64,
    rank: Option<u32>,
    form: HashForm,
) -> Vec<u8> {
    match log {
        Some(log) => log.drain_wire(timestamp, rank, form),
        None => EventLog::empty_batch(timestamp, rank),
    }
}

pub(super) fn hash_form(name: &str) -> Result<HashForm, NativeError> {
    match name {
        "integer" => Ok(HashForm::Integer),
        "bytes" => Ok(HashForm::Bytes),
        _ => Err(NativeError::new(
            ErrorKind::Argument,
            "argument.hash_form",
            format!("hashes={name:?} came; allowed are 'integer' and 'bytes'"),
        )),
    }
}

fn digests<'py>(py: Python<'py>, hashes: &[Vec<u8>]) -> PyResult<Bound<'py, PyList>> {
    PyList::new(py, hashes.iter().map(|hash| PyBytes::new(py, hash)))
}
