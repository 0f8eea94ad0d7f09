//! The AVX2 tier: AVX2 with FMA and F16C, eight lanes.

use super::Kernels;
use super::pack::{self, ColumnPack, RowPack};
use super::pack_rows;
use super::passes::passes;
use super::shrink::{self, ShrinkTile};
use super::storage::{Bf16, F16, F32, Storage, Sums};
use super::tile::{self, ONE_PANELS, Tile, TileSet};
use super::vector::{Fused, Vector};
#[allow(clippy::wildcard_imports)] // every line below is an intrinsic
use std::arch::x86_64::*;

/// Rows of a tile: 6 × 2 sums, two registers of columns and one factor make 15 of the 16 registers.
const ROWS: usize = 6;

/// Tokens and ranks of a shrink tile: 3 × 2 sums of two registers each leave four for the operands.
const SHRINK: (usize, usize) = (3, 2);

/// Ranks that a single token takes at once: 4 × 2 chains hide the latency of an FMA on two ports.
const SHRINK_ONE: usize = 4;

/// Eight lanes of an AVX register.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct F32x8(__m256);

/// Rounds to bfloat16, to nearest even: the result is the upper half of each lane, the lower one is noise.
#[inline(always)]
unsafe fn round_bf16(values: __m256) -> __m256i {
    // SAFETY: the caller vouches for AVX2.
    unsafe {
        let bits = _mm256_castps_si256(values);
        let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
        _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)))
    }
}

