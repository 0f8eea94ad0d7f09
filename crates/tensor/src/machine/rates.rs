//! Arithmetic out of registers: fused multiply-adds and the rounds of SHA-256.

// Unsafe: instructions that exist only on some processors.
#![allow(unsafe_code)]

use std::hint::black_box;

use super::{MAX_THREADS, seconds_together};

/// Best of so many: the first warms the clock up.
const TRIALS: usize = 7;
/// Steps of a trial: a few milliseconds on anything current.
const STEPS: usize = 1 << 20;
/// Independent chains: two units of four cycles' latency need eight; two more cost nothing.
const CHAINS: usize = 10;

/// Which multiply-add is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FmaKind {
    /// Single precision.
    F32,
    /// Pairs of bf16 summed in single precision (`vdpbf16ps`); the rate of [`FmaKind::F32`] where the processor
    /// has no such instruction, since that is then what bf16 is computed with.
    Bf16,
}

/// Floating-point operations a second, two a multiply-add, on `threads` threads at once.
pub fn fma_rate(kind: FmaKind, threads: usize) -> f64 {
    let (run, operations) = fma_loop(kind);
    best_rate(threads, operations, run)
}

/// Bytes a second that go through the 64 rounds of SHA-256 on one thread, `streams` (1, 2 or 4; others are
/// rounded down) independent messages at once. One message alone waits for the latency of every round.
///
/// Only the rounds are counted: a ceiling that a whole hash, which also expands its message, cannot pass.
pub fn sha256_rate(streams: usize) -> f64 {
    const BLOCK: f64 = 64.0;
    match streams {
        0 | 1 => best_rate(1, BLOCK / ROUNDS_OF_A_STEP, || sha_rounds::<1>(STEPS)),
        2 | 3 => best_rate(1, 2.0 * BLOCK / ROUNDS_OF_A_STEP, || sha_rounds::<2>(STEPS)),
        _ => best_rate(1, 4.0 * BLOCK / ROUNDS_OF_A_STEP, || sha_rounds::<4>(STEPS)),
    }
}

/// Steps of [`sha_rounds`] that make the 64 rounds of a block.
const ROUNDS_OF_A_STEP: f64 = 16.0;

fn best_rate(threads: usize, a_step: f64, run: impl Fn() + Sync) -> f64 {
    let threads = threads.clamp(1, MAX_THREADS);
    (0..TRIALS)
        .map(|_| {
            let seconds = seconds_together(vec![(); threads], |()| run());
            threads as f64 * a_step * STEPS as f64 / seconds
        })
        .fold(0.0, f64::max)
}

/// The loop of a kind, and the operations of one of its steps.
#[cfg(target_arch = "x86_64")]
fn fma_loop(kind: FmaKind) -> (fn(), f64) {
    use crate::simd::{Tier, detected};

    match (detected(), kind) {
        // SAFETY: the processor has AVX-512 with BF16.
        (Tier::Avx512Bf16, FmaKind::Bf16) => (|| unsafe { x86::dot_bf16_512() }, operations(32)),
        // SAFETY: the processor has AVX-512.
        (Tier::Avx512 | Tier::Avx512Bf16, _) => (|| unsafe { x86::fma_512() }, operations(16)),
        // SAFETY: the processor has AVX2 and FMA.
        (Tier::Avx2, _) => (|| unsafe { x86::fma_256() }, operations(8)),
        (Tier::Portable, _) => (fma_portable, operations(8)),
    }
}

/// The loop of a kind, and the operations of one of its steps.
#[cfg(not(target_arch = "x86_64"))]
fn fma_loop(_kind: FmaKind) -> (fn(), f64) {
    (fma_portable, operations(8))
}

/// Operations of a step: every chain multiplies and adds once in each of its lanes.
fn operations(lanes: usize) -> f64 {
    (2 * lanes * CHAINS) as f64
}

/// Multiply-adds in plain Rust: fused where the target always has them.
fn fma_portable() {
    let (factor, term) = (black_box(0.5_f32), black_box(1.0_f32));
    let mut chains = [[black_box(1.0_f32); 8]; CHAINS];
    for _ in 0..STEPS {
        for lane in chains.as_flattened_mut() {
            *lane = if cfg!(any(target_feature = "fma", target_arch = "aarch64")) {
                lane.mul_add(factor, term)
            } else {
                *lane * factor + term
            };
        }
    }
    black_box(chains);
}

