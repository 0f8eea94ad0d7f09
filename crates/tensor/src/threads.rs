//! A private thread pool that survives a fork.
//!
//! One pool serves the whole library. It is made on first use, with one thread fewer than the process may use,
//! because the calling thread takes part. The global rayon pool is never touched.
//!
//! A fork copies only the calling thread: a pool made before it has no workers in the child, and its locks may
//! be held by threads that no longer exist. So a fork bumps a generation counter (all that the handler does, as
//! only async-signal-safe work is allowed there), and the child, when it finds its pool to be of another
//! generation, leaks it and makes its own. No lock is shared between generations.
#![allow(unsafe_code)] // pthread_atfork, and pools that live as long as the process

mod helpers;

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rayon::{ThreadPool, ThreadPoolBuilder};
use thiserror::Error;

use crate::TensorError;

/// The environment variable that sets the default number of threads.
pub const THREADS_VARIABLE: &str = "INFER_ACCEL_NUM_THREADS";

/// More threads than this never help memory-bound work on one socket, and each costs a stack.
const MAX_THREADS: usize = 256;

/// How often a long call asks whether it should stop.
const STOP_INTERVAL: Duration = Duration::from_millis(50);

/// A long call was asked to stop.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("the call was interrupted")]
pub struct Interrupted;

/// Forks seen by this process.
static GENERATION: AtomicU64 = AtomicU64::new(0);

/// The pool in use, with the generation that it was made in.
static POOL: AtomicPtr<Generation> = AtomicPtr::new(std::ptr::null_mut());

struct Generation {
    number: u64,
    /// `None` inside means that the system refused the threads: work then runs on the caller alone.
    pool: OnceLock<Option<ThreadPool>>,
}

/// The number of forks between the process that first loaded this library and this one. Whatever was opened
/// under another number belongs to another process.
pub fn generation() -> u64 {
    watch_forks();
    GENERATION.load(Ordering::Relaxed)
}

/// Threads used when a call does not say: `INFER_ACCEL_NUM_THREADS`, or else the processors that this process
/// may use.
pub fn default_threads() -> usize {
    static DEFAULT: OnceLock<usize> = OnceLock::new();
    *DEFAULT.get_or_init(|| {
        let asked = std::env::var(THREADS_VARIABLE).ok().and_then(|value| value.trim().parse().ok());
        let processors = || std::thread::available_parallelism().map_or(1, usize::from);
        asked.filter(|&count: &usize| count > 0).unwrap_or_else(processors).min(MAX_THREADS)
    })
}

/// The number of threads that a call's `num_threads` means. More than [`default_threads`] are not made: they
/// would share the same processors.
pub fn resolve(num_threads: Option<usize>) -> Result<usize, TensorError> {
    let default = default_threads();
    match num_threads {
        None => Ok(default),
        Some(0) => Err(TensorError::ZeroThreads { default }),
        Some(count) => Ok(count.min(default)),
    }
}

/// Runs `task(i)` for every `i` below `tasks`, on at most `threads` threads of which the caller is one.
/// Tasks are handed out in order, one at a time; a panic in a task is raised again here.
pub fn parallel_for(threads: usize, tasks: usize, task: impl Fn(usize) + Sync) {
    let next = AtomicUsize::new(0);
    let work = || {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= tasks {
                break;
            }
            task(index);
        }
    };
    together(threads.min(tasks), &work, work);
}

/// Does `own` here and `help` on as many threads of the pool as make `workers` together, if they come in time.
fn together(workers: usize, help: &(dyn Fn() + Sync), own: impl FnOnce()) {
    match if workers > 1 { pool() } else { None } {
        None => own(),
        Some(pool) => helpers::run(pool, workers - 1, help, own),
    }
}

/// As [`parallel_for`], but asks `stop` on the calling thread, between two of its tasks and at most every
/// 50 ms; once it answers true, tasks already begun are finished and no other is started.
pub fn parallel_for_interruptible(
    threads: usize,
    tasks: usize,
    stop: &dyn Fn() -> bool,
    task: impl Fn(usize) + Sync,
) -> Result<(), Interrupted> {
    let stopped = AtomicBool::new(false);
    let next = AtomicUsize::new(0);
    let take = || {
        let index = next.fetch_add(1, Ordering::Relaxed);
        (index < tasks && !stopped.load(Ordering::Relaxed)).then_some(index)
    };
    let as_caller = || {
        let mut asked = Instant::now();
        while let Some(index) = take() {
            task(index);
            if asked.elapsed() >= STOP_INTERVAL {
                if stop() {
                    stopped.store(true, Ordering::Relaxed);
                }
                asked = Instant::now();
            }
        }
    };
    let as_helper = || {
        while let Some(index) = take() {
            task(index);
        }
    };
    together(threads.min(tasks), &as_helper, as_caller);
    if stopped.load(Ordering::Relaxed) { Err(Interrupted) } else { Ok(()) }
}

