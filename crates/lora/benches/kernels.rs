//! Times merging and applying beside the machine's own limits: `cargo bench -p infer-accel-lora`.
//!
//! Ratios within one run mean something; seconds do not.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use infer_accel_lora::{Options, apply_adapter, merge_weights};
use infer_accel_tensor::{DType, TensorMut, TensorRef, float};
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

fn main() {
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
