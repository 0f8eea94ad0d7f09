#![allow(unsafe_code)] // SHA instructions, behind a check that the processor has them.
//! SHA-256 with the SHA extensions of x86-64.
//!
//! Source: Intel, "Intel SHA Extensions: New Instructions Supporting the Secure Hash Algorithm", 2013. The state
//! lives in two registers in the order that `sha256rnds2` asks for: A B E F and C D G H, high lane first.

use super::{BLOCK_BYTES, DIGEST_BYTES, INITIAL_STATE, ROUND_CONSTANTS};
use std::arch::x86_64::{
    __m128i, _mm_add_epi32, _mm_alignr_epi8, _mm_loadu_si128, _mm_set_epi32, _mm_set_epi64x,
    _mm_sha256msg1_epu32, _mm_sha256msg2_epu32, _mm_sha256rnds2_epu32, _mm_shuffle_epi8, _mm_shuffle_epi32,
    _mm_storeu_si128, _mm_unpackhi_epi64, _mm_unpacklo_epi64,
};

/// Whether this processor has every instruction of this file.
pub(super) fn is_supported() -> bool {
    is_x86_feature_detected!("sha") && is_x86_feature_detected!("sse4.1") && is_x86_feature_detected!("ssse3")
}

pub(super) fn digest(padded: &[u8]) -> [u8; DIGEST_BYTES] {
    // SAFETY: `Kernel::for_tier` is the only maker of `Kernel::ShaNi`, and it asks `is_supported` first.
    unsafe { digest_with_sha(padded) }
}

#[target_feature(enable = "sha,sse4.1,ssse3")]
fn digest_with_sha(padded: &[u8]) -> [u8; DIGEST_BYTES] {
    let [a, b, c, d, e, f, g, h] = INITIAL_STATE.map(u32::cast_signed);
    let mut abef = _mm_set_epi32(a, b, e, f);
    let mut cdgh = _mm_set_epi32(c, d, g, h);
    for block in padded.as_chunks::<BLOCK_BYTES>().0 {
        (abef, cdgh) = compress(abef, cdgh, block);
    }
    digest_of_registers(abef, cdgh)
}

/// Sixteen steps of four rounds; the message words are scheduled four steps before their use.
#[inline]
#[target_feature(enable = "sha,sse4.1,ssse3")]
fn compress(abef: __m128i, cdgh: __m128i, block: &[u8; BLOCK_BYTES]) -> (__m128i, __m128i) {
    let byte_swap = _mm_set_epi64x(0x0c0d_0e0f_0809_0a0b, 0x0405_0607_0001_0203);
    let (mut state0, mut state1) = (abef, cdgh);
    let mut words = [byte_swap; 4];
    for (word, bytes) in words.iter_mut().zip(block.as_chunks::<16>().0) {
        *word = _mm_shuffle_epi8(load(bytes), byte_swap);
    }
    let [mut w0, mut w1, mut w2, mut w3] = words;
    for (step, constants) in ROUND_CONSTANTS.as_chunks::<4>().0.iter().enumerate() {
        let [k0, k1, k2, k3] = constants.map(u32::cast_signed);
        let sum = _mm_add_epi32(w0, _mm_set_epi32(k3, k2, k1, k0));
        state1 = _mm_sha256rnds2_epu32(state1, state0, sum);
        state0 = _mm_sha256rnds2_epu32(state0, state1, _mm_shuffle_epi32::<0x0e>(sum));
        let next = if step < 12 {
            let partial = _mm_add_epi32(_mm_sha256msg1_epu32(w0, w1), _mm_alignr_epi8::<4>(w3, w2));
            _mm_sha256msg2_epu32(partial, w3)
        } else {
            w0
        };
        (w0, w1, w2, w3) = (w1, w2, w3, next);
    }
    (_mm_add_epi32(state0, abef), _mm_add_epi32(state1, cdgh))
}

#[inline]
#[target_feature(enable = "sha,sse4.1,ssse3")]
fn digest_of_registers(abef: __m128i, cdgh: __m128i) -> [u8; DIGEST_BYTES] {
    let byte_swap = _mm_set_epi64x(0x0c0d_0e0f_0809_0a0b, 0x0405_0607_0001_0203);
    let a_b_e_f = _mm_shuffle_epi32::<0x1b>(abef); // the low lane first
    let c_d_g_h = _mm_shuffle_epi32::<0x1b>(cdgh);
    let abcd = _mm_unpacklo_epi64(a_b_e_f, c_d_g_h);
    let efgh = _mm_unpackhi_epi64(a_b_e_f, c_d_g_h);
    let mut digest = [0; DIGEST_BYTES];
    let (low, high) = digest.split_at_mut(DIGEST_BYTES / 2);
    for (bytes, lanes) in [(low, abcd), (high, efgh)] {
        // SAFETY: both halves of the digest are 16 bytes long, and the store asks for no alignment.
        unsafe { _mm_storeu_si128(bytes.as_mut_ptr().cast(), _mm_shuffle_epi8(lanes, byte_swap)) };
    }
    digest
}

#[inline]
#[target_feature(enable = "sse2")]
fn load(bytes: &[u8; 16]) -> __m128i {
    // SAFETY: the reference covers 16 readable bytes, and the load asks for no alignment.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}