fn pool() -> Option<&'static ThreadPool> {
    let number = generation();
    let mut current = POOL.load(Ordering::Acquire);
    loop {
        if !current.is_null() {
            // SAFETY: what POOL points to was leaked and is never freed.
            let made: &'static Generation = unsafe { &*current };
            if made.number == number {
                return made.pool.get_or_init(build).as_ref();
            }
        }
        let fresh = Box::into_raw(Box::new(Generation { number, pool: OnceLock::new() }));
        match POOL.compare_exchange(current, fresh, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => current = fresh,
            Err(other) => {
                // SAFETY: `fresh` came from a box just now and nobody else has seen it.
                drop(unsafe { Box::from_raw(fresh) });
                current = other;
            }
        }
    }
}

fn build() -> Option<ThreadPool> {
    let threads = default_threads().saturating_sub(1).max(1);
    ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|index| format!("infer-accel-{index}"))
        .build()
        .ok()
}

#[cfg(unix)]
fn watch_forks() {
    extern "C" fn in_child() {
        GENERATION.fetch_add(1, Ordering::Relaxed);
    }
    static WATCH: OnceLock<()> = OnceLock::new();
    WATCH.get_or_init(|| {
        // SAFETY: the handler only bumps an atomic counter, which is allowed between fork and exec.
        unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
    });
}

#[cfg(not(unix))]
fn watch_forks() {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[test]
    fn every_task_runs_once() {
        for (threads, tasks) in [(1, 7), (2, 1), (2, 0), (4, 1000), (100, 3)] {
            let seen = Mutex::new(vec![0; tasks]);
            parallel_for(threads, tasks, |index| seen.lock().unwrap()[index] += 1);
            assert_eq!(*seen.lock().unwrap(), vec![1; tasks]);
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let caught = std::panic::catch_unwind(|| {
            parallel_for(2, 8, |index| assert_ne!(index, 5, "on purpose"));
        });
        assert!(caught.is_err());
        every_task_runs_once();
    }

    #[test]
    fn stops_when_asked() {
        let done = AtomicUsize::new(0);
        let result = parallel_for_interruptible(2, 10_000, &|| true, |_| {
            std::thread::sleep(Duration::from_millis(1));
            done.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(result, Err(Interrupted));
        assert!(done.load(Ordering::Relaxed) < 10_000);
        assert_eq!(parallel_for_interruptible(2, 100, &|| false, |_| {}), Ok(()));
    }

    #[test]
    fn what_borrows_from_the_caller_is_left_in_time() {
        for round in 0..2000_usize {
            let values: Vec<AtomicUsize> = (0..=round % 5).map(|_| AtomicUsize::new(0)).collect();
            parallel_for(4, values.len(), |index| {
                values[index].fetch_add(1 + round, Ordering::Relaxed);
            });
            assert!(values.into_iter().all(|value| value.into_inner() == 1 + round));
        }
    }

    #[test]
    fn the_last_helper_wakes_its_owner() {
        let done = AtomicUsize::new(0);
        let owner = std::thread::current().id();
        parallel_for(2, 2, |_| {
            if std::thread::current().id() != owner {
                std::thread::sleep(Duration::from_millis(30));
            }
            done.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(done.into_inner(), 2);
    }

    #[test]
    fn zero_threads_are_refused() {
        assert!(matches!(resolve(Some(0)), Err(TensorError::ZeroThreads { .. })));
        assert_eq!(resolve(Some(1)), Ok(1));
        assert_eq!(resolve(None), Ok(default_threads()));
        assert_eq!(resolve(Some(usize::MAX)), Ok(default_threads()));
    }

    #[test]
    fn many_callers_share_the_pool() {
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        every_task_runs_once();
                    }
                });
            }
        });
    }

    #[cfg(unix)]
    #[test]
    fn a_child_makes_its_own_pool() {
        every_task_runs_once();
        let before = generation();
        // SAFETY: the child runs only this library's code and leaves by `_exit`.
        let child = unsafe { libc::fork() };
        if child == 0 {
            // What a hung child would do is seen by the parent, which waits with a limit.
            let own = generation() == before + 1;
            let sum = AtomicUsize::new(0);
            parallel_for(4, 100, |index| {
                sum.fetch_add(index, Ordering::Relaxed);
            });
            let code = i32::from(!(own && sum.load(Ordering::Relaxed) == 4950));
            // SAFETY: ends the child without running the parent's exit handlers.
            unsafe { libc::_exit(code) };
        }
        let mut status = -1;
        for _ in 0..1000 {
            // SAFETY: `child` is this process's child and `status` is writable.
            if unsafe { libc::waitpid(child, &raw mut status, libc::WNOHANG) } == child {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(status, 0, "the child hung or computed something else");
        assert_eq!(generation(), before);
    }
}
