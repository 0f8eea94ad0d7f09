//! Memory bandwidth, by the best of several ways to move bytes.

// Unsafe: instructions that exist only on some processors, and advice to the kernel about fresh memory.
#![allow(unsafe_code)]

use super::{MAX_THREADS, seconds_together};

/// How often each way is tried; the best counts, since a ceiling is what can be reached, not what is usual.
const TRIALS: usize = 5;

/// Bytes a second, read and written, of the best contiguous copy of `bytes` bytes on `threads` threads.
///
/// Tried are the C library's copy and non-temporal stores, on 1 MiB to 1 GiB. Zero threads count as one; memory is touched before
/// it is timed.
pub fn copy_bandwidth(bytes: usize, threads: usize) -> f64 {
    let words = words_of(bytes);
    let source = fresh(words, 1.0);
    let mut target = fresh(words, 2.0);
    let share = words.div_ceil(threads.clamp(1, MAX_THREADS));
    let mut best: f64 = 0.0;
    for way in ways_to_copy() {
        for _ in 0..TRIALS {
            let pairs = target.chunks_mut(share).zip(source.chunks(share)).collect();
            let seconds =
                seconds_together(pairs, |(target, source): (&mut [f32], &[f32])| way(target, source));
            best = best.max(2.0 * (4 * words) as f64 / seconds);
        }
    }
    best
}

/// Bytes a second, read and written, of the best addition in place to `bytes` bytes on `threads` threads.
pub fn read_modify_write_bandwidth(bytes: usize, threads: usize) -> f64 {
    let words = words_of(bytes);
    let mut target = fresh(words, 1.0);
    let share = words.div_ceil(threads.clamp(1, MAX_THREADS));
    let mut best: f64 = 0.0;
    for _ in 0..TRIALS {
        let parts = target.chunks_mut(share).collect();
        let seconds = seconds_together(parts, |part: &mut [f32]| add_in_place(part));
        best = best.max(2.0 * (4 * words) as f64 / seconds);
    }
    best
}

/// Between 1 MiB and 1 GiB: more would measure nothing else, and might not be there.
fn words_of(bytes: usize) -> usize {
    bytes.clamp(1 << 20, 1 << 30) / 4
}

/// Memory that has been touched, in huge pages where the system gives them: small pages cost a walk of the page
/// tables every 4 KiB, which is a property of the allocation and not of the machine.
fn fresh(words: usize, value: f32) -> Vec<f32> {
    let mut memory: Vec<f32> = Vec::with_capacity(words);
    #[cfg(target_os = "linux")]
    {
        const HUGE: usize = 2 << 20;
        let start = memory.as_ptr() as usize;
        let (first, last) = (start.next_multiple_of(HUGE), (start + 4 * words) & !(HUGE - 1));
        if first < last {
            // SAFETY: the range lies within the allocation above; advice changes no content, and a refusal is
            // no loss.
            unsafe { libc::madvise(first as *mut libc::c_void, last - first, libc::MADV_HUGEPAGE) };
        }
    }
    memory.resize(words, value);
    memory
}

type Copy = fn(&mut [f32], &[f32]);

fn ways_to_copy() -> Vec<Copy> {
    #[cfg_attr(not(target_arch = "x86_64"), expect(unused_mut, reason = "x86-64 adds its own ways"))]
    let mut ways: Vec<Copy> = vec![|target, source| target.copy_from_slice(source)];
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: AVX2 was found just now.
        ways.push(|target, source| unsafe { copy_past_the_cache(target, source) });
    }
    ways
}

/// Copies with stores that do not first read the line they overwrite.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn copy_past_the_cache(target: &mut [f32], source: &[f32]) {
    use std::arch::x86_64::{
        __m256i, _MM_HINT_NTA, _mm_prefetch, _mm_sfence, _mm256_loadu_si256, _mm256_stream_si256,
    };

    /// Floats in four vectors: two cache lines.
    const STEP: usize = 32;
    /// Bytes ahead of the load: 1 KiB, where more or less changed nothing on Zen 3 and Zen 4.
    const AHEAD: usize = 1024;
    let head = target.as_ptr().align_offset(32).min(target.len());
    let (first, target) = target.split_at_mut(head);
    let (first_source, source) = source.split_at(head.min(source.len()));
    first.copy_from_slice(first_source);
    let mut to = target.chunks_exact_mut(STEP);
    let mut from = source.chunks_exact(STEP);
    for (to, from) in (&mut to).zip(&mut from) {
        let (to, from) = (to.as_mut_ptr().cast::<__m256i>(), from.as_ptr().cast::<__m256i>());
        // SAFETY: each chunk holds 32 floats, four vectors; the target is aligned to 32 bytes by the split above
        // and stays so in steps of 128; a prefetch may name any address.
        unsafe {
            _mm_prefetch::<_MM_HINT_NTA>(from.cast::<i8>().wrapping_add(AHEAD));
            _mm_prefetch::<_MM_HINT_NTA>(from.cast::<i8>().wrapping_add(AHEAD + 64));
            let lanes = [0, 1, 2, 3].map(|lane| _mm256_loadu_si256(from.add(lane)));
            for (lane, value) in lanes.into_iter().enumerate() {
                _mm256_stream_si256(to.add(lane), value);
            }
        }
    }
    // The two slices are equally long, so their remainders are too.
    to.into_remainder().copy_from_slice(from.remainder());
    _mm_sfence();
}

/// Adds a constant to every word: plain Rust, which the compiler makes as wide as each copy of it may be.
#[inline(always)]
fn add(part: &mut [f32]) {
    for word in part {
        *word += 1.0;
    }
}

#[cfg(target_arch = "x86_64")]
fn add_in_place(part: &mut [f32]) {
    #[target_feature(enable = "avx512f")]
    fn add_512(part: &mut [f32]) {
        add(part);
    }
    #[target_feature(enable = "avx2")]
    fn add_256(part: &mut [f32]) {
        add(part);
    }
    if std::arch::is_x86_feature_detected!("avx512f") {
        // SAFETY: AVX-512 was found just now.
        unsafe { add_512(part) }
    } else if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: AVX2 was found just now.
        unsafe { add_256(part) }
    } else {
        add(part);
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn add_in_place(part: &mut [f32]) {
    add(part);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_copy_copies() {
        for words in [0, 1, 7, 8, 31, 32, 33, 100, 4096 + 5] {
            for shift in 0..9 {
                let source: Vec<f32> = (0..words + shift).map(|word| word as f32).collect();
                for way in ways_to_copy() {
                    let mut target = vec![-1.0; words + shift];
                    way(&mut target[shift..], &source[shift..]);
                    assert_eq!(target[shift..], source[shift..]);
                    assert!(target[..shift].iter().all(|&word| word == -1.0));
                }
            }
        }
    }

    #[test]
    fn adding_reaches_every_word() {
        let mut part: Vec<f32> = (0..1001).map(|word| word as f32).collect();
        add_in_place(&mut part);
        assert!(part.iter().enumerate().all(|(index, &word)| word == index as f32 + 1.0));
    }

    #[test]
    fn bandwidths_are_numbers_for_any_count_of_threads() {
        for threads in [0, 1, 2, 5] {
            assert!(copy_bandwidth(1 << 20, threads).is_normal());
            assert!(read_modify_write_bandwidth(0, threads).is_normal());
        }
    }
}
