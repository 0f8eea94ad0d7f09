//! x86-64 with AVX-512: comparisons give masks, and where the processor moves bytes together (VBMI2), the places of a
//! mask's bits come all at once.
#![allow(unsafe_code)]

use std::arch::x86_64::{
    __m128i, __m512i, _mm_loadl_epi64, _mm512_add_epi64, _mm512_cmpeq_epi8_mask, _mm512_cmple_epu8_mask,
    _mm512_cvtepu8_epi64, _mm512_loadu_si512, _mm512_maskz_compress_epi8, _mm512_movepi8_mask,
    _mm512_set1_epi8, _mm512_set1_epi64, _mm512_storeu_si512, _mm512_sub_epi8,
};

use super::avx2::{deposit, extract};
use super::{BLOCK, Lanes, Masks, Work};
use crate::pretokenize::block::{self, Starts};
use crate::pretokenize::grammar::Grammar;

/// Only reachable from the functions of this file that enable the features; VBMI2 only where `MOVES`.
struct Avx512<const MOVES: bool>;

/// [`block::fill`], compiled for AVX-512; the caller's tier is AVX-512 or above.
pub(super) fn fill<G: Grammar>(text: &[u8], starts: &mut Starts) {
    if std::arch::is_x86_feature_detected!("avx512vbmi2") {
        // SAFETY: as below, and the processor has VBMI2.
        unsafe { fill_moving::<G>(text, starts) }
    } else {
        // SAFETY: the caller's tier is AVX-512 or above, which `infer_accel_tensor::simd` detected with all of these.
        unsafe { fill_plainly::<G>(text, starts) }
    }
}

#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi2")]
fn fill_moving<G: Grammar>(text: &[u8], starts: &mut Starts) {
    block::fill::<G, Avx512<true>>(text, starts);
}

#[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt,avx512f,avx512bw,avx512dq,avx512vl")]
fn fill_plainly<G: Grammar>(text: &[u8], starts: &mut Starts) {
    block::fill::<G, Avx512<false>>(text, starts);
}

/// Runs the work, compiled for AVX-512; the caller's tier is AVX-512 or above.
#[inline(always)]
pub(super) fn run<W: Work>(work: W) -> W::Outcome {
    #[target_feature(enable = "avx2,bmi1,bmi2,lzcnt,popcnt,avx512f,avx512bw,avx512dq,avx512vl")]
    fn enabled<W: Work>(work: W) -> W::Outcome {
        work.run()
    }
    // SAFETY: the tier is AVX-512 or above, which `infer_accel_tensor::simd` detected with all of these.
    unsafe { enabled(work) }
}

impl<const MOVES: bool> Lanes for Avx512<MOVES> {
    const MOVES_BITS: bool = true;

    #[inline(always)]
    fn classify(bytes: &[u8; BLOCK]) -> Masks {
        // SAFETY: AVX-512 is enabled, see `Avx512`.
        unsafe { classify(bytes) }
    }

    #[inline(always)]
    fn gather_bits(value: u64, places: u64) -> u64 {
        extract(value, places)
    }

    #[inline(always)]
    fn scatter_bits(value: u64, places: u64) -> u64 {
        deposit(value, places)
    }

    #[inline(always)]
    fn places(base: usize, bits: u64, room: &mut [usize; BLOCK]) {
        if !MOVES {
            return super::places(base, bits, room);
        }
        // SAFETY: VBMI2 is enabled, see `Avx512`.
        unsafe { places(base, bits, room) }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn classify(bytes: &[u8; BLOCK]) -> Masks {
    let bytes = load(bytes);
    let equal = |wanted: u8| _mm512_cmpeq_epi8_mask(bytes, _mm512_set1_epi8(wanted as i8));
    let within = |first: u8, span: u8| {
        let offset = _mm512_sub_epi8(bytes, _mm512_set1_epi8(first as i8));
        _mm512_cmple_epu8_mask(offset, _mm512_set1_epi8(span as i8))
    };
    let (tabs, blank) = (within(b'\t', 4), equal(b' '));
    Masks {
        upper: within(b'A', 25),
        lower: within(b'a', 25),
        number: within(b'0', 9),
        space: tabs | blank,
        line_break: equal(b'\r') | equal(b'\n'),
        blank,
        apostrophe: equal(b'\''),
        slash: equal(b'/'),
        control: within(0, 0x1f) & !tabs | equal(0x7f),
        non_ascii: _mm512_movepi8_mask(bytes),
    }
}

/// [`super::places`]: the numbers of the set bits are moved together as bytes, then widened eight at a time.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi2")]
fn places(base: usize, bits: u64, room: &mut [usize; BLOCK]) {
    const NUMBERS: [u8; BLOCK] = {
        let mut numbers = [0_u8; BLOCK];
        let mut number = 0;
        while number < BLOCK {
            numbers[number] = number as u8;
            number += 1;
        }
        numbers
    };
    let mut numbers = [0_u8; BLOCK];
    // SAFETY: room for 64 bytes.
    unsafe {
        _mm512_storeu_si512(numbers.as_mut_ptr().cast(), _mm512_maskz_compress_epi8(bits, load(&NUMBERS)));
    }
    let base = _mm512_set1_epi64(base as i64);
    let eights = (bits.count_ones() as usize).div_ceil(8);
    for (slots, numbers) in
        room.as_chunks_mut::<8>().0.iter_mut().zip(numbers.as_chunks::<8>().0).take(eights)
    {
        // SAFETY: eight bytes; room for eight numbers of 64 bits, which `usize` has on x86-64.
        unsafe {
            let numbers: __m128i = _mm_loadl_epi64(numbers.as_ptr().cast());
            _mm512_storeu_si512(
                slots.as_mut_ptr().cast(),
                _mm512_add_epi64(base, _mm512_cvtepu8_epi64(numbers)),
            );
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(bytes: &[u8; BLOCK]) -> __m512i {
    // SAFETY: 64 bytes.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

/// The operations as plain functions, for the tests.
#[cfg(test)]
pub(super) mod plain {
    use super::{BLOCK, Grammar, Masks, Starts};

    /// [`super::fill`] as processors without VBMI2 do it. The tests ask for the tier first.
    pub(crate) fn fill<G: Grammar>(text: &[u8], starts: &mut Starts) {
        // SAFETY: as said above.
        unsafe { super::fill_plainly::<G>(text, starts) }
    }

    /// The tests ask for the tier first.
    pub(crate) fn classify(bytes: &[u8; BLOCK]) -> Masks {
        // SAFETY: as said above.
        unsafe { super::classify(bytes) }
    }

    /// The places of the bits; `None` on processors without VBMI2.
    pub(crate) fn places(base: usize, bits: u64) -> Option<[usize; BLOCK]> {
        if !std::arch::is_x86_feature_detected!("avx512vbmi2") {
            return None;
        }
        let mut room = [0; BLOCK];
        // SAFETY: asked for just before.
        unsafe { super::places(base, bits, &mut room) };
        Some(room)
    }
}