fn sha_rounds<const STREAMS: usize>(steps: usize) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("sha") {
        // SAFETY: the SHA instructions were found just now.
        unsafe { x86::sha_rounds::<STREAMS>(steps) };
        return;
    }
    let mut states = [[black_box(1_u32); 8]; STREAMS];
    for _ in 0..4 * steps {
        for state in &mut states {
            sha_round(state);
        }
    }
    black_box(states);
}

/// One round of SHA-256 as the standard writes it, with a constant for the message.
fn sha_round(state: &mut [u32; 8]) {
    let [a, b, c, d, e, f, g, h] = *state;
    let sum_1 = e.rotate_right(6) ^ e.rotate_right(11) ^ e.rotate_right(25);
    let choice = (e & f) ^ (!e & g);
    let first = h.wrapping_add(sum_1).wrapping_add(choice).wrapping_add(0x428a_2f98);
    let sum_0 = a.rotate_right(2) ^ a.rotate_right(13) ^ a.rotate_right(22);
    let majority = (a & b) ^ (a & c) ^ (b & c);
    let second = sum_0.wrapping_add(majority);
    *state = [first.wrapping_add(second), a, b, c, d.wrapping_add(first), e, f, g];
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m512bh, _mm_set1_epi32, _mm_sha256rnds2_epu32, _mm256_fmadd_ps, _mm256_set1_ps, _mm512_dpbf16_ps,
        _mm512_fmadd_ps, _mm512_set1_epi16, _mm512_set1_ps,
    };
    use std::hint::black_box;

    use super::{CHAINS, STEPS};

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn fma_256() {
        let (factor, term) = (_mm256_set1_ps(black_box(0.5)), _mm256_set1_ps(black_box(1.0)));
        let mut chains = [_mm256_set1_ps(black_box(1.0)); CHAINS];
        for _ in 0..STEPS {
            for chain in &mut chains {
                *chain = _mm256_fmadd_ps(*chain, factor, term);
            }
        }
        black_box(chains);
    }

    #[target_feature(enable = "avx512f")]
    pub(super) fn fma_512() {
        let (factor, term) = (_mm512_set1_ps(black_box(0.5)), _mm512_set1_ps(black_box(1.0)));
        let mut chains = [_mm512_set1_ps(black_box(1.0)); CHAINS];
        for _ in 0..STEPS {
            for chain in &mut chains {
                *chain = _mm512_fmadd_ps(*chain, factor, term);
            }
        }
        black_box(chains);
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) fn dot_bf16_512() {
        // 0x3c00 is 2⁻⁷ in bf16: sums stay small, and normal, for any number of steps tried here.
        // SAFETY: both types are 64 bytes of plain numbers.
        let pairs: __m512bh = unsafe { std::mem::transmute(_mm512_set1_epi16(black_box(0x3c00))) };
        let mut chains = [_mm512_set1_ps(black_box(1.0)); CHAINS];
        for _ in 0..STEPS {
            for chain in &mut chains {
                *chain = _mm512_dpbf16_ps(*chain, pairs, pairs);
            }
        }
        black_box(chains);
    }

    /// Four rounds a step and stream.
    #[target_feature(enable = "sha")]
    pub(super) fn sha_rounds<const STREAMS: usize>(steps: usize) {
        let message = _mm_set1_epi32(black_box(0x428a_2f98));
        let mut states = [[_mm_set1_epi32(black_box(1)); 2]; STREAMS];
        for _ in 0..steps {
            for [abef, cdgh] in &mut states {
                *cdgh = _mm_sha256rnds2_epu32(*cdgh, *abef, message);
                *abef = _mm_sha256rnds2_epu32(*abef, *cdgh, message);
            }
        }
        black_box(states);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_round_is_that_of_the_standard() {
        // The first round of the message "abc" with K₀ folded into the constant: checked against a run by hand of
        // FIPS 180-4 with W₀ = 0, from the initial state.
        let mut state = [
            0x6a09_e667,
            0xbb67_ae85,
            0x3c6e_f372,
            0xa54f_f53a,
            0x510e_527f,
            0x9b05_688c,
            0x1f83_d9ab,
            0x5be0_cd19,
        ];
        sha_round(&mut state);
        assert_eq!(state[0], 0xfc08_884d);
        assert_eq!(state[4], 0x98c7_e2a2);
        assert_eq!(state[1..4], [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372]);
    }

    #[test]
    fn rates_are_numbers_for_any_request() {
        assert!(fma_rate(FmaKind::F32, 2).is_normal());
        assert!(fma_rate(FmaKind::Bf16, 0).is_normal());
        assert!(sha256_rate(0).is_normal());
        assert!(sha256_rate(2).is_normal());
        assert!(sha256_rate(9).is_normal());
    }
}
