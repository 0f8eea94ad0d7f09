//! A register made of an array: the portable tier, and the wide tiers' stand-in on machines that lack them.

use super::vector::{PairDot, Vector};
use infer_accel_tensor::float;

/// `N` lanes of plain Rust.
#[derive(Clone, Copy)]
pub(crate) struct Lanes<const N: usize>([f32; N]);

impl<const N: usize> Lanes<N> {
    #[inline(always)]
    fn from_fn(lane: impl FnMut(usize) -> f32) -> Self {
        Self(std::array::from_fn(lane))
    }
}

impl<const N: usize> Vector for Lanes<N> {
    const LANES: usize = N;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self([value; N])
    }

    #[inline(always)]
    unsafe fn load(source: *const f32) -> Self {
        // SAFETY: the caller vouches for N numbers at any alignment.
        Self(unsafe { source.cast::<[f32; N]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn store(self, target: *mut f32) {
        // SAFETY: the caller vouches for N numbers at any alignment.
        unsafe { target.cast::<[f32; N]>().write_unaligned(self.0) }
    }

    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        Self::from_fn(|lane| self.0[lane].mul_add(factor.0[lane], addend.0[lane]))
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        Self::from_fn(|lane| self.0[lane] + other.0[lane])
    }

    #[inline(always)]
    unsafe fn any_nan(pairs: &[[Self; 2]]) -> bool {
        pairs.as_flattened().iter().any(|values| values.0.iter().any(|value| value.is_nan()))
    }

    #[inline(always)]
    unsafe fn canonical(self) -> Self {
        Self::from_fn(|lane| if self.0[lane].is_nan() { super::CANONICAL_NAN } else { self.0[lane] })
    }

    #[inline(always)]
    unsafe fn load_f16(source: *const u16) -> Self {
        // SAFETY: the caller vouches for N numbers at any alignment.
        let bits = unsafe { source.cast::<[u16; N]>().read_unaligned() };
        Self::from_fn(|lane| float::f16_to_f32(bits[lane]))
    }

    #[inline(always)]
    unsafe fn store_f16(self, target: *mut u16) {
        // SAFETY: the caller vouches for N numbers at any alignment.
        unsafe { target.cast::<[u16; N]>().write_unaligned(self.0.map(float::f32_to_f16)) }
    }

    #[inline(always)]
    unsafe fn load_bf16(source: *const u16) -> Self {
        // SAFETY: the caller vouches for N numbers at any alignment.
        let bits = unsafe { source.cast::<[u16; N]>().read_unaligned() };
        Self::from_fn(|lane| float::bf16_to_f32(bits[lane]))
    }

    #[inline(always)]
    unsafe fn load_bf16_split(source: *const u16) -> [Self; 2] {
        // SAFETY: the caller vouches for 2 N numbers at any alignment.
        let bits = unsafe { source.cast::<[[u16; 2]; N]>().read_unaligned() };
        [0, 1].map(|side| Self::from_fn(|lane| float::bf16_to_f32(bits[lane][side])))
    }

    #[inline(always)]
    unsafe fn store_bf16_split(split: [Self; 2], target: *mut u16) {
        let bits: [[u16; 2]; N] =
            std::array::from_fn(|lane| [0, 1].map(|side| float::f32_to_bf16(split[side].0[lane])));
        // SAFETY: the caller vouches for 2 N numbers at any alignment.
        unsafe { target.cast::<[[u16; 2]; N]>().write_unaligned(bits) }
    }

    #[inline(always)]
    unsafe fn split(ordered: [Self; 2]) -> [Self; 2] {
        let at = |place: usize| ordered[place / N].0[place % N];
        [0, 1].map(|side| Self::from_fn(|lane| at(2 * lane + side)))
    }

    #[inline(always)]
    unsafe fn join(split: [Self; 2]) -> [Self; 2] {
        let at = |place: usize| split[place % 2].0[place / 2];
        [0, N].map(|first| Self::from_fn(|lane| at(first + lane)))
    }

    #[inline(always)]
    unsafe fn transpose_words(rows: &[*const u8; 8], words: *mut u32, stride: usize) {
        for (index, row) in rows.iter().enumerate() {
            // SAFETY: the caller vouches for 32 bytes of each row and for the words.
            unsafe {
                for (word, value) in row.cast::<[u32; 8]>().read_unaligned().into_iter().enumerate() {
                    words.add(word * stride + index).write(value);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn prefetch(_address: *const u8) {}
}

/// What the instruction does, subnormal numbers flushed, for tests of the rule that says when it may be used.
impl<const N: usize> PairDot for Lanes<N> {
    #[inline(always)]
    unsafe fn pair_dot(factor: Self, other: Self, sums: Self) -> Self {
        let flush = |value: f32| if value.is_subnormal() { 0.0_f32.copysign(value) } else { value };
        let upper = |pair: f32| flush(f32::from_bits(pair.to_bits() & 0xffff_0000));
        let lower = |pair: f32| flush(f32::from_bits(pair.to_bits() << 16));
        Self::from_fn(|lane| {
            let (a, b) = (factor.0[lane], other.0[lane]);
            let first = flush(upper(a).mul_add(upper(b), flush(sums.0[lane])));
            flush(lower(a).mul_add(lower(b), first))
        })
    }
}
