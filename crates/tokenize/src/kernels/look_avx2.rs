//! [`look`](super::look()) for x86-64 with AVX2: a span's key is made and compared in one register.
#![allow(unsafe_code)]

use std::arch::x86_64::{
    __m128i, _mm_and_si128, _mm_cvtsi128_si64, _mm_extract_epi64, _mm_load_si128, _mm_loadu_si128,
    _mm_or_si128, _mm_set_epi64x, _mm_store_si128, _mm_testz_si128, _mm_xor_si128,
};

use super::look::{Looked, PART, known};
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
    // From the places up to this one 16 bytes of the text can be read.
    let readable = text.len().checked_sub(16);
    let key_bits = _mm_set_epi64x(!VALUE as i64, -1);
    let mut looked = Looked::default();
    let slots = keys.iter_mut().zip(values);
    for (place, ((slot, value), pair)) in slots.zip(bounds.windows(2)).enumerate() {
        let (start, end) = (pair[0], pair[1]);
        let bytes = if readable.is_some_and(|readable| start <= readable) {
            // SAFETY: `start + 16` is at most the length of the text.
            unsafe { _mm_loadu_si128(text.as_ptr().add(start).cast()) }
        } else {
            let bytes = near_the_end(text, start, end);
            // SAFETY: the array has 16 bytes.
            unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
        };
        let shape = &SHAPES[end.wrapping_sub(start).min(SHORT + 1)];
        let key = _mm_or_si128(_mm_and_si128(bytes, load(&shape.kept)), load(&shape.set));
        // SAFETY: a `Key` is 16 bytes and aligned to them.
        unsafe { _mm_store_si128(std::ptr::from_mut(slot).cast(), key) };
        let hash = mix(_mm_cvtsi128_si64(key) as u64, _mm_extract_epi64::<1>(key) as u64) >> 32;
        // SAFETY: the index is at most `last`, which is below the length.
        let entry = load(unsafe { entries.get_unchecked(hash as usize & last) });
        // A longer key has bits where entries have the value: it equals none of them.
        let differing = _mm_xor_si128(_mm_and_si128(entry, key_bits), key);
        let same = _mm_testz_si128(differing, differing) as u32;
        *value = (_mm_extract_epi64::<1>(entry) as u64 >> VALUE_SHIFT) as u32 & same.wrapping_neg();
        let known = known::<IDS>(*value);
        looked.count += known as usize;
        looked.unknown |= u64::from(known == 0) << place;
    }
    looked
}

#[inline(always)]
fn load<T: Copy>(from: &T) -> __m128i {
    const { assert!(size_of::<T>() == 16 && align_of::<T>() == 16) };
    // SAFETY: 16 readable bytes, aligned to 16; SSE2 is part of every x86-64.
    unsafe { _mm_load_si128(std::ptr::from_ref(from).cast()) }
}
