#![allow(unsafe_code)] // Loads, stores and prefetches through addresses.
//! The rounds of XXH3, written once over the width of a vector.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch, _mm_sfence};

use super::{BLOCK_BYTES, PRIME32_1, Target};

pub(super) const LANES: usize = 8;
pub(super) const STRIPE_BYTES: usize = 64;
/// How far the secret moves on with each stripe.
const SECRET_STEP: usize = 8;
const STRIPES: usize = BLOCK_BYTES / STRIPE_BYTES;
/// Where the scrambling's part of the secret begins.
const SCRAMBLING: usize = SECRET.len() - STRIPE_BYTES;
/// How far ahead sources are asked for: what is checked is mostly nowhere near the processor.
const PREFETCH_BYTES: usize = 2048;

/// The specification's default secret.
pub(super) const SECRET: [u8; 192] = [
    0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c, 0xde,
    0xd4, 0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb, 0x72, 0x40, 0xa4, 0xa4, 0xb7, 0xb3, 0x67, 0x1f, 0xcb, 0x79,
    0xe6, 0x4e, 0xcc, 0xc0, 0xe5, 0x78, 0x82, 0x5a, 0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21, 0xb8, 0x08, 0x46,
    0x74, 0xf7, 0x43, 0x24, 0x8e, 0xe0, 0x35, 0x90, 0xe6, 0x81, 0x3a, 0x26, 0x4c, 0x3c, 0x28, 0x52, 0xbb,
    0x91, 0xc3, 0x00, 0xcb, 0x88, 0xd0, 0x65, 0x8b, 0x1b, 0x53, 0x2e, 0xa3, 0x71, 0x64, 0x48, 0x97, 0xa2,
    0x0d, 0xf9, 0x4e, 0x38, 0x19, 0xef, 0x46, 0xa9, 0xde, 0xac, 0xd8, 0xa8, 0xfa, 0x76, 0x3f, 0xe3, 0x9c,
    0x34, 0x3f, 0xf9, 0xdc, 0xbb, 0xc7, 0xc7, 0x0b, 0x4f, 0x1d, 0x8a, 0x51, 0xe0, 0x4b, 0xcd, 0xb4, 0x59,
    0x31, 0xc8, 0x9f, 0x7e, 0xc9, 0xd9, 0x78, 0x73, 0x64, 0xea, 0xc5, 0xac, 0x83, 0x34, 0xd3, 0xeb, 0xc3,
    0xc5, 0x81, 0xa0, 0xff, 0xfa, 0x13, 0x63, 0xeb, 0x17, 0x0d, 0xdd, 0x51, 0xb7, 0xf0, 0xda, 0x49, 0xd3,
    0x16, 0x55, 0x26, 0x29, 0xd4, 0x68, 0x9e, 0x2b, 0x16, 0xbe, 0x58, 0x7d, 0x47, 0xa1, 0xfc, 0x8f, 0xf8,
    0xb8, 0xd1, 0x7a, 0xd0, 0x31, 0xce, 0x45, 0xcb, 0x3a, 0x8f, 0x95, 0x16, 0x04, 0x28, 0xaf, 0xd7, 0xfb,
    0xca, 0xbb, 0x4b, 0x40, 0x7e,
];

/// Some lanes of the accumulators: an even number, because neighbours exchange their inputs.
pub(super) trait Vector: Copy {
    /// # Safety
    /// The vector's bytes can be read at `address`, and the processor has the tier; so everywhere below.
    unsafe fn load(address: *const u8) -> Self;
    /// # Safety
    /// The vector's bytes can be written at `address`.
    unsafe fn store(self, address: *mut u8);
    /// Past the cache, where the tier can.
    ///
    /// # Safety
    /// As `store`; and the address is aligned to the vector.
    unsafe fn stream(self, address: *mut u8);
    /// Adds a stripe's part: its neighbour's bytes, and the product of its halves under the secret.
    ///
    /// # Safety
    /// The processor has the tier.
    unsafe fn accumulate(self, data: Self, secret: Self) -> Self;
    /// What ends a block.
    ///
    /// # Safety
    /// The processor has the tier.
    unsafe fn scramble(self, secret: Self) -> Self;
}

/// Eight bytes of the secret.
pub(super) fn secret_word(at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&SECRET[at..at + 8]);
    u64::from_le_bytes(word)
}

