//! The AVX-512 tiers: sixteen lanes, with FMA, and with `vdpbf16ps` where the processor has it.

use super::Kernels;
use super::avx2::transpose_words;
use super::pack::{self, ColumnPack, RowPack};
use super::pack_rows;
use super::passes::passes;
use super::shrink::{self, ShrinkTile};
use super::storage::{Bf16, F16, F32, Storage, Sums};
use super::tile::{self, ONE_PANELS, Tile, TileSet};
use super::vector::{Fused, PairDot, Paired, Vector};
#[allow(clippy::wildcard_imports)] // every line below is an intrinsic
use std::arch::x86_64::*;

/// Rows of a tile: 12 × 2 sums, two registers of columns and a factor of the 32 registers.
const ROWS: usize = 12;

/// Tokens and ranks of a shrink tile.
const SHRINK: (usize, usize) = (4, 4);

/// Ranks that a single token takes at once.
const SHRINK_ONE: usize = 8;

/// Sixteen lanes of an AVX-512 register.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct F32x16(__m512);

/// Rounds to bfloat16, to nearest even: the result is the upper half of each lane, the lower one is noise.
///
/// `vcvtneps2bf16` is not used: it flushes subnormal numbers.
#[inline(always)]
unsafe fn round_bf16(values: __m512) -> __m512i {
    // SAFETY: the caller vouches for AVX-512.
    unsafe {
        let bits = _mm512_castps_si512(values);
        let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
        _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)))
    }
}

impl Vector for F32x16 {
    const LANES: usize = 16;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: the caller vouches for AVX-512.
        Self(unsafe { _mm512_set1_ps(value) })
    }

    #[inline(always)]
    unsafe fn load(source: *const f32) -> Self {
        // SAFETY: the caller vouches for AVX-512 and sixteen numbers.
        Self(unsafe { _mm512_loadu_ps(source) })
    }

    #[inline(always)]
    unsafe fn store(self, target: *mut f32) {
        // SAFETY: the caller vouches for AVX-512 and sixteen numbers.
        unsafe { _mm512_storeu_ps(target, self.0) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        // SAFETY: the caller vouches for AVX-512.
        Self(unsafe { _mm512_fmadd_ps(self.0, factor.0, addend.0) })
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: the caller vouches for AVX-512.
        Self(unsafe { _mm512_add_ps(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn any_nan(pairs: &[[Self; 2]]) -> bool {
        // SAFETY: the caller vouches for AVX-512.
        unsafe {
            let mut any = 0;
            for pair in pairs {
                any |= _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(pair[0].0, pair[1].0);
            }
            any != 0
        }
    }

    #[inline(always)]
    unsafe fn canonical(self) -> Self {
        // SAFETY: the caller vouches for AVX-512.
        unsafe {
            let unordered = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(self.0, self.0);
            Self(_mm512_mask_blend_ps(unordered, self.0, _mm512_set1_ps(super::CANONICAL_NAN)))
        }
    }

    #[inline(always)]
    unsafe fn load_f16(source: *const u16) -> Self {
        // SAFETY: the caller vouches for AVX-512 and sixteen numbers.
        Self(unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(source.cast())) })
    }

    #[inline(always)]
    unsafe fn store_f16(self, target: *mut u16) {
        // SAFETY: the caller vouches for AVX-512 and sixteen numbers.
        unsafe { _mm256_storeu_si256(target.cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0)) }
    }

    #[inline(always)]
    unsafe fn load_bf16(source: *const u16) -> Self {
        // SAFETY: the caller vouches for AVX-512 and sixteen numbers.
        unsafe {
            let words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(source.cast()));
            Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(words)))
        }
    }

    #[inline(always)]
    unsafe fn load_bf16_split(source: *const u16) -> [Self; 2] {
        // SAFETY: the caller vouches for AVX-512 and thirty-two numbers.
        unsafe {
            let pairs = _mm512_loadu_si512(source.cast());
            let odd = _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff_0000_u32.cast_signed()));
            [Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs))), Self(_mm512_castsi512_ps(odd))]
        }
    }

    #[inline(always)]
    unsafe fn store_bf16_split(split: [Self; 2], target: *mut u16) {
        // SAFETY: the caller vouches for AVX-512 and thirty-two numbers.
        unsafe {
            let even = _mm512_srli_epi32::<16>(round_bf16(split[0].0));
            let both = _mm512_mask_blend_epi16(0xaaaa_aaaa, even, round_bf16(split[1].0));
            _mm512_storeu_si512(target.cast(), both);
        }
    }

    #[inline(always)]
    unsafe fn split(ordered: [Self; 2]) -> [Self; 2] {
        // SAFETY: the caller vouches for AVX-512.
        unsafe {
            let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
            let odd = _mm512_or_si512(even, _mm512_set1_epi32(1));
            [even, odd].map(|index| Self(_mm512_permutex2var_ps(ordered[0].0, index, ordered[1].0)))
        }
    }

    #[inline(always)]
    unsafe fn join(split: [Self; 2]) -> [Self; 2] {
        // SAFETY: the caller vouches for AVX-512.
        unsafe {
            let low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            let high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
            [low, high].map(|index| Self(_mm512_permutex2var_ps(split[0].0, index, split[1].0)))
        }
    }

    #[inline(always)]
    unsafe fn transpose_words(rows: &[*const u8; 8], words: *mut u32, stride: usize) {
        // SAFETY: AVX-512 contains AVX2; the caller vouches for the memory.
        unsafe { transpose_words(rows, words, stride) }
    }

    #[inline(always)]
    unsafe fn prefetch(address: *const u8) {
        // SAFETY: a prefetch never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }
}

