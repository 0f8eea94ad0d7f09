//! Group commit: callers that want the same thing durable share one sync.
//!
//! The model checker compiles this file with its own `Mutex` and `Condvar` (`tests/model.rs`), so it takes both
//! from its parent.

use super::sync::{Condvar, Mutex, MutexGuard};

/// Syncs in rounds. A call is served by a round that began after it.
#[derive(Debug)]
pub(super) struct GroupCommit<E> {
    rounds: Mutex<Rounds<E>>,
    finished: Condvar,
}

#[derive(Debug)]
struct Rounds<E> {
    running: bool,
    started: u64,
    finished: u64,
    /// The last round that failed.
    failed: Option<(u64, E)>,
}

impl<E: Clone> GroupCommit<E> {
    pub(super) fn new() -> Self {
        let rounds = Rounds { running: false, started: 0, finished: 0, failed: None };
        Self { rounds: Mutex::new(rounds), finished: Condvar::new() }
    }

    /// Returns when a sync that began after this call has ended, with its outcome. `sync` is run by one of the
    /// callers; the others wait.
    pub(super) fn commit(&self, sync: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
        let mut rounds = self.lock();
        let needed = rounds.started + 1;
        while rounds.finished < needed {
            if rounds.running {
                rounds = self.finished.wait(rounds).unwrap_or_else(std::sync::PoisonError::into_inner);
                continue;
            }
            rounds.running = true;
            rounds.started += 1;
            let round = rounds.started;
            drop(rounds);
            let outcome = sync();
            let mut rounds = self.lock();
            rounds.running = false;
            rounds.finished = round;
            if let Err(error) = &outcome {
                rounds.failed = Some((round, error.clone()));
            }
            drop(rounds);
            self.finished.notify_all();
            return outcome;
        }
        match &rounds.failed {
            // A later round than ours may be the one that failed; then this says so too early, which harms nobody.
            Some((round, error)) if *round >= needed => Err(error.clone()),
            _ => Ok(()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Rounds<E>> {
        self.rounds.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
