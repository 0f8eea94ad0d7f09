//! Random numbers that depend on a seed, a row and a column and on nothing else: whoever computes an element, in
//! whatever order, draws the same number for it.

use super::storage::{Format, Storage};

/// The finalizer of `SplitMix64` (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
#[inline(always)]
pub(crate) const fn mix(value: u64) -> u64 {
    let value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}

/// The step of `SplitMix64`: 2⁶⁴ divided by the golden ratio.
pub(crate) const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// What the draws of a row depend on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowKey {
    low: u32,
    high: u32,
}

impl RowKey {
    /// The key of a row, counted from the first row of the whole weight.
    pub(crate) fn new(seed: u64, row: u64) -> Self {
        let key = mix(mix(seed).wrapping_add(row.wrapping_add(1).wrapping_mul(STEP)));
        Self { low: key as u32, high: (key >> 32) as u32 }
    }

    /// The number of a column: 32 bits, of which the upper ones are the good ones. Two multiplications with a shift
    /// between them; the key comes in before each, so that rows are not shifted copies of each other.
    #[inline(always)]
    pub(crate) const fn draw(self, column: u32) -> u32 {
        let mixed = (column ^ self.low).wrapping_mul(0x7feb_352d);
        let mixed = (mixed ^ mixed >> 15).wrapping_add(self.high);
        mixed.wrapping_mul(0x846c_a68b)
    }
}

/// See [`super::passes::Passes::dither`].
///
/// The bits that the format lacks are a fraction of the step to its next number. A random number as long as these
/// bits is added and they are cut off: the carry goes up with a probability of that fraction.
///
/// # Safety
///
/// `values` is readable and writable for `count` numbers.
#[inline(always)]
pub(super) unsafe fn dither<S: Storage>(values: *mut f32, key: RowKey, column: u32, count: usize) {
    for at in 0..count {
        let random = key.draw(column.wrapping_add(at as u32));
        // SAFETY: the caller vouches for `count` numbers.
        unsafe {
            let value = *values.add(at);
            *values.add(at) = match S::FORMAT {
                Format::F32 => value,
                Format::Bf16 => dither_bf16(value, random >> 16),
                Format::F16 => dither_f16(value, random >> 19),
            };
        }
    }
}

#[inline(always)]
fn dither_bf16(value: f32, random: u32) -> f32 {
    let moved = f32::from_bits(value.to_bits().wrapping_add(random) & 0xffff_0000);
    if value.is_nan() { value } else { moved }
}

#[inline(always)]
fn dither_f16(value: f32, random: u32) -> f32 {
    /// The smallest normal number of binary16: below, its steps are all 2⁻²⁴.
    const SMALLEST_NORMAL: f32 = 1.0 / 16384.0;
    /// Steps of 2⁻²⁴ cut into 2¹³.
    const FINE: f32 = (1_u64 << 37) as f32;
    let size = value.abs();
    let normal = f32::from_bits(size.to_bits().wrapping_add(random) & 0xffff_e000);
    // The bound keeps the conversion inside an integer where the other branch is taken.
    let steps = ((size.min(SMALLEST_NORMAL) * FINE) as i32 + random as i32) >> 13;
    let subnormal = steps as f32 * (1.0 / (1 << 24) as f32);
    let moved = if size < SMALLEST_NORMAL { subnormal } else { normal };
    if value.is_nan() { value } else { moved.copysign(value) }
}
