#![allow(unsafe_code)] // AVX-512 instructions on addresses.
//! Non-temporal copies by 64 bytes.

use super::stream::{self, Vector};
use std::arch::x86_64::{__m512i, _mm512_loadu_si512, _mm512_stream_si512};

#[derive(Clone, Copy)]
struct Avx512(__m512i);

impl Vector for Avx512 {
    #[inline(always)]
    unsafe fn load(address: *const u8) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { _mm512_loadu_si512(address.cast()) })
    }

    #[inline(always)]
    unsafe fn stream(self, address: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe { _mm512_stream_si512(address.cast(), self.0) };
    }
}

/// # Safety
/// As [`super::RunKernel::copy`]; and the processor has AVX-512 F.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn copy(source: *const u8, target: *mut u8, bytes: usize, next: *const u8) {
    // SAFETY: the caller's promise.
    unsafe { stream::copy::<Avx512>(source, target, bytes, next) };
}