impl PairDot for F32x16 {
    #[inline(always)]
    unsafe fn pair_dot(factor: Self, other: Self, sums: Self) -> Self {
        // SAFETY: the caller vouches for AVX-512 BF16; the two types are the same 64 bytes.
        unsafe {
            let pairs = |words: __m512| std::mem::transmute::<__m512, __m512bh>(words);
            Self(_mm512_dpbf16_ps(sums.0, pairs(factor.0), pairs(other.0)))
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma,f16c")]
unsafe fn fused<S: Storage, const COUNT: usize, const PANELS: usize>(tile: &Tile) {
    // SAFETY: this function enables the tier; the caller vouches for the tile.
    unsafe { tile::run::<F32x16, Fused, S, ROWS, COUNT, PANELS>(tile) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma,f16c")]
unsafe fn paired<S: Storage, const COUNT: usize, const PANELS: usize>(tile: &Tile) {
    // SAFETY: this function enables the tier; the caller vouches for the tile.
    unsafe { tile::run::<F32x16, Paired, S, ROWS, COUNT, PANELS>(tile) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma,f16c")]
unsafe fn pack_columns(job: &ColumnPack) {
    // SAFETY: this function enables the tier; the caller vouches for the job.
    unsafe { pack::columns::<F32x16>(job) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma,f16c")]
unsafe fn pack_rows(job: &RowPack) {
    // SAFETY: this function enables the tier; the caller vouches for the job.
    unsafe { pack_rows::rows::<F32x16, ROWS>(job) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma,f16c")]
unsafe fn shrink<S: Storage>(tile: &ShrinkTile) {
    // SAFETY: this function enables the tier; the caller vouches for the tile.
    unsafe { shrink::run::<F32x16, S, { SHRINK.0 }, { SHRINK.1 }, SHRINK_ONE>(tile) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma,f16c")]
unsafe fn widen<S: Storage>(source: *const u8, target: *mut f32, count: usize) {
    // SAFETY: this function enables the tier; the caller vouches for the memory.
    unsafe { pack::widen::<F32x16, S>(source, target, count) }
}

const fn fused_tiles<S: Storage>() -> TileSet {
    TileSet {
        full: fused::<S, ROWS, 1>,
        four: fused::<S, 4, 1>,
        two: fused::<S, 2, 1>,
        one: fused::<S, 1, 1>,
        one_wide: fused::<S, 1, ONE_PANELS>,
    }
}

const fn paired_tiles<S: Storage>() -> TileSet {
    TileSet {
        full: paired::<S, ROWS, 1>,
        four: paired::<S, 4, 1>,
        two: paired::<S, 2, 1>,
        one: paired::<S, 1, 1>,
        one_wide: paired::<S, 1, ONE_PANELS>,
    }
}

const WITH_FMA: Kernels = Kernels {
    lanes: F32x16::LANES,
    panel_rows: ROWS,
    fused: [fused_tiles::<F32>(), fused_tiles::<F16>(), fused_tiles::<Bf16>()],
    paired: None,
    sums: fused::<Sums, ROWS, 1>,
    paired_sums: None,
    passes: passes!(F32x16, #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma,f16c")]),
    pack_columns,
    pack_rows,
    shrink_tokens: SHRINK.0,
    shrink: [shrink::<F32>, shrink::<F16>, shrink::<Bf16>],
    widen: [widen::<F32>, widen::<F16>, widen::<Bf16>],
};

/// The kernels with FMA alone. They may be called only where [`infer_accel_tensor::simd::detected`] names AVX-512.
pub(crate) static KERNELS: Kernels = WITH_FMA;

/// The same with `vdpbf16ps` beside them. They may be called only where AVX-512 BF16 is detected.
pub(crate) static KERNELS_BF16: Kernels = Kernels {
    paired: Some([paired_tiles::<F32>(), paired_tiles::<F16>(), paired_tiles::<Bf16>()]),
    paired_sums: Some(paired::<Sums, ROWS, 1>),
    ..WITH_FMA
};
