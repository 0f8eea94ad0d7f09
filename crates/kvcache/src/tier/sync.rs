//! The locks of this part, in one place: the model checker puts its own here.

pub(super) use std::sync::{Condvar, Mutex, MutexGuard};

/// Locks; a panic elsewhere is reported where it happened, not here.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
