//! x86-64 with AVX2 and BMI2.
#![allow(unsafe_code)]

use std::arch::x86_64::{
    __m256i, _mm256_andnot_si256, _mm256_cmpeq_epi8, _mm256_loadu_si256, _mm256_min_epu8,
    _mm256_movemask_epi8, _mm256_or_si256, _mm256_set1_epi8, _mm256_sub_epi8, _pdep_u64, _pext_u64,
};

use super::{BLOCK, Lanes, Masks, Work};
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

/// Runs the work, compiled for AVX2; the caller's tier is AVX2 or above.
#[inline(always)]
pub(super) fn run<W: Work>(work: W) -> W::Outcome {
    #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt")]
    fn enabled<W: Work>(work: W) -> W::Outcome {
        work.run()
    }
    // SAFETY: the tier is AVX2 or above, which `infer_accel_tensor::simd` detected with all of these.
    unsafe { enabled(work) }
}

impl Lanes for Avx2 {
    const MOVES_BITS: bool = true;

    #[inline(always)]
    fn classify(bytes: &[u8; BLOCK]) -> Masks {
        let (low, high) = (classes(half(bytes, 0)), classes(half(bytes, 32)));
        Masks {
            upper: join(low.upper, high.upper),
            lower: join(low.lower, high.lower),
            number: join(low.number, high.number),
            space: join(low.space, high.space),
            line_break: join(low.line_break, high.line_break),
            blank: join(low.blank, high.blank),
            apostrophe: join(low.apostrophe, high.apostrophe),
            slash: join(low.slash, high.slash),
            control: join(low.control, high.control),
            non_ascii: join(low.non_ascii, high.non_ascii),
        }
    }

    #[inline(always)]
    fn gather_bits(value: u64, places: u64) -> u64 {
        extract(value, places)
    }

    #[inline(always)]
    fn scatter_bits(value: u64, places: u64) -> u64 {
        deposit(value, places)
    }
}

/// [`Lanes::gather_bits`]; the caller's tier is AVX2 or above.
#[inline(always)]
pub(super) fn extract(value: u64, places: u64) -> u64 {
    // SAFETY: the tier has BMI2.
    unsafe { _pext_u64(value, places) }
}

/// [`Lanes::scatter_bits`]; the caller's tier is AVX2 or above.
#[inline(always)]
pub(super) fn deposit(value: u64, places: u64) -> u64 {
    // SAFETY: the tier has BMI2.
    unsafe { _pdep_u64(value, places) }
}

#[inline(always)]
fn half(bytes: &[u8; BLOCK], from: usize) -> __m256i {
    debug_assert!(from + 32 <= BLOCK);
    // SAFETY: AVX2 is enabled, see `Avx2`; `from` is 0 or 32, so that 32 bytes of the array follow it.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().add(from).cast()) }
}

/// [`Masks`] of 32 bytes, each still a vector.
struct Classes {
    upper: __m256i,
    lower: __m256i,
    number: __m256i,
    space: __m256i,
    line_break: __m256i,
    blank: __m256i,
    apostrophe: __m256i,
    slash: __m256i,
    control: __m256i,
    non_ascii: __m256i,
}

// Functions rather than closures: a closure does not have the features of the function around it, so that what is not
// inlined would call each operation.
#[inline(always)]
fn classes(bytes: __m256i) -> Classes {
    let tabs = in_range(bytes, b'\t', 4);
    let blank = equal(bytes, b' ');
    let delete = equal(bytes, 0x7f);
    // SAFETY: AVX2 is enabled, see `Avx2`.
    let (space, line_break, control) = unsafe {
        (
            _mm256_or_si256(tabs, blank),
            _mm256_or_si256(equal(bytes, b'\r'), equal(bytes, b'\n')),
            _mm256_or_si256(_mm256_andnot_si256(tabs, in_range(bytes, 0, 0x1f)), delete),
        )
    };
    Classes {
        upper: in_range(bytes, b'A', 25),
        lower: in_range(bytes, b'a', 25),
        number: in_range(bytes, b'0', 9),
        space,
        line_break,
        blank,
        apostrophe: equal(bytes, b'\''),
        slash: equal(bytes, b'/'),
        control,
        non_ascii: bytes,
    }
}

/// The highest bit of each byte.
#[inline(always)]
fn join(low: __m256i, high: __m256i) -> u64 {
    // SAFETY: AVX2 is enabled, see `Avx2`.
    let (low, high) = unsafe { (_mm256_movemask_epi8(low) as u32, _mm256_movemask_epi8(high) as u32) };
    u64::from(low) | u64::from(high) << 32
}

/// Bytes in `first..=first + span`.
#[inline(always)]
fn in_range(bytes: __m256i, first: u8, span: u8) -> __m256i {
    // SAFETY: AVX2 is enabled, see `Avx2`.
    unsafe {
        let offset = _mm256_sub_epi8(bytes, _mm256_set1_epi8(first as i8));
        _mm256_cmpeq_epi8(_mm256_min_epu8(offset, _mm256_set1_epi8(span as i8)), offset)
    }
}

#[inline(always)]
fn equal(bytes: __m256i, wanted: u8) -> __m256i {
    // SAFETY: AVX2 is enabled, see `Avx2`.
    unsafe { _mm256_cmpeq_epi8(bytes, _mm256_set1_epi8(wanted as i8)) }
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
