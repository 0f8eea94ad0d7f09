//! [`look`](super::look()) for x86-64 with AVX-512: eight spans at a time, from their bounds to their values.
#![allow(unsafe_code)]

use std::arch::x86_64::{
    __m128i, __m256i, __m512i, _mm_load_si128, _mm_maskz_loadu_epi8, _mm256_add_epi32,
    _mm256_cmpeq_epi32_mask, _mm256_set1_epi32, _mm256_setzero_si256, _mm256_srli_epi32, _mm256_storeu_si256,
    _mm512_and_si512, _mm512_castsi128_si512, _mm512_cmpeq_epi64_mask, _mm512_cmpgt_epu64_mask,
    _mm512_cmple_epu64_mask, _mm512_inserti64x2, _mm512_loadu_si512, _mm512_mask_cmpeq_epi64_mask,
    _mm512_maskz_cvtepi64_epi32, _mm512_maskz_permutexvar_epi64, _mm512_movm_epi64, _mm512_mullo_epi64,
    _mm512_or_si512, _mm512_permutex2var_epi64, _mm512_permutexvar_epi64, _mm512_rol_epi64, _mm512_set_epi64,
    _mm512_set1_epi64, _mm512_slli_epi64, _mm512_sllv_epi64, _mm512_srli_epi64, _mm512_storeu_si512,
    _mm512_sub_epi64, _mm512_xor_si512,
};
use std::mem::MaybeUninit;

use super::look::{Looked, PART};
use crate::bpe::key::{Key, MIXERS, SHORT};
use crate::hot::{Entry, HotTable, VALUE, VALUE_SHIFT};

/// Spans that are looked up in one step.
const STEP: usize = 8;

/// See [`super::look()`]; `None` where the bounds are none of this text. The caller's tier is AVX-512 or above.
#[inline(always)]
pub(super) fn look<const IDS: bool>(
    table: &HotTable,
    text: &[u8],
    bounds: &[usize],
    keys: &mut [Key; PART],
    values: &mut [u32; PART],
) -> Option<Looked> {
    // SAFETY: the caller's tier is AVX-512 or above, which `infer_accel_tensor::simd` detected with all of these.
    unsafe { enabled::<IDS>(table.entries(), text, bounds, keys, values) }
}

// Numbers go from vectors to addresses through memory, and each pass has a loop of its own: a compiler that sees both
// sides takes vectors apart instead, which costs three times as many steps. The memory is not cleared before: that would
// be a tenth of the whole.

/// What eight spans are.
#[repr(C, align(64))]
struct Measured {
    lengths: [u64; STEP],
    /// A bit for each byte of a span; of what is longer than 16 bytes, for so many.
    bytes: [u64; STEP],
}

/// The keys of eight spans, half by half, and the places of their entries.
#[repr(C, align(64))]
struct Asked {
    lows: [u64; STEP],
    highs: [u64; STEP],
    places: [u64; STEP],
}

type Steps<T> = [MaybeUninit<T>; PART / STEP];

