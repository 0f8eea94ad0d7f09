//! Times merging and applying beside the machine's own limits: `cargo bench -p infer-accel-lora`.
//!
//! Ratios within one run mean something; seconds do not.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use infer_accel_lora::{
    Delta, Options, Rounding, SlabOptions, apply_adapter, merge_slab, merge_weights, merge_with_residue,
    unmerge_weights,
};
use infer_accel_tensor::{DType, TensorMut, TensorRef, float, machine};
use std::time::Instant;

/// Median seconds of some runs, after one that is not counted.
fn median(runs: usize, mut work: impl FnMut()) -> f64 {
    work();
    let mut seconds: Vec<f64> = (0..runs)
        .map(|_| {
            let start = Instant::now();
            work();
            start.elapsed().as_secs_f64()
        })
        .collect();
    seconds.sort_by(f64::total_cmp);
    seconds[runs / 2]
}

/// Bytes of a matrix of small numbers.
fn numbers(dtype: DType, count: usize, seed: u32) -> Vec<u8> {
    let mut state = seed;
    let mut bytes = Vec::with_capacity(count * dtype.size());
    for _ in 0..count {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let value = (state >> 8) as f32 / (1 << 23) as f32 - 1.0;
        match dtype {
            DType::F32 => bytes.extend(value.to_le_bytes()),
            DType::F16 => bytes.extend(float::f32_to_f16(value).to_le_bytes()),
            _ => bytes.extend(float::f32_to_bf16(value).to_le_bytes()),
        }
    }
    bytes
}

fn view(bytes: &[u8], dtype: DType, shape: [usize; 2]) -> TensorRef<'_> {
    assert_eq!(bytes.len(), shape[0] * shape[1] * dtype.size());
    let strides = [shape[1] as isize, 1];
    #[allow(unsafe_code)]
    // SAFETY: the length was checked, the strides are those of a dense matrix, and the bytes stay borrowed.
    unsafe { TensorRef::from_raw(bytes.as_ptr(), dtype, &shape, &strides) }.unwrap()
}

fn view_mut(bytes: &mut [u8], dtype: DType, shape: [usize; 2]) -> TensorMut<'_> {
    assert_eq!(bytes.len(), shape[0] * shape[1] * dtype.size());
    let strides = [shape[1] as isize, 1];
    #[allow(unsafe_code)]
    // SAFETY: the length was checked, the strides are those of a dense matrix, and the bytes stay borrowed.
    unsafe { TensorMut::from_raw(bytes.as_mut_ptr(), dtype, &shape, &strides) }.unwrap()
}

/// Bytes per second, read and written, of the simplest change of an array in place.
fn bandwidth() -> f64 {
    let mut words = vec![0_u64; 4 << 20];
    let seconds = median(9, || words.iter_mut().for_each(|word| *word = word.wrapping_add(1)));
    2.0 * (words.len() * 8) as f64 / seconds
}

fn merge(base: DType, adapter: DType, shape: [usize; 2], rank: usize, threads: usize) -> f64 {
    let [rows, columns] = shape;
    let mut weight = numbers(base, rows * columns, 1);
    let (a, b) = (numbers(adapter, rank * columns, 2), numbers(adapter, rows * rank, 3));
    let (a, b) = (view(&a, adapter, [rank, columns]), view(&b, adapter, [rows, rank]));
    let options = Options { scaling: 1e-3, num_threads: Some(threads), tier: None };
    median(9, || merge_weights(&mut view_mut(&mut weight, base, shape), &a, &b, &options).unwrap())
}

fn apply(dtype: DType, tokens: usize, rank: usize, threads: usize) -> f64 {
    const WIDTH: usize = 4096;
    let (x, mut out) = (numbers(dtype, tokens * WIDTH, 1), numbers(dtype, tokens * WIDTH, 4));
    let (a, b) = (numbers(dtype, rank * WIDTH, 2), numbers(dtype, WIDTH * rank, 3));
    let (a, b) = (view(&a, dtype, [rank, WIDTH]), view(&b, dtype, [WIDTH, rank]));
    let x = view(&x, dtype, [tokens, WIDTH]);
    let options = Options { scaling: 1e-3, num_threads: Some(threads), tier: None };
    median(51, || {
        apply_adapter(&mut view_mut(&mut out, dtype, [tokens, WIDTH]), &x, &a, &b, &options).unwrap();
    })
}

