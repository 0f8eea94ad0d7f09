//! What threads of a tier share, under every order of their steps: the model checker runs the very files of the
//! crate, with its own locks in place of the standard library's.

#![allow(dead_code)] // the files hold more than the models use

#[path = "../src/tier/commit.rs"]
mod commit;
#[path = "../src/tier/cache/queue.rs"]
mod queue;

/// The checker's locks, under the name by which those files ask for them.
mod sync {
    pub(super) use loom::sync::{Condvar, Mutex, MutexGuard};
}

use commit::GroupCommit;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;
use queue::Queue;

/// Checks a model under every order with at most three preemptions, which is where such defects lie.
fn check(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

#[test]
fn a_commit_covers_what_was_written_before_it() {
    check(|| {
        let commit = Arc::new(GroupCommit::<()>::new());
        let written = Arc::new(AtomicUsize::new(0));
        let durable = Arc::new(AtomicUsize::new(0));
        let work = {
            let (commit, written, durable) =
                (Arc::clone(&commit), Arc::clone(&written), Arc::clone(&durable));
            move || {
                let mine = written.fetch_add(1, Ordering::SeqCst) + 1;
                let sync = || {
                    durable.store(written.load(Ordering::SeqCst), Ordering::SeqCst);
                    Ok(())
                };
                commit.commit(sync).unwrap();
                assert!(durable.load(Ordering::SeqCst) >= mine, "acknowledged, and not durable");
            }
        };
        let other = thread::spawn(work.clone());
        work();
        other.join().unwrap();
    });
}

#[test]
fn a_commit_that_fails_is_told_to_all_whom_it_served() {
    check(|| {
        let commit = Arc::new(GroupCommit::<()>::new());
        let failures = Arc::new(AtomicUsize::new(0));
        let work = {
            let (commit, failures) = (Arc::clone(&commit), Arc::clone(&failures));
            move || {
                if commit.commit(|| Err(())).is_err() {
                    failures.fetch_add(1, Ordering::SeqCst);
                }
            }
        };
        let other = thread::spawn(work.clone());
        work();
        other.join().unwrap();
        assert_eq!(failures.load(Ordering::SeqCst), 2);
    });
}

#[test]
fn a_queue_hands_everything_on_once_and_never_holds_more_than_it_may() {
    check(|| {
        let queue = Arc::new(Queue::new(1));
        let taken = Arc::new(AtomicUsize::new(0));
        let consumer = {
            let (queue, taken) = (Arc::clone(&queue), Arc::clone(&taken));
            thread::spawn(move || {
                loop {
                    let items: Vec<usize> = queue.take(4);
                    assert!(items.len() <= 1, "more than there are places");
                    if items.is_empty() {
                        return;
                    }
                    taken.fetch_add(items.iter().sum::<usize>(), Ordering::SeqCst);
                    queue.finish(items.len());
                }
            })
        };
        queue.push(1, None).unwrap();
        queue.push(10, None).unwrap();
        queue.wait();
        assert_eq!(taken.load(Ordering::SeqCst), 11, "waited for, and not finished");
        queue.close();
        assert_eq!(queue.push(100, None), Err(100));
        consumer.join().unwrap();
        assert_eq!(taken.load(Ordering::SeqCst), 11);
    });
}

#[test]
fn a_close_loses_nothing_that_was_taken_in() {
    check(|| {
        let queue = Arc::new(Queue::new(2));
        let consumer = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || {
                let mut sum = 0;
                loop {
                    let items: Vec<usize> = queue.take(1);
                    if items.is_empty() {
                        return sum;
                    }
                    sum += items.iter().sum::<usize>();
                    queue.finish(items.len());
                }
            })
        };
        let producer = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || usize::from(queue.push(1, None).is_ok()))
        };
        let mine = 10 * usize::from(queue.push(10, None).is_ok());
        queue.close();
        let theirs = producer.join().unwrap();
        assert_eq!(consumer.join().unwrap(), mine + theirs);
    });
}
