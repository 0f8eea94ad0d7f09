//! What this machine can do at best: the ceilings that benchmarks are held against.
//!
//! Loops that do one thing, in the widest instructions that the processor has whatever `INFER_ACCEL_SIMD` says,
//! several times, of which the best counts. Nothing here is used by an operation.

mod bandwidth;
mod rates;

use std::sync::{Barrier, Mutex, PoisonError};
use std::time::Instant;

pub use bandwidth::{copy_bandwidth, read_modify_write_bandwidth};
pub use rates::{FmaKind, fma_rate, sha256_rate};

/// No ceiling rises with more, and each costs a stack.
const MAX_THREADS: usize = 1024;

/// Runs `work` on each item at the same time, one thread an item, and returns the seconds from the first start
/// to the last end.
fn seconds_together<T: Send>(items: Vec<T>, work: impl Fn(T) + Sync) -> f64 {
    let barrier = Barrier::new(items.len());
    let spans = Mutex::new(Vec::with_capacity(items.len()));
    let timed = |item: T| {
        barrier.wait();
        let start = Instant::now();
        work(item);
        let end = Instant::now();
        spans.lock().unwrap_or_else(PoisonError::into_inner).push((start, end));
    };
    std::thread::scope(|scope| {
        let mut items = items.into_iter();
        let own = items.next();
        for item in items {
            scope.spawn(|| timed(item));
        }
        if let Some(item) = own {
            timed(item);
        }
    });
    let spans = spans.into_inner().unwrap_or_else(PoisonError::into_inner);
    let start = spans.iter().map(|span| span.0).min();
    let end = spans.iter().map(|span| span.1).max();
    match (start, end) {
        (Some(start), Some(end)) => (end - start).as_secs_f64(),
        _ => f64::INFINITY,
    }
}

/// The names of the instruction sets that matter here and that this processor has.
pub fn cpu_features() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    {
        macro_rules! present {
            ($($feature:tt),*) => {
                [$(($feature, std::arch::is_x86_feature_detected!($feature))),*]
            };
        }
        present!(
            "avx2",
            "fma",
            "f16c",
            "bmi2",
            "sha",
            "avx512f",
            "avx512bw",
            "avx512dq",
            "avx512vl",
            "avx512bf16",
            "avx512vbmi",
            "avx512fp16"
        )
        .into_iter()
        .filter_map(|(name, present)| present.then_some(name))
        .collect()
    }
    #[cfg(not(target_arch = "x86_64"))]
    Vec::new()
}
