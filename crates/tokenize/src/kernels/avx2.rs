//! x86-64 with AVX2 and BMI2.
#![allow(unsafe_code)]

use std::arch::x86_64::{
    __m256i, _mm256_cmpeq_epi8, _mm256_loadu_si256, _mm256_min_epu8, _mm256_movemask_epi8, _mm256_set1_epi8,
    _mm256_sub_epi8, _pdep_u64, _pext_u64,
};

use super::{BLOCK, Lanes, Masks};
use crate::pretokenize::block::{self, Starts};
use crate::pretokenize::grammar::Grammar;

/// Only reachable from the functions of this file that enable the features.
struct Avx2;

/// [`block::fill`], compiled for AVX2.
pub(crate) fn fill<G: Grammar>(text: &[u8], starts: &mut Starts) {
    #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
    fn enabled<G: Grammar>(text: &[u8], starts: &mut Starts) {
        block::fill::<G, Avx2>(text, starts);
    }
    // SAFETY: the caller's tier is AVX2 or above, which `infer_accel_tensor::simd` detected with all of these.
    unsafe { enabled::<G>(text, starts) }
}

/// Calls `f`, compiled for AVX2 as far as it is inlined; the caller's tier is AVX2 or above.
#[inline(always)]
pub(super) fn compiled<R>(f: impl FnOnce() -> R) -> R {
    #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
    fn enabled<R>(f: impl FnOnce() -> R) -> R {
        f()
    }
    // SAFETY: the tier is AVX2 or above, which `infer_accel_tensor::simd` detected with all of these.
    unsafe { enabled(f) }
}

impl Lanes for Avx2 {
    const MOVES_BITS: bool = true;

    #[inline(always)]
    fn classify(bytes: &[u8; BLOCK]) -> Masks {
        let (low, high) = (half(bytes, 0), half(bytes, 32));
        Masks {
            upper: join(low, high, |v| in_range(v, b'A', 25)),
            lower: join(low, high, |v| in_range(v, b'a', 25)),
            number: join(low, high, |v| in_range(v, b'0', 9)),
            space: join(low, high, |v| in_range(v, b'\t', 4) | equal(v, b' ')),
            line_break: join(low, high, |v| equal(v, b'\r') | equal(v, b'\n')),
            blank: join(low, high, |v| equal(v, b' ')),
            apostrophe: join(low, high, |v| equal(v, b'\'')),
            slash: join(low, high, |v| equal(v, b'/')),
            control: join(low, high, |v| (in_range(v, 0, 0x1f) & !in_range(v, b'\t', 4)) | equal(v, 0x7f)),
            non_ascii: join(low, high, signs),
        }
    }

    #[inline(always)]
    fn gather_bits(value: u64, places: u64) -> u64 {
        // SAFETY: BMI2 is enabled, see `Avx2`.
        unsafe { _pext_u64(value, places) }
    }

    #[inline(always)]
    fn scatter_bits(value: u64, places: u64) -> u64 {
        // SAFETY: BMI2 is enabled, see `Avx2`.
        unsafe { _pdep_u64(value, places) }
    }
}

#[inline(always)]
fn half(bytes: &[u8; BLOCK], from: usize) -> __m256i {
    debug_assert!(from + 32 <= BLOCK);
    // SAFETY: AVX2 is enabled, see `Avx2`; `from` is 0 or 32, so that 32 bytes of the array follow it.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().add(from).cast()) }
}

#[inline(always)]
fn join(low: __m256i, high: __m256i, mask: impl Fn(__m256i) -> u32) -> u64 {
    u64::from(mask(low)) | u64::from(mask(high)) << 32
}

/// Bytes in `first..=first + span`.
#[inline(always)]
fn in_range(bytes: __m256i, first: u8, span: u8) -> u32 {
    // SAFETY: AVX2 is enabled, see `Avx2`.
    unsafe {
        let offset = _mm256_sub_epi8(bytes, _mm256_set1_epi8(first as i8));
        let inside = _mm256_cmpeq_epi8(_mm256_min_epu8(offset, _mm256_set1_epi8(span as i8)), offset);
        _mm256_movemask_epi8(inside) as u32
    }
}

#[inline(always)]
fn equal(bytes: __m256i, wanted: u8) -> u32 {
    // SAFETY: AVX2 is enabled, see `Avx2`.
    unsafe { _mm256_movemask_epi8(_mm256_cmpeq_epi8(bytes, _mm256_set1_epi8(wanted as i8))) as u32 }
}

#[inline(always)]
fn signs(bytes: __m256i) -> u32 {
    // SAFETY: AVX2 is enabled, see `Avx2`.
    unsafe { _mm256_movemask_epi8(bytes) as u32 }
}

/// The operations as plain functions, for the tests.
#[cfg(test)]
pub(crate) mod plain {
    use super::{Avx2, BLOCK, Lanes, Masks};

    #[target_feature(enable = "avx2,bmi2")]
    fn classify_enabled(bytes: &[u8; BLOCK]) -> Masks {
        Avx2::classify(bytes)
    }

    pub(crate) fn classify(bytes: &[u8; BLOCK]) -> Masks {
        // SAFETY: the tests ask for the tier first.
        unsafe { classify_enabled(bytes) }
    }

    pub(crate) fn gather_bits(value: u64, places: u64) -> u64 {
        Avx2::gather_bits(value, places)
    }

    pub(crate) fn scatter_bits(value: u64, places: u64) -> u64 {
        Avx2::scatter_bits(value, places)
    }
}