#[target_feature(enable = "avx2,bmi1,bmi2,popcnt,avx512f,avx512bw,avx512dq,avx512vl")]
fn enabled<const IDS: bool>(
    entries: &[Entry],
    text: &[u8],
    bounds: &[usize],
    keys: &mut [Key; PART],
    values: &mut [u32; PART],
) -> Option<Looked> {
    let spans = bounds.len().saturating_sub(1).min(PART);
    let steps = spans.div_ceil(STEP);
    // The spans of the last step that are none are empty: their key is the one that no entry has.
    let mut ends = [bounds.get(spans).map_or(0, |end| *end as u64); PART + 1];
    ends.iter_mut().zip(&bounds[..spans]).for_each(|(end, bound)| *end = *bound as u64);
    let mut measured: Steps<Measured> = [const { MaybeUninit::uninit() }; PART / STEP];
    let mut asked: Steps<Asked> = [const { MaybeUninit::uninit() }; PART / STEP];
    let (measured, asked) = (&mut measured[..steps], &mut asked[..steps]);
    measure(&ends, text.len(), measured)?;
    assert!(entries.len().is_power_of_two(), "a table has a power of two of entries");
    // SAFETY: all spans have just been measured.
    unsafe { make_keys(entries, text, &ends, measured, asked, keys) };
    let mut looked = Looked::default();
    let mut counts = _mm256_setzero_si256();
    let (answers, rest) = values.as_chunks_mut::<STEP>().0.split_at_mut(steps);
    for (step, (asked, values)) in asked.iter().zip(answers).enumerate() {
        // SAFETY: `make_keys` wrote all of `asked`, and found its places among these entries.
        let count = _mm256_srli_epi32::<24>(unsafe { answer(entries, asked.assume_init_ref(), values) });
        let nothing = u64::from(_mm256_cmpeq_epi32_mask(count, _mm256_setzero_si256()));
        looked.unknown |= nothing << (STEP * step);
        if IDS {
            let single = u64::from(_mm256_cmpeq_epi32_mask(count, _mm256_set1_epi32(1)));
            looked.several |= (nothing | single) << (STEP * step);
            looked.count += single.count_ones() as usize;
        } else {
            counts = _mm256_add_epi32(counts, count);
        }
    }
    rest.fill([0; STEP]);
    let real = u64::MAX.checked_shr((PART - spans) as u32).unwrap_or(0);
    if IDS {
        looked.several = !looked.several & real;
    } else {
        let mut lanes = [0_u32; STEP];
        store_half(&mut lanes, counts);
        looked.count = lanes.iter().sum::<u32>() as usize;
    }
    looked.unknown = (looked.unknown | looked.several) & real;
    Some(looked)
}

/// The lengths of all spans; `None` where one does not lie in the text.
#[inline]
#[target_feature(enable = "avx2,bmi1,bmi2,popcnt,avx512f,avx512bw,avx512dq,avx512vl")]
fn measure(ends: &[u64; PART + 1], length: usize, all: &mut [MaybeUninit<Measured>]) -> Option<()> {
    let (all_ones, length) = (_mm512_set1_epi64(-1), _mm512_set1_epi64(length as i64));
    let mut right = u8::MAX;
    for (measured, ends) in all.iter_mut().zip(ends.windows(STEP + 1).step_by(STEP)) {
        let (starts, stops) = (load(ends.first_chunk()?), load(ends.last_chunk()?));
        right &= _mm512_cmple_epu64_mask(starts, stops) & _mm512_cmple_epu64_mask(stops, length);
        let lengths = _mm512_sub_epi64(stops, starts);
        let bytes = _mm512_xor_si512(_mm512_sllv_epi64(all_ones, lengths), all_ones);
        measured.write(Measured { lengths: numbers(lengths), bytes: numbers(bytes) });
    }
    (right == u8::MAX).then_some(())
}

/// Makes the keys of spans that [`measure`] found to lie in the text, and finds the places of their entries.
///
/// # Safety
/// [`measure`] has written all of `measured`, for these `ends` and this text.
#[inline]
#[target_feature(enable = "avx2,bmi1,bmi2,popcnt,avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn make_keys(
    entries: &[Entry],
    text: &[u8],
    ends: &[u64; PART + 1],
    measured: &[MaybeUninit<Measured>],
    asked: &mut [MaybeUninit<Asked>],
    keys: &mut [Key; PART],
) {
    let last = _mm512_set1_epi64(entries.len() as i64 - 1);
    let spans = measured.iter().zip(ends.as_chunks::<STEP>().0);
    for ((asked, keys), (spans, starts)) in asked.iter_mut().zip(keys.as_chunks_mut::<STEP>().0).zip(spans) {
        // SAFETY: the caller's.
        let Measured { lengths, bytes } = unsafe { spans.assume_init_ref() };
        let bytes = |span: usize| -> __m128i {
            // SAFETY: of the 16 bytes at the start of a span only those are read that belong to it, and it lies in the text.
            unsafe {
                let start = text.as_ptr().add(starts[span] as usize);
                _mm_maskz_loadu_epi8(bytes[span] as u16, start.cast())
            }
        };
        let (first, second) =
            (four(bytes(0), bytes(1), bytes(2), bytes(3)), four(bytes(4), bytes(5), bytes(6), bytes(7)));
        // The length into the highest byte; all bits where it is too long for a key.
        let lengths = load(lengths);
        let long = _mm512_movm_epi64(_mm512_cmpgt_epu64_mask(lengths, _mm512_set1_epi64(SHORT as i64)));
        let highest = _mm512_slli_epi64::<56>(lengths);
        let shaped = |bytes: __m512i, pairs: __m512i| {
            let length = _mm512_maskz_permutexvar_epi64(0b1010_1010, pairs, highest);
            _mm512_or_si512(bytes, _mm512_or_si512(length, _mm512_permutexvar_epi64(pairs, long)))
        };
        let first = shaped(first, _mm512_set_epi64(3, 3, 2, 2, 1, 1, 0, 0));
        let second = shaped(second, _mm512_set_epi64(7, 7, 6, 6, 5, 5, 4, 4));
        for (keys, made) in keys.as_chunks_mut::<4>().0.iter_mut().zip([first, second]) {
            // SAFETY: four keys are 64 bytes, and any bytes are a key.
            unsafe { _mm512_storeu_si512(std::ptr::from_mut(keys).cast(), made) };
        }
        let (lows, highs) = halves(first, second);
        // As `mix`, whose upper half is the hash.
        let mixed = _mm512_rol_epi64::<32>(_mm512_mullo_epi64(lows, _mm512_set1_epi64(MIXERS[0] as i64)));
        let mixed = _mm512_xor_si512(mixed, highs);
        let mixed = _mm512_mullo_epi64(mixed, _mm512_set1_epi64(MIXERS[1] as i64));
        let places = _mm512_and_si512(_mm512_srli_epi64::<32>(mixed), last);
        asked.write(Asked { lows: numbers(lows), highs: numbers(highs), places: numbers(places) });
    }
}