impl Vector for F32x8 {
    const LANES: usize = 8;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: the caller vouches for AVX2.
        Self(unsafe { _mm256_set1_ps(value) })
    }

    #[inline(always)]
    unsafe fn load(source: *const f32) -> Self {
        // SAFETY: the caller vouches for AVX2 and eight numbers.
        Self(unsafe { _mm256_loadu_ps(source) })
    }

    #[inline(always)]
    unsafe fn store(self, target: *mut f32) {
        // SAFETY: the caller vouches for AVX2 and eight numbers.
        unsafe { _mm256_storeu_ps(target, self.0) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        // SAFETY: the caller vouches for FMA.
        Self(unsafe { _mm256_fmadd_ps(self.0, factor.0, addend.0) })
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: the caller vouches for AVX2.
        Self(unsafe { _mm256_add_ps(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn any_nan(pairs: &[[Self; 2]]) -> bool {
        // SAFETY: the caller vouches for AVX2.
        unsafe {
            let mut any = _mm256_setzero_ps();
            for pair in pairs {
                any = _mm256_or_ps(any, _mm256_cmp_ps::<_CMP_UNORD_Q>(pair[0].0, pair[1].0));
            }
            _mm256_movemask_ps(any) != 0
        }
    }

    #[inline(always)]
    unsafe fn canonical(self) -> Self {
        // SAFETY: the caller vouches for AVX2.
        unsafe {
            let unordered = _mm256_cmp_ps::<_CMP_UNORD_Q>(self.0, self.0);
            Self(_mm256_blendv_ps(self.0, _mm256_set1_ps(super::CANONICAL_NAN), unordered))
        }
    }

    #[inline(always)]
    unsafe fn load_f16(source: *const u16) -> Self {
        // SAFETY: the caller vouches for F16C and eight numbers.
        Self(unsafe { _mm256_cvtph_ps(_mm_loadu_si128(source.cast())) })
    }

    #[inline(always)]
    unsafe fn store_f16(self, target: *mut u16) {
        // SAFETY: the caller vouches for F16C and eight numbers.
        unsafe { _mm_storeu_si128(target.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0)) }
    }

    #[inline(always)]
    unsafe fn load_bf16(source: *const u16) -> Self {
        // SAFETY: the caller vouches for AVX2 and eight numbers.
        unsafe {
            let words = _mm256_cvtepu16_epi32(_mm_loadu_si128(source.cast()));
            Self(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(words)))
        }
    }

    #[inline(always)]
    unsafe fn load_bf16_split(source: *const u16) -> [Self; 2] {
        // SAFETY: the caller vouches for AVX2 and sixteen numbers.
        unsafe {
            let pairs = _mm256_loadu_si256(source.cast());
            let odd = _mm256_and_si256(pairs, _mm256_set1_epi32(0xffff_0000_u32.cast_signed()));
            [Self(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs))), Self(_mm256_castsi256_ps(odd))]
        }
    }

    #[inline(always)]
    unsafe fn store_bf16_split(split: [Self; 2], target: *mut u16) {
        // SAFETY: the caller vouches for AVX2 and sixteen numbers.
        unsafe {
            let even = _mm256_srli_epi32::<16>(round_bf16(split[0].0));
            let both = _mm256_blend_epi16::<0b1010_1010>(even, round_bf16(split[1].0));
            _mm256_storeu_si256(target.cast(), both);
        }
    }

    #[inline(always)]
    unsafe fn split(ordered: [Self; 2]) -> [Self; 2] {
        // SAFETY: the caller vouches for AVX2.
        unsafe {
            let [low, high] = [ordered[0].0, ordered[1].0];
            let even = _mm256_castps_pd(_mm256_shuffle_ps::<0b10_00_10_00>(low, high));
            let odd = _mm256_castps_pd(_mm256_shuffle_ps::<0b11_01_11_01>(low, high));
            [even, odd].map(|half| Self(_mm256_castpd_ps(_mm256_permute4x64_pd::<0b11_01_10_00>(half))))
        }
    }

    #[inline(always)]
    unsafe fn join(split: [Self; 2]) -> [Self; 2] {
        // SAFETY: the caller vouches for AVX2.
        unsafe {
            let low = _mm256_unpacklo_ps(split[0].0, split[1].0);
            let high = _mm256_unpackhi_ps(split[0].0, split[1].0);
            [Self(_mm256_permute2f128_ps::<0x20>(low, high)), Self(_mm256_permute2f128_ps::<0x31>(low, high))]
        }
    }

    #[inline(always)]
    fn alias(address: *const u8) -> *const u8 {
        let mut bits = address.addr();
        // SAFETY: no instruction is emitted.
        unsafe {
            std::arch::asm!("/* {} */", inout(reg) bits, options(pure, nomem, nostack, preserves_flags));
            address.with_addr(bits)
        }
    }

    #[inline(always)]
    unsafe fn transpose_words(rows: &[*const u8; 8], words: *mut u32, stride: usize) {
        // SAFETY: the caller vouches for AVX2, for 32 bytes of each row, and for the words.
        unsafe { transpose_words(rows, words, stride) }
    }

    #[inline(always)]
    unsafe fn prefetch(address: *const u8) {
        // SAFETY: a prefetch never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }
}

/// Transposes eight rows of eight words: half rows are loaded in pairs, so that no shuffle crosses the middle.
///
/// # Safety
///
/// AVX2; each row readable for 32 bytes; `words` writable for eight words at each of eight strides.
#[inline(always)]
pub(crate) unsafe fn transpose_words(rows: &[*const u8; 8], words: *mut u32, stride: usize) {
    // SAFETY: the caller vouches for AVX2 and for the memory.
    unsafe {
        for half in 0..2 {
            let pair = |row: usize| {
                let low = _mm_loadu_ps(rows[row].add(16 * half).cast());
                let high = _mm_loadu_ps(rows[row + 4].add(16 * half).cast());
                _mm256_insertf128_ps::<1>(_mm256_castps128_ps256(low), high)
            };
            let [first, second, third, fourth] = [pair(0), pair(1), pair(2), pair(3)];
            let [low, high] = [_mm256_unpacklo_ps(first, second), _mm256_unpackhi_ps(first, second)];
            let [low_next, high_next] =
                [_mm256_unpacklo_ps(third, fourth), _mm256_unpackhi_ps(third, fourth)];
            let columns = [
                _mm256_shuffle_ps::<0b01_00_01_00>(low, low_next),
                _mm256_shuffle_ps::<0b11_10_11_10>(low, low_next),
                _mm256_shuffle_ps::<0b01_00_01_00>(high, high_next),
                _mm256_shuffle_ps::<0b11_10_11_10>(high, high_next),
            ];
            for (index, column) in columns.into_iter().enumerate() {
                _mm256_storeu_ps(words.add((4 * half + index) * stride).cast(), column);
            }
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn fused<S: Storage, const COUNT: usize, const PANELS: usize>(tile: &Tile) {
    // SAFETY: this function enables the tier; the caller vouches for the tile.
    unsafe { tile::run::<F32x8, Fused, S, ROWS, COUNT, PANELS>(tile) }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn pack_columns(job: &ColumnPack) {
    // SAFETY: this function enables the tier; the caller vouches for the job.
    unsafe { pack::columns::<F32x8>(job) }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn pack_rows(job: &RowPack) {
    // SAFETY: this function enables the tier; the caller vouches for the job.
    unsafe { pack_rows::rows::<F32x8, ROWS>(job) }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn shrink<S: Storage>(tile: &ShrinkTile) {
    // SAFETY: this function enables the tier; the caller vouches for the tile.
    unsafe { shrink::run::<F32x8, S, { SHRINK.0 }, { SHRINK.1 }, SHRINK_ONE>(tile) }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn widen<S: Storage>(source: *const u8, target: *mut f32, count: usize) {
    // SAFETY: this function enables the tier; the caller vouches for the memory.
    unsafe { pack::widen::<F32x8, S>(source, target, count) }
}

const fn tiles<S: Storage>() -> TileSet {
    TileSet {
        full: fused::<S, ROWS, 1>,
        four: fused::<S, 4, 1>,
        two: fused::<S, 2, 1>,
        one: fused::<S, 1, 1>,
        one_wide: fused::<S, 1, ONE_PANELS>,
    }
}

/// The kernels of this tier. They may be called only where [`infer_accel_tensor::simd::detected`] names it.
pub(crate) static KERNELS: Kernels = Kernels {
    lanes: F32x8::LANES,
    panel_rows: ROWS,
    fused: [tiles::<F32>(), tiles::<F16>(), tiles::<Bf16>()],
    paired: None,
    sums: fused::<Sums, ROWS, 1>,
    paired_sums: None,
    passes: passes!(F32x8, #[target_feature(enable = "avx2,fma,f16c")]),
    pack_columns,
    pack_rows,
    shrink_tokens: SHRINK.0,
    shrink: [shrink::<F32>, shrink::<F16>, shrink::<Bf16>],
    widen: [widen::<F32>, widen::<F16>, widen::<Bf16>],
};
