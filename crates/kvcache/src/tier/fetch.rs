//! Reads that may be late: done by threads of the tier, waited for up to a deadline.
//!
//! A read that the device does not answer cannot be called back. So it goes into memory of its own, on a thread of
//! its own, and whoever asked leaves when the deadline has passed. The threads are few and the queue is short: with
//! a device that answers nothing, calls end at once instead of queueing behind it.

use super::TierError;
use super::buffer::Buffer;
use super::sync::{Condvar, Mutex, lock};
use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Instant;

/// As many reads are under way at once.
const THREADS: usize = 4;
/// As many wait.
const MAX_QUEUED: usize = 64;

/// What a thread does; the buffer is the thread's own.
type Work = Box<dyn FnOnce(&mut Buffer) + Send>;

struct Job {
    due: Instant,
    work: Work,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Job>,
    /// Until when the job that each thread does was asked for.
    running: [Option<Instant>; THREADS],
    closed: bool,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

/// Threads that read.
pub(super) struct Fetcher {
    shared: Arc<Shared>,
}

impl fmt::Debug for Fetcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fetcher")
    }
}

impl Fetcher {
    pub(super) fn new() -> Result<Self, TierError> {
        let shared = Arc::new(Shared::default());
        let fetcher = Self { shared: Arc::clone(&shared) };
        for number in 0..THREADS {
            let shared = Arc::clone(&shared);
            thread::Builder::new()
                .name(format!("infer-accel-io-{number}"))
                .spawn(move || serve(&shared, number))
                .map_err(|error| TierError::Thread { reason: error.to_string() })?;
        }
        Ok(fetcher)
    }

    /// Has each work done, and returns what came back until `due`, with its position.
    pub(super) fn run<T: Send + 'static>(
        &self,
        due: Instant,
        works: impl Iterator<Item = Box<dyn FnOnce(&mut Buffer) -> T + Send>>,
        mut receive: impl FnMut(usize, T),
    ) {
        // As many answers as jobs can be under way: a thread that is late never waits for somebody who left.
        let (sender, receiver) = mpsc::channel();
        let mut open = 0_usize;
        for (position, work) in works.enumerate() {
            let sender = sender.clone();
            let work: Work = Box::new(move |buffer| {
                let _ = sender.send((position, work(buffer)));
            });
            if !self.submit(Job { due, work }) {
                break;
            }
            open += 1;
            while let Ok((position, value)) = receiver.try_recv() {
                open -= 1;
                receive(position, value);
            }
        }
        drop(sender);
        while open > 0 {
            let left = due.saturating_duration_since(Instant::now());
            let Ok((position, value)) = receiver.recv_timeout(left) else { return };
            open -= 1;
            receive(position, value);
        }
    }

    /// Queues a job; false when there was no place for it in time.
    fn submit(&self, job: Job) -> bool {
        let mut queue = lock(&self.shared.queue);
        while queue.waiting.len() >= MAX_QUEUED {
            let now = Instant::now();
            let stuck = queue.running.iter().all(|due| due.is_some_and(|due| due < now));
            let left = job.due.saturating_duration_since(now);
            if stuck || left.is_zero() || queue.closed {
                return false;
            }
            let waited = self.shared.changed.wait_timeout(queue, left);
            queue = waited.unwrap_or_else(std::sync::PoisonError::into_inner).0;
        }
        let now = Instant::now();
        if queue.closed || queue.running.iter().all(|due| due.is_some_and(|due| due < now)) {
            return false;
        }
        queue.waiting.push_back(job);
        drop(queue);
        self.shared.changed.notify_all();
        true
    }
}

impl Drop for Fetcher {
    fn drop(&mut self) {
        let mut queue = lock(&self.shared.queue);
        queue.closed = true;
        queue.waiting.clear();
        drop(queue);
        self.shared.changed.notify_all();
    }
}

fn serve(shared: &Shared, number: usize) {
    let mut buffer = Buffer::default();
    let mut queue = lock(&shared.queue);
    loop {
        queue.running[number] = None;
        if queue.closed {
            return;
        }
        let Some(job) = queue.waiting.pop_front() else {
            queue = shared.changed.wait(queue).unwrap_or_else(std::sync::PoisonError::into_inner);
            continue;
        };
        if job.due < Instant::now() {
            continue;
        }
        queue.running[number] = Some(job.due);
        drop(queue);
        shared.changed.notify_all();
        (job.work)(&mut buffer);
        queue = lock(&shared.queue);
    }
}
