#![allow(unsafe_code)] // AVX-512 instructions on addresses.
//! Eight lanes at a time.

use super::rounds::{self, LANES, Vector};
use super::{PRIME32_1, Target};
use std::arch::x86_64::{
    __m512i, _mm512_add_epi64, _mm512_loadu_si512, _mm512_mul_epu32, _mm512_set1_epi64, _mm512_shuffle_epi32,
    _mm512_slli_epi64, _mm512_srli_epi64, _mm512_storeu_si512, _mm512_stream_si512, _mm512_xor_si512,
};

#[derive(Clone, Copy)]
struct Avx512(__m512i);

impl Vector for Avx512 {
    #[inline(always)]
    unsafe fn load(address: *const u8) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { _mm512_loadu_si512(address.cast()) })
    }

    #[inline(always)]
    unsafe fn store(self, address: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe { _mm512_storeu_si512(address.cast(), self.0) };
    }

    #[inline(always)]
    unsafe fn stream(self, address: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe { _mm512_stream_si512(address.cast(), self.0) };
    }

    #[inline(always)]
    unsafe fn accumulate(self, data: Self, secret: Self) -> Self {
        // SAFETY: the caller's promise: the processor has AVX-512 F.
        unsafe {
            let word = _mm512_xor_si512(data.0, secret.0);
            let product = _mm512_mul_epu32(word, _mm512_srli_epi64::<32>(word));
            let swapped = _mm512_shuffle_epi32::<0b01_00_11_10>(data.0);
            Self(_mm512_add_epi64(self.0, _mm512_add_epi64(swapped, product)))
        }
    }

    #[inline(always)]
    unsafe fn scramble(self, secret: Self) -> Self {
        // SAFETY: the caller's promise: the processor has AVX-512 F.
        unsafe {
            let mixed = _mm512_xor_si512(self.0, _mm512_srli_epi64::<47>(self.0));
            let mixed = _mm512_xor_si512(mixed, secret.0);
            let prime = _mm512_set1_epi64(PRIME32_1.cast_signed());
            let low = _mm512_mul_epu32(mixed, prime);
            let high = _mm512_mul_epu32(_mm512_srli_epi64::<32>(mixed), prime);
            Self(_mm512_add_epi64(low, _mm512_slli_epi64::<32>(high)))
        }
    }
}

/// # Safety
/// As [`rounds::blocks`]; and the processor has AVX-512 F.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn blocks(lanes: &mut [u64; LANES], source: *const u8, blocks: usize, target: Target) {
    // SAFETY: the caller's promise.
    unsafe { rounds::blocks::<Avx512, 1>(lanes, source, blocks, target) };
}
