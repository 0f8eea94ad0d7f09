#![allow(unsafe_code)] // Loads, stores and prefetches through addresses.
//! Non-temporal copies, written once over the width of a vector.
//!
//! A store that bypasses the cache saves reading the line that it overwrites and keeps other data in the cache,
//! so a copy much larger than the cache moves two bytes where `memcpy` moves three. The processor's own
//! prefetcher stops at a 4 KiB border and knows nothing of the next page in a list, so the loop asks for
//! sources [`PREFETCH_BYTES`] ahead, the last part of a run for the head of the next one.

use std::arch::x86_64::{_MM_HINT_NTA, _mm_prefetch, _mm_sfence};

/// Four vectors of 64 bytes or eight of 32: enough loads in flight to cover a store's latency.
const STEP_BYTES: usize = 256;
const LINE_BYTES: usize = 64;
/// Random pages of 4 KiB, GB/s read and written, by distance: none 14.4, 1 KiB 15.5, 2 KiB 15.5, 4 KiB 17.7; from
/// 16 KiB on all within noise (Zen 3, one thread, huge pages, `benches/page_copy.rs`).
const PREFETCH_BYTES: usize = 4096;

/// The vector of a tier.
pub(super) trait Vector: Copy {
    /// # Safety
    /// The vector's bytes can be read at `address`, and the processor has the tier.
    unsafe fn load(address: *const u8) -> Self;
    /// # Safety
    /// The vector's bytes can be written at `address`, which is aligned to them, and the processor has the tier.
    unsafe fn stream(self, address: *mut u8);
}

/// # Safety
/// As [`super::RunKernel::copy`]; and the processor has the tier of `V`.
#[inline(always)]
pub(super) unsafe fn copy<V: Vector>(source: *const u8, target: *mut u8, bytes: usize, next: *const u8) {
    let head = target.align_offset(LINE_BYTES).min(bytes);
    let steps = (bytes - head) / STEP_BYTES;
    let tail = head + steps * STEP_BYTES;
    // SAFETY: the head lies within the run.
    unsafe { std::ptr::copy_nonoverlapping(source, target, head) };
    for step in 0..steps {
        let at = head + step * STEP_BYTES;
        let ahead = at + PREFETCH_BYTES;
        let wanted =
            if ahead < bytes { source.wrapping_add(ahead) } else { next.wrapping_add(ahead - bytes) };
        for line in 0..STEP_BYTES / LINE_BYTES {
            // SAFETY: a prefetch of any address has no effect that a program can see.
            unsafe { _mm_prefetch::<_MM_HINT_NTA>(wanted.wrapping_add(line * LINE_BYTES).cast()) };
        }
        // SAFETY: the step ends at or before `tail`, which is within the run; the target is aligned to a line,
        // and every vector's offset in the step is a multiple of the vector.
        unsafe { copy_step::<V>(source.add(at), target.add(at)) };
    }
    // SAFETY: the tail lies within the run.
    unsafe { std::ptr::copy_nonoverlapping(source.add(tail), target.add(tail), bytes - tail) };
}

/// # Safety
/// [`STEP_BYTES`] can be read and written; the target is aligned to a line; the processor has the tier of `V`.
#[inline(always)]
unsafe fn copy_step<V: Vector>(source: *const u8, target: *mut u8) {
    let width = size_of::<V>();
    for group in (0..STEP_BYTES).step_by(4 * width) {
        // SAFETY: four vectors from `group` on lie within the step. (No closures here: they would be compiled
        // without the tier's instructions.)
        unsafe {
            let (source, target) = (source.add(group), target.add(group));
            let first = V::load(source);
            let second = V::load(source.add(width));
            let third = V::load(source.add(2 * width));
            let fourth = V::load(source.add(3 * width));
            first.stream(target);
            second.stream(target.add(width));
            third.stream(target.add(2 * width));
            fourth.stream(target.add(3 * width));
        }
    }
}

/// Orders streamed stores before everything that follows.
pub(super) fn fence() {
    // SAFETY: SSE is part of every x86-64.
    unsafe { _mm_sfence() };
}
