//! What may be late: done by threads of the tier, waited for up to a deadline.
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
use std::time::{Duration, Instant};

/// As many reads are under way at once.
const READ_THREADS: usize = 4;
/// As many wait.
const QUEUED_READS: usize = 64;
/// As many chunks wait while one is written: the next one is filled meanwhile, and no more memory is taken.
const QUEUED_WRITES: usize = 1;
/// As many syncs wait; callers share one (see `commit`), so more than one means that they gave up.
const QUEUED_SYNCS: usize = 1;

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
    running: Vec<Option<Instant>>,
    closed: bool,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
    max_queued: usize,
}

/// Threads that ask the device for something.
pub(super) struct Fetcher {
    shared: Arc<Shared>,
    spare: Spare,
}

/// Buffers that came back from whoever asked, for the next reads: fresh memory costs more than to read into it.
#[derive(Clone, Default)]
pub(super) struct Spare(Arc<Mutex<Vec<Buffer>>>);

impl Spare {
    /// One that was used before, where there is one.
    pub(super) fn take(&self) -> Option<Buffer> {
        lock(&self.0).pop()
    }

    /// Keeps a buffer, unless there are enough.
    pub(super) fn keep(&self, buffer: Buffer) {
        let mut kept = lock(&self.0);
        if kept.len() < READ_THREADS {
            kept.push(buffer);
        }
    }
}

impl fmt::Debug for Fetcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fetcher")
    }
}

impl Fetcher {
    /// Threads that read.
    pub(super) fn new() -> Result<Self, TierError> {
        Self::with("io", READ_THREADS, QUEUED_READS)
    }

    fn with(name: &str, threads: usize, max_queued: usize) -> Result<Self, TierError> {
        let queue = Queue { running: vec![None; threads], ..Queue::default() };
        let shared = Arc::new(Shared { queue: Mutex::new(queue), max_queued, ..Shared::default() });
        let fetcher = Self { shared: Arc::clone(&shared), spare: Spare::default() };
        for number in 0..threads {
            let shared = Arc::clone(&shared);
            thread::Builder::new()
                .name(format!("infer-accel-{name}-{number}"))
                .spawn(move || serve(&shared, number))
                .map_err(|error| TierError::Thread { reason: error.to_string() })?;
        }
        Ok(fetcher)
    }

    /// Buffers for what threads read and pass on.
    pub(super) fn spare(&self) -> Spare {
        self.spare.clone()
    }

    /// Has each work done, and passes on what came back until `due`, with its position.
    pub(super) fn run<T: Send + 'static>(
        &self,
        due: Instant,
        works: impl Iterator<Item = Box<dyn FnOnce(&mut Buffer) -> T + Send>>,
        receive: impl FnMut(usize, T),
    ) {
        self.run_until(|| due, works, receive);
    }

    /// As [`run`](Self::run); `due` is asked anew for each work and each answer. Whether all came back.
    fn run_until<T: Send + 'static>(
        &self,
        due: impl Fn() -> Instant,
        works: impl Iterator<Item = Box<dyn FnOnce(&mut Buffer) -> T + Send>>,
        mut receive: impl FnMut(usize, T),
    ) -> bool {
        // As many answers as jobs can be under way: a thread that is late never waits for somebody who left.
        let (sender, receiver) = mpsc::channel();
        let (mut open, mut complete) = (0_usize, true);
        for (position, work) in works.enumerate() {
            let sender = sender.clone();
            let work: Work = Box::new(move |buffer| {
                let _ = sender.send((position, work(buffer)));
            });
            if !self.submit(Job { due: due(), work }) {
                complete = false;
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
            let left = due().saturating_duration_since(Instant::now());
            let Ok((position, value)) = receiver.recv_timeout(left) else { return false };
            open -= 1;
            receive(position, value);
        }
        complete
    }

    /// Queues a job; false when there was no place for it in time.
    fn submit(&self, job: Job) -> bool {
        let mut queue = lock(&self.shared.queue);
        while queue.waiting.len() >= self.shared.max_queued {
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

/// A thread that writes and one that syncs, so that neither waits for the other.
#[derive(Debug)]
pub(super) struct Background {
    deadline: Duration,
    writes: Fetcher,
    syncs: Fetcher,
}

impl Background {
    pub(super) fn new(deadline: Duration) -> Result<Self, TierError> {
        let writes = Fetcher::with("write", 1, QUEUED_WRITES)?;
        Ok(Self { deadline, writes, syncs: Fetcher::with("sync", 1, QUEUED_SYNCS)? })
    }

    /// Has jobs done in their order, and passes on what came of each. Whether each was done in time.
    pub(super) fn write<T: Send + 'static, J: FnOnce() -> T + Send + 'static>(
        &self,
        jobs: impl Iterator<Item = J>,
        mut receive: impl FnMut(T),
    ) -> bool {
        let works =
            jobs.map(|job| Box::new(move |_: &mut Buffer| job()) as Box<dyn FnOnce(&mut Buffer) -> T + Send>);
        self.writes.run_until(|| Instant::now() + self.deadline, works, |_, value| receive(value))
    }

    /// What came of a job, if it was done in time.
    pub(super) fn sync<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let work = Box::new(move |_: &mut Buffer| job()) as Box<dyn FnOnce(&mut Buffer) -> T + Send>;
        let mut outcome = None;
        self.syncs
            .run(Instant::now() + self.deadline, std::iter::once(work), |_, value| outcome = Some(value));
        outcome
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
