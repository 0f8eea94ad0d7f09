//! A queue of bounded length between callers and the one thread that serves them.
//!
//! The model checker compiles this file with its own `Mutex` and `Condvar` (`tests/model.rs`), so it takes both from
//! its parent.

use super::sync::{Condvar, Mutex, MutexGuard};
use std::collections::VecDeque;
use std::time::Instant;

/// First in, first out; whoever finds it full waits, or goes without.
#[derive(Debug)]
pub(super) struct Queue<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
    capacity: usize,
}

#[derive(Debug)]
struct State<T> {
    items: VecDeque<T>,
    /// Items that were taken in, and items that are finished, since the beginning.
    pushed: u64,
    finished: u64,
    closed: bool,
}

impl<T> Queue<T> {
    pub(super) fn new(capacity: usize) -> Self {
        let state = State { items: VecDeque::new(), pushed: 0, finished: 0, closed: false };
        Self { state: Mutex::new(state), changed: Condvar::new(), capacity }
    }

    /// Adds an item; waits for a place until `due`, or as long as it takes. Gives the item back where there was none,
    /// and after the close. Items that are being worked on still take their place.
    pub(super) fn push(&self, item: T, due: Option<Instant>) -> Result<(), T> {
        let mut state = self.lock();
        while !state.closed && (state.pushed - state.finished) as usize >= self.capacity {
            let Some(due) = due else {
                state = self.changed.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner);
                continue;
            };
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(item);
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(std::sync::PoisonError::into_inner).0;
        }
        if state.closed {
            return Err(item);
        }
        state.items.push_back(item);
        state.pushed += 1;
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    /// Takes up to `most` items; waits for one. None at all means that the queue is closed and empty.
    pub(super) fn take(&self, most: usize) -> Vec<T> {
        let mut state = self.lock();
        while state.items.is_empty() && !state.closed {
            state = self.changed.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
        let count = most.min(state.items.len());
        state.items.drain(..count).collect()
    }

    /// Says that items which were taken are finished.
    pub(super) fn finish(&self, count: usize) {
        self.lock().finished += count as u64;
        self.changed.notify_all();
    }

    /// Waits until all that was pushed before is finished. Items are finished in the order in which they came,
    /// because one thread takes them.
    pub(super) fn wait(&self) {
        let mut state = self.lock();
        let wanted = state.pushed;
        while state.finished < wanted {
            state = self.changed.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
    }

    /// Takes nothing in any more; what is in it will still be taken.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// Items that are waiting or being worked on.
    pub(super) fn len(&self) -> usize {
        let state = self.lock();
        (state.pushed - state.finished) as usize
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