/// The values of eight spans: zero where the entry is another span's.
///
/// # Safety
/// [`make_keys`] found the places among these entries.
#[inline]
#[target_feature(enable = "avx2,bmi1,bmi2,popcnt,avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn answer(entries: &[Entry], asked: &Asked, values: &mut [u32; STEP]) -> __m256i {
    let entry = |span: usize| -> __m128i {
        // SAFETY: the caller's; an entry is 16 bytes and aligned to them.
        unsafe {
            _mm_load_si128(std::ptr::from_ref(entries.get_unchecked(asked.places[span] as usize)).cast())
        }
    };
    let (lows, highs) =
        halves(four(entry(0), entry(1), entry(2), entry(3)), four(entry(4), entry(5), entry(6), entry(7)));
    // A longer key has bits where entries have the value: it equals none of them.
    let same = _mm512_cmpeq_epi64_mask(lows, load(&asked.lows));
    let key_bits = _mm512_and_si512(highs, _mm512_set1_epi64(!VALUE as i64));
    let same = _mm512_mask_cmpeq_epi64_mask(same, key_bits, load(&asked.highs));
    let known = _mm512_maskz_cvtepi64_epi32(same, _mm512_srli_epi64::<VALUE_SHIFT>(highs));
    store_half(values, known);
    known
}

#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn four(first: __m128i, second: __m128i, third: __m128i, fourth: __m128i) -> __m512i {
    let two = _mm512_inserti64x2::<1>(_mm512_castsi128_si512(first), second);
    _mm512_inserti64x2::<3>(_mm512_inserti64x2::<2>(two, third), fourth)
}

/// Of eight pairs the first numbers and the second ones.
#[inline]
#[target_feature(enable = "avx512f")]
fn halves(before: __m512i, behind: __m512i) -> (__m512i, __m512i) {
    let even = _mm512_set_epi64(14, 12, 10, 8, 6, 4, 2, 0);
    let odd = _mm512_set_epi64(15, 13, 11, 9, 7, 5, 3, 1);
    (_mm512_permutex2var_epi64(before, even, behind), _mm512_permutex2var_epi64(before, odd, behind))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(numbers: &[u64; STEP]) -> __m512i {
    // SAFETY: eight numbers of 64 bits.
    unsafe { _mm512_loadu_si512(numbers.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn numbers(register: __m512i) -> [u64; STEP] {
    // SAFETY: eight numbers of 64 bits.
    unsafe { std::mem::transmute(register) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store_half(to: &mut [u32; STEP], numbers: __m256i) {
    // SAFETY: room for eight numbers of 32 bits.
    unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), numbers) }
}