/// Seconds that this thread has run: a thread that waits for a processor does not count as slow.
fn thread_seconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    #[allow(unsafe_code)]
    // SAFETY: the clock writes to the variable.
    unsafe {
        libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time);
    }
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// The best share of the machine's limits that one thread reaches, limits and merges taken in turns.
fn share() {
    let cases: Vec<(DType, DType, usize)> = [8, 16, 64, 256]
        .into_iter()
        .flat_map(|rank| {
            [
                (DType::BF16, DType::BF16, rank),
                (DType::BF16, DType::F32, rank),
                (DType::F16, DType::F16, rank),
            ]
        })
        .collect();
    let only: Option<usize> = std::env::var("RANK").ok().and_then(|rank| rank.parse().ok());
    for (base, adapter, rank) in cases {
        if only.is_some_and(|only| only != rank) {
            continue;
        }
        let [rows, columns] = [1020, 4096];
        let mut weight = numbers(base, rows * columns, 1);
        let (a, b) = (numbers(adapter, rank * columns, 2), numbers(adapter, rows * rank, 3));
        let (a, b) = (view(&a, adapter, [rank, columns]), view(&b, adapter, [rows, rank]));
        let options = Options { scaling: 1e-3, num_threads: Some(1), tier: None };
        let (mut best, mut fma, mut bandwidth) = (f64::MAX, 0.0_f64, 0.0_f64);
        for _ in 0..6 {
            fma = fma.max(machine::fma_rate(machine::FmaKind::F32, 1));
            if rank <= 16 {
                bandwidth = bandwidth.max(machine::read_modify_write_bandwidth(32 << 20, 1));
            }
            for _ in 0..if rank > 64 { 4 } else { 16 } {
                let start = thread_seconds();
                merge_weights(&mut view_mut(&mut weight, base, [rows, columns]), &a, &b, &options).unwrap();
                best = best.min(thread_seconds() - start);
            }
        }
        println!(
            "{} {} rank {rank:3}: {:7.3} ms, {:.3} of FMA ({:.0}), {:.3} of bandwidth ({:.1})",
            base.name(),
            adapter.name(),
            best * 1e3,
            2.0 * (rows * columns * rank) as f64 / best / fma,
            fma * 1e-9,
            (2 * rows * columns * base.size()) as f64 / best / bandwidth,
            bandwidth * 1e-9,
        );
    }
}

/// What reporting, a residue and undoing cost, in plain merges: the best of each, in turns, on one thread.
fn extras() {
    let shape @ [rows, columns] = [1020, 4096];
    for (base, rank) in [(DType::BF16, 8), (DType::BF16, 16), (DType::BF16, 64), (DType::F32, 16)] {
        let mut weight = numbers(base, rows * columns, 1);
        let (a, b) = (numbers(base, rank * columns, 2), numbers(base, rows * rank, 3));
        let (lora_a, lora_b) = (view(&a, base, [rank, columns]), view(&b, base, [rows, rank]));
        let deltas = [Delta { lora_a, lora_b, scaling: 1e-4 }];
        let plain = Options { scaling: 1e-4, num_threads: Some(1), tier: None };
        let options = SlabOptions { num_threads: Some(1), ..SlabOptions::default() };
        let mut best = [f64::MAX; 6];
        for _ in 0..20 {
            let mut time = |index: usize, work: &mut dyn FnMut(TensorMut<'_>)| {
                let start = thread_seconds();
                work(view_mut(&mut weight, base, shape));
                best[index] = f64::min(best[index], thread_seconds() - start);
            };
            time(0, &mut |mut weight| merge_weights(&mut weight, &lora_a, &lora_b, &plain).unwrap());
            let mut slab = |index, options: SlabOptions<'_>| {
                time(index, &mut |mut weight| {
                    drop(merge_slab(&mut weight, None, &deltas, &options).unwrap());
                });
            };
            slab(1, options);
            slab(2, SlabOptions { statistics: true, ..options });
            slab(3, SlabOptions { rounding: Rounding::Stochastic { seed: 1 }, ..options });
            let mut residue = None;
            time(4, &mut |mut weight| {
                residue = Some(merge_with_residue(&mut weight, None, &deltas, &options).unwrap().1);
            });
            let residue = residue.unwrap();
            time(5, &mut |mut weight| {
                unmerge_weights(&mut weight, None, &deltas, &residue, Some(1)).unwrap();
            });
        }
        let [plain, rest @ ..] = best;
        println!(
            "{} rank {rank:3}: {:.3} ms; in plain merges: sweep, report, dither, residue, undo: {:.2?}",
            base.name(),
            plain * 1e3,
            rest.map(|seconds| seconds / plain),
        );
    }
}

fn main() {
    match std::env::var("BENCH").as_deref() {
        Ok("share") => return share(),
        Ok("extras") => return extras(),
        _ => {}
    }
    let bandwidth = bandwidth();
    println!("read and write in place, one thread: {:.1} GB/s", bandwidth * 1e-9);
    for (base, adapter) in [(DType::BF16, DType::BF16), (DType::F16, DType::F16), (DType::F32, DType::F32)] {
        for rank in [8, 16, 64, 256] {
            let shape = [4096, 4096];
            let bytes = (2 * shape[0] * shape[1] * base.size()) as f64;
            for threads in [1, 2] {
                let seconds = merge(base, adapter, shape, rank, threads);
                println!(
                    "merge {} {threads} threads, rank {rank:3}: {:7.3} ms, {:6.1} GFLOP/s, {:5.1} GB/s",
                    base.name(),
                    seconds * 1e3,
                    2e-9 * (shape[0] * shape[1] * rank) as f64 / seconds,
                    bytes / seconds * 1e-9,
                );
            }
        }
    }
    for tokens in [1, 3, 64, 256] {
        for threads in [1, 2] {
            let seconds = apply(DType::BF16, tokens, 16, threads);
            println!(
                "apply bfloat16 {threads} threads, {tokens:3} tokens, rank 16: {:8.1} us, {:6.1} GFLOP/s",
                seconds * 1e6,
                2e-9 * (tokens * 2 * 4096 * 16) as f64 / seconds
            );
        }
    }
}
