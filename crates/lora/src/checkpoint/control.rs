//! Stopping, failing and telling how far the work is, from several threads.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::error::CheckpointError;

/// How often the caller is told how far the work is, and asked whether to stop.
pub(super) const TICK: Duration = Duration::from_millis(50);

/// How far a call is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of output tensors that are computed.
    pub done: u64,
    /// Bytes of all output tensors.
    pub total: u64,
}

/// Who watches a long call: on the thread that made the call, every few dozen milliseconds.
pub type Observer<'a> = dyn FnMut(Progress) -> ControlFlow<()> + 'a;

/// What the threads of a call share.
#[derive(Debug, Default)]
pub(super) struct Control {
    is_stopped: AtomicBool,
    done: AtomicU64,
    total: u64,
    failure: Mutex<Option<CheckpointError>>,
}

impl Control {
    pub(super) fn new(done: u64, total: u64) -> Self {
        Self { done: AtomicU64::new(done), total, ..Self::default() }
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.is_stopped.load(Ordering::Relaxed)
    }

    pub(super) fn stop(&self) {
        self.is_stopped.store(true, Ordering::Relaxed);
    }

    /// Stops everybody; the first failure is the one that is told.
    pub(super) fn fail(&self, error: CheckpointError) {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        self.stop();
    }

    pub(super) fn failure(self) -> Option<CheckpointError> {
        self.failure.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn advance(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn progress(&self) -> Progress {
        Progress { done: self.done.load(Ordering::Relaxed).min(self.total), total: self.total }
    }
}
