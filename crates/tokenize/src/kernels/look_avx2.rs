//! [`look`](super::look()) for x86-64 with AVX2: a span's key is made and compared in one register.
#![allow(unsafe_code)]

use std::arch::x86_64::{
    __m128i, _mm_and_si128, _mm_cmpeq_epi64, _mm_cvtsi128_si64, _mm_extract_epi32, _mm_extract_epi64,
    _mm_load_si128, _mm_loadu_si128, _mm_or_si128, _mm_set_epi64x, _mm_shuffle_epi32, _mm_srli_epi64,
    _mm_store_si128, _mm256_add_epi32, _mm256_castsi256_ps, _mm256_cmpeq_epi32, _mm256_loadu_si256,
    _mm256_movemask_ps, _mm256_set1_epi32, _mm256_setzero_si256, _mm256_srli_epi32, _mm256_storeu_si256,
};

use super::look::{Looked, PART};
use super::prefetch::prefetch;
use crate::bpe::key::{Key, SHAPES, SHORT, mix, near_the_end};
use crate::hot::{Entry, HotTable, VALUE, VALUE_SHIFT};

/// See [`super::look()`]; the caller's tier is AVX2 or above.
#[inline(always)]
pub(super) fn look<const IDS: bool>(
    table: &HotTable,
    text: &[u8],
    bounds: &[usize],
    keys: &mut [Key; PART],
    values: &mut [u32; PART],
) -> Looked {
    // SAFETY: the caller's tier is AVX2 or above, which `infer_accel_tensor::simd` detected.
    unsafe { enabled::<IDS>(table.entries(), text, bounds, keys, values) }
}

#[target_feature(enable = "avx2,bmi1,bmi2,popcnt")]
fn enabled<const IDS: bool>(
    entries: &[Entry],
    text: &[u8],
    bounds: &[usize],
    keys: &mut [Key; PART],
    values: &mut [u32; PART],
) -> Looked {
    assert!(entries.len().is_power_of_two(), "a table has a power of two of entries");
    let last = entries.len() - 1;
    let mut places = [0_u32; PART];
    // All keys first: the memory of all entries is asked for before the first is read.
    let slots = keys.iter_mut().zip(&mut places);
    for ((slot, place), pair) in slots.zip(bounds.windows(2)) {
        let key = key_at(text, pair[0], pair[1]);
        // SAFETY: a `Key` is 16 bytes and aligned to them.
        unsafe { _mm_store_si128(std::ptr::from_mut(slot).cast(), key) };
        let hash = mix(_mm_cvtsi128_si64(key) as u64, _mm_extract_epi64::<1>(key) as u64) >> 32;
        *place = hash as u32 & last as u32;
        // SAFETY: the place is at most `last`, which is below the length.
        prefetch(unsafe { entries.get_unchecked(*place as usize) });
    }
    let key_bits = _mm_set_epi64x(!VALUE as i64, -1);
    let spans = bounds.len().saturating_sub(1).min(PART);
    for ((key, place), value) in keys[..spans].iter().zip(&places[..spans]).zip(&mut values[..spans]) {
        // SAFETY: the place is at most `last`, which is below the length.
        let entry = load(unsafe { entries.get_unchecked(*place as usize) });
        // A longer key has bits where entries have the value: it equals none of them. Whether a span is known cannot be
        // guessed, and a comparison of vectors is nothing that a compiler turns into a branch.
        let same = _mm_cmpeq_epi64(_mm_and_si128(entry, key_bits), load(key));
        let same = _mm_and_si128(same, _mm_shuffle_epi32::<0b01_00_11_10>(same));
        let known = _mm_and_si128(_mm_srli_epi64::<{ VALUE_SHIFT as i32 }>(entry), same);
        *value = _mm_extract_epi32::<2>(known) as u32;
    }
    values[spans..].fill(0);
    let mut looked = summary::<IDS>(values);
    looked.unknown &= u64::MAX.checked_shr((PART - spans) as u32).unwrap_or(0);
    looked
}

/// What the values say, eight at a time.
#[target_feature(enable = "avx2,bmi1,bmi2,popcnt")]
fn summary<const IDS: bool>(values: &[u32; PART]) -> Looked {
    let mut looked = Looked::default();
    let mut counts = _mm256_setzero_si256();
    for (step, values) in values.as_chunks::<8>().0.iter().enumerate() {
        // SAFETY: eight numbers of 32 bits.
        let values = unsafe { _mm256_loadu_si256(values.as_ptr().cast()) };
        let count = _mm256_srli_epi32::<24>(values);
        let bits = |wanted| {
            let equal = _mm256_cmpeq_epi32(count, _mm256_set1_epi32(wanted));
            u64::from(_mm256_movemask_ps(_mm256_castsi256_ps(equal)) as u8) << (8 * step)
        };
        let nothing = bits(0);
        if IDS {
            let single = bits(1);
            looked.several |= !(nothing | single) & 0xff << (8 * step);
            looked.count += single.count_ones() as usize;
        } else {
            counts = _mm256_add_epi32(counts, count);
        }
        looked.unknown |= nothing;
    }
    looked.unknown |= looked.several;
    if !IDS {
        let mut lanes = [0_u32; 8];
        // SAFETY: room for eight numbers of 32 bits.
        unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), counts) };
        looked.count = lanes.iter().sum::<u32>() as usize;
    }
    looked
}

/// [`key_at`](crate::bpe::key::key_at) in a register.
#[inline(always)]
fn key_at(text: &[u8], start: usize, end: usize) -> __m128i {
    let bytes = if text.len().checked_sub(16).is_some_and(|readable| start <= readable) {
        // SAFETY: `start + 16` is at most the length of the text.
        unsafe { _mm_loadu_si128(text.as_ptr().add(start).cast()) }
    } else {
        let bytes = near_the_end(text, start, end);
        // SAFETY: the array has 16 bytes.
        unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
    };
    let shape = &SHAPES[end.wrapping_sub(start).min(SHORT + 1)];
    // SAFETY: SSE2 is part of every x86-64.
    unsafe { _mm_or_si128(_mm_and_si128(bytes, load(&shape.kept)), load(&shape.set)) }
}

#[inline(always)]
fn load<T: Copy>(from: &T) -> __m128i {
    const { assert!(size_of::<T>() == 16 && align_of::<T>() == 16) };
    // SAFETY: 16 readable bytes, aligned to 16; SSE2 is part of every x86-64.
    unsafe { _mm_load_si128(std::ptr::from_ref(from).cast()) }
}
