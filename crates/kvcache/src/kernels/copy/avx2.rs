#![allow(unsafe_code)] // AVX2 instructions on addresses.
//! Non-temporal copies by 32 bytes.

use super::stream::{self, Vector};
use std::arch::x86_64::{__m256i, _mm256_loadu_si256, _mm256_stream_si256};

#[derive(Clone, Copy)]
struct Avx2(__m256i);

impl Vector for Avx2 {
    #[inline(always)]
    unsafe fn load(address: *const u8) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { _mm256_loadu_si256(address.cast()) })
    }

    #[inline(always)]
    unsafe fn stream(self, address: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe { _mm256_stream_si256(address.cast(), self.0) };
    }
}

/// # Safety
/// As [`super::RunKernel::copy`]; and the processor has AVX2.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn copy(source: *const u8, target: *mut u8, bytes: usize, next: *const u8) {
    // SAFETY: the caller's promise.
    unsafe { stream::copy::<Avx2>(source, target, bytes, next) };
}