/// Absorbs and copies blocks. `N` vectors are a stripe.
///
/// # Safety
/// [`BLOCK_BYTES`] for each block can be read at `source` and written at the target, and the two do not meet; the
/// processor has the tier of `V`.
#[inline(always)]
pub(super) unsafe fn blocks<V: Vector, const N: usize>(
    lanes: &mut [u64; LANES],
    source: *const u8,
    blocks: usize,
    target: Target,
) {
    // SAFETY: the caller's promise. Streaming needs aligned addresses; a copy elsewhere goes through the cache.
    unsafe {
        match target {
            Target::Nothing => go::<V, N, 0>(lanes, source, blocks, std::ptr::null_mut()),
            Target::Streamed(to) if to.addr().is_multiple_of(size_of::<V>()) => {
                go::<V, N, 2>(lanes, source, blocks, to);
                fence();
            }
            Target::Cached(to) | Target::Streamed(to) => go::<V, N, 1>(lanes, source, blocks, to),
        }
    }
}

/// # Safety
/// As [`blocks`]; `COPY` is 0 for no copy, 1 through the cache, 2 past it.
#[inline(always)]
unsafe fn go<V: Vector, const N: usize, const COPY: u8>(
    lanes: &mut [u64; LANES],
    source: *const u8,
    blocks: usize,
    target: *mut u8,
) {
    const { assert!(N * size_of::<V>() == STRIPE_BYTES) };
    let width = size_of::<V>();
    let words = lanes.as_mut_ptr().cast::<u8>();
    // SAFETY: stripes and vectors lie within the blocks, the secret and the lanes, whose sizes are those above; a
    // prefetch of any address has no effect that a program can see. (No closures: they would be compiled without the
    // tier's instructions.)
    unsafe {
        let mut sums = [V::load(words); N];
        for (part, sum) in sums.iter_mut().enumerate() {
            *sum = V::load(words.add(part * width));
        }
        for block in 0..blocks {
            for stripe in 0..STRIPES {
                let at = block * BLOCK_BYTES + stripe * STRIPE_BYTES;
                prefetch(source.wrapping_add(at + PREFETCH_BYTES));
                for (part, sum) in sums.iter_mut().enumerate() {
                    let data = V::load(source.add(at + part * width));
                    match COPY {
                        0 => {}
                        1 => data.store(target.add(at + part * width)),
                        _ => data.stream(target.add(at + part * width)),
                    }
                    let secret = V::load(SECRET.as_ptr().add(stripe * SECRET_STEP + part * width));
                    *sum = sum.accumulate(data, secret);
                }
            }
            for (part, sum) in sums.iter_mut().enumerate() {
                *sum = sum.scramble(V::load(SECRET.as_ptr().add(SCRAMBLING + part * width)));
            }
        }
        for (part, sum) in sums.iter().enumerate() {
            sum.store(words.add(part * width));
        }
    }
}

/// Absorbs what is left behind the last whole block: `bytes` is the stripe before it, and between 1 and 1024 bytes more.
/// Its last stripe reaches back where the rest is shorter than one.
pub(super) fn tail(lanes: &mut [u64; LANES], bytes: &[u8]) {
    let rest = &bytes[STRIPE_BYTES..];
    for (number, stripe) in rest[..rest.len() - 1].chunks_exact(STRIPE_BYTES).enumerate() {
        stripe_of_words(lanes, stripe, number * SECRET_STEP);
    }
    stripe_of_words(lanes, &bytes[bytes.len() - STRIPE_BYTES..], SCRAMBLING - 7);
}

fn stripe_of_words(lanes: &mut [u64; LANES], stripe: &[u8], secret: usize) {
    for (lane, bytes) in stripe.chunks_exact(8).enumerate().take(LANES) {
        let mut word = [0; 8];
        word.copy_from_slice(bytes);
        let data = u64::from_le_bytes(word);
        lanes[lane ^ 1] = lanes[lane ^ 1].wrapping_add(data);
        lanes[lane] = lanes[lane].wrapping_add(product(data ^ secret_word(secret + 8 * lane)));
    }
}

/// The product of a word's halves.
pub(super) fn product(word: u64) -> u64 {
    (word & 0xFFFF_FFFF).wrapping_mul(word >> 32)
}

/// What scrambling does to one lane.
pub(super) fn scrambled(lane: u64, secret: u64) -> u64 {
    (lane ^ (lane >> 47) ^ secret).wrapping_mul(PRIME32_1)
}

#[inline(always)]
fn prefetch(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch of any address has no effect that a program can see.
    unsafe {
        _mm_prefetch::<_MM_HINT_T0>(address.cast());
    }
    let _ = address;
}

/// Orders streamed stores before everything that follows.
#[inline(always)]
fn fence() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE is part of every x86-64.
    unsafe {
        _mm_sfence();
    }
}
