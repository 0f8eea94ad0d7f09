#![allow(unsafe_code)] // AVX2 instructions on addresses.
//! Four lanes at a time.

use super::rounds::{self, LANES, Vector};
use super::{PRIME32_1, Target};
use std::arch::x86_64::{
    __m256i, _mm256_add_epi64, _mm256_loadu_si256, _mm256_mul_epu32, _mm256_set1_epi64x,
    _mm256_shuffle_epi32, _mm256_slli_epi64, _mm256_srli_epi64, _mm256_storeu_si256, _mm256_stream_si256,
    _mm256_xor_si256,
};

#[derive(Clone, Copy)]
struct Avx2(__m256i);

impl Vector for Avx2 {
    #[inline(always)]
    unsafe fn load(address: *const u8) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { _mm256_loadu_si256(address.cast()) })
    }

    #[inline(always)]
    unsafe fn store(self, address: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe { _mm256_storeu_si256(address.cast(), self.0) };
    }

    #[inline(always)]
    unsafe fn stream(self, address: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe { _mm256_stream_si256(address.cast(), self.0) };
    }

    #[inline(always)]
    unsafe fn accumulate(self, data: Self, secret: Self) -> Self {
        // SAFETY: the caller's promise: the processor has AVX2.
        unsafe {
            let word = _mm256_xor_si256(data.0, secret.0);
            let product = _mm256_mul_epu32(word, _mm256_srli_epi64::<32>(word));
            let swapped = _mm256_shuffle_epi32::<0b01_00_11_10>(data.0);
            Self(_mm256_add_epi64(self.0, _mm256_add_epi64(swapped, product)))
        }
    }

    #[inline(always)]
    unsafe fn scramble(self, secret: Self) -> Self {
        // SAFETY: the caller's promise: the processor has AVX2.
        unsafe {
            let mixed = _mm256_xor_si256(self.0, _mm256_srli_epi64::<47>(self.0));
            let mixed = _mm256_xor_si256(mixed, secret.0);
            let prime = _mm256_set1_epi64x(PRIME32_1.cast_signed());
            let low = _mm256_mul_epu32(mixed, prime);
            let high = _mm256_mul_epu32(_mm256_srli_epi64::<32>(mixed), prime);
            Self(_mm256_add_epi64(low, _mm256_slli_epi64::<32>(high)))
        }
    }
}

/// # Safety
/// As [`rounds::blocks`]; and the processor has AVX2.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn blocks(lanes: &mut [u64; LANES], source: *const u8, blocks: usize, target: Target) {
    // SAFETY: the caller's promise.
    unsafe { rounds::blocks::<Avx2, 2>(lanes, source, blocks, target) };
}
