//! Scales in memory: where the one of an element lies, what it is, and how it grows.

use super::super::codes::{Coding, Extent};
use super::super::storage::Format;
use infer_accel_tensor::{DType, TensorRef, float};
use std::ops::Range;

/// Above this a scale is none: products with the largest codes must stay finite.
const LARGEST_SCALE: f32 = f32::from_bits((127 + 100) << 23);

/// The largest power of two that is allowed as a scale of its own format.
const LARGEST_POWER: u8 = 127 + 125;

/// How a scale is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ScaleFormat {
    /// A float of 16 or 32 bits.
    Float(Format),
    /// OCP E8M0: a power of two.
    E8M0,
    /// OCP E4M3.
    E4M3,
}

impl ScaleFormat {
    /// The format of the scales that a coding may have.
    pub(crate) fn of(coding: Coding, dtype: DType) -> Option<Self> {
        match (coding, dtype) {
            (Coding::E2M1, DType::U8) => Some(Self::E8M0),
            (Coding::E2M1, DType::F8E4M3) => Some(Self::E4M3),
            (Coding::E2M1, _) => None,
            _ => Format::of(dtype).map(Self::Float),
        }
    }

    const fn size(self) -> usize {
        match self {
            Self::Float(format) => format.size(),
            Self::E8M0 | Self::E4M3 => 1,
        }
    }

    /// # Safety
    ///
    /// `source` is readable for a scale.
    unsafe fn read(self, source: *const u8) -> f32 {
        // SAFETY: the caller vouches for the bytes.
        unsafe {
            match self {
                Self::Float(format) => format.read(source),
                Self::E8M0 => power(source.read()),
                Self::E4M3 => float::f8e4m3_to_f32(source.read()),
            }
        }
    }

    /// # Safety
    ///
    /// `target` is writable for a scale.
    unsafe fn write(self, scale: f32, target: *mut u8) {
        // SAFETY: the caller vouches for the bytes.
        unsafe {
            match self {
                Self::Float(Format::F32) => target.cast::<f32>().write_unaligned(scale),
                Self::Float(Format::F16) => target.cast::<u16>().write_unaligned(float::f32_to_f16(scale)),
                Self::Float(Format::Bf16) => target.cast::<u16>().write_unaligned(float::f32_to_bf16(scale)),
                Self::E8M0 => target.write(exponent(scale)),
                Self::E4M3 => target.write(float::f32_to_f8e4m3(scale)),
            }
        }
    }

    /// The nearest scale that can be stored.
    fn nearest(self, scale: f32) -> f32 {
        match self {
            Self::Float(Format::F32) => scale,
            Self::Float(Format::F16) => float::f16_to_f32(float::f32_to_f16(scale)),
            Self::Float(Format::Bf16) => float::bf16_to_f32(float::f32_to_bf16(scale)),
            Self::E8M0 => power(exponent(scale)),
            Self::E4M3 => float::f8e4m3_to_f32(float::f32_to_f8e4m3(scale)),
        }
    }
}

/// 2 to the power of `code − 127`; what is not a number for 255.
fn power(code: u8) -> f32 {
    match code {
        0 => f32::from_bits(1 << 22),
        255 => f32::NAN,
        _ => f32::from_bits(u32::from(code) << 23),
    }
}

/// The code of a power of two; 255 for what is beyond.
fn exponent(scale: f32) -> u8 {
    (scale.to_bits() >> 23) as u8
}

/// The scales of a weight.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scales {
    base: *mut u8,
    /// Bytes from a scale to the one below it, and to the one beside it.
    strides: [isize; 2],
    /// Scales in all, down and across.
    pub(crate) counts: [usize; 2],
    /// Rows and columns of elements that share a scale.
    pub(crate) block: [usize; 2],
    format: ScaleFormat,
    /// What every scale is multiplied by.
    factor: f32,
}

impl Scales {
    /// The scales of a tensor whose shape fits; see [`Scheme`](crate::quantized::Scheme).
    pub(crate) fn of(
        tensor: &TensorRef<'_>,
        base: *mut u8,
        coding: Coding,
        counts: [usize; 2],
        block: [usize; 2],
        factor: f32,
    ) -> Option<Self> {
        let format = ScaleFormat::of(coding, tensor.dtype())?;
        let size = format.size() as isize;
        let strides = match *tensor.strides() {
            _ if tensor.len() == 1 => [0, 0],
            [down] => [down * size, 0],
            [down, across] => [down * size, across * size],
            _ => return None,
        };
        (tensor.len() == counts[0] * counts[1]).then_some(Self {
            base,
            strides,
            counts,
            block,
            format,
            factor,
        })
    }

    fn address(&self, index: usize) -> *mut u8 {
        let (row, column) = (index / self.counts[1], index % self.counts[1]);
        self.base.wrapping_offset(row as isize * self.strides[0] + column as isize * self.strides[1])
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.counts[0] * self.counts[1]
    }

    /// What the codes of a block are multiplied by.
    ///
    /// # Safety
    ///
    /// The scales are readable; `index` is that of a block.
    pub(crate) unsafe fn get(&self, index: usize) -> f32 {
        // SAFETY: the caller vouches for the scales.
        unsafe { self.format.read(self.address(index)) * self.factor }
    }

    /// Stores a scale that [`Self::grown`] gave.
    ///
    /// # Safety
    ///
    /// The scales are writable; `index` is that of a block.
    pub(crate) unsafe fn set(&self, index: usize, scale: f32) {
        // SAFETY: the caller vouches for the scales. The factor is the same as in `grown`, and a division undoes it: the
        // quotient is within a rounding of a number of the format.
        unsafe { self.format.write(self.format.nearest(scale / self.factor), self.address(index)) }
    }

    /// The first scale that is none: not finite, not above zero, or too large.
    ///
    /// # Safety
    ///
    /// The scales are readable.
    pub(crate) unsafe fn first_fault(&self) -> Option<(usize, f32)> {
        let largest = if self.format == ScaleFormat::E8M0 { power(LARGEST_POWER) } else { LARGEST_SCALE };
        // SAFETY: the caller vouches for the scales.
        let all = (0..self.count()).map(|index| (index, unsafe { self.get(index) }));
        all.into_iter().find(|(_, scale)| !(*scale > 0.0 && *scale <= largest))
    }

    /// The scale that a block gets whose elements should have some extent: the old one, unless that is too small. Then it
    /// is doubled until it is not, as far as the format goes; integers get the one with which the largest
    /// magnitude is the largest code.
    pub(crate) fn grown(&self, coding: Coding, extent: Extent, old: f32) -> f32 {
        let mut scale = old;
        if !coding.is_beyond(extent, scale) {
            return scale;
        }
        if coding.is_integer() {
            let wanted = self.format.nearest(extent.largest() / coding.largest() / self.factor) * self.factor;
            return if wanted > old && wanted <= LARGEST_SCALE { wanted } else { old };
        }
        while coding.is_beyond(extent, scale) {
            let next = self.format.nearest(2.0 * scale / self.factor) * self.factor;
            let limit = if self.format == ScaleFormat::E8M0 { power(LARGEST_POWER) } else { LARGEST_SCALE };
            if next != 2.0 * scale || next > limit {
                break;
            }
            scale = next;
        }
        scale
    }

    /// Whether a block lies within every segment that it meets.
    pub(crate) fn are_local(&self, segment: usize) -> bool {
        self.block[0] == 1 && self.block[1] <= segment && segment.is_multiple_of(self.block[1])
    }

    /// The stretches of a segment that share a scale, by place in the segment, and the index of it.
    pub(crate) fn stretches(
        &self,
        row: usize,
        column: usize,
        count: usize,
    ) -> impl Iterator<Item = (Range<usize>, usize)> + use<> {
        let ([rows, columns], across) = (self.block, self.counts[1]);
        let first_index = row / rows * across;
        let mut first = 0;
        std::iter::from_fn(move || {
            let block = (column + first) / columns;
            let stretch = first..count.min((block + 1).saturating_mul(columns) - column);
            first = stretch.end;
            (!stretch.is_empty()).then_some((stretch, first_index + block))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn powers_of_two_come_back() {
        for code in 0..=254_u8 {
            assert_eq!(power(code), f64::powi(2.0, i32::from(code) - 127) as f32);
            assert_eq!(exponent(power(code)), code);
        }
        assert!(power(255).is_nan());
    }

    proptest! {
        #[test]
        fn stretches_cover_a_segment(
            row in 0_usize..300, column in 0_usize..3, count in 0_usize..=256, block in prop_oneof![Just(16_usize), Just(32), Just(128), Just(1 << 40)],
        ) {
            let (column, across) = (column * 256, (3_usize * 256).div_ceil(block));
            let scales = Scales {
                base: std::ptr::null_mut(), strides: [0, 0], counts: [3, across], block: [128, block],
                format: ScaleFormat::E8M0, factor: 1.0,
            };
            let mut at = 0;
            for (stretch, index) in scales.stretches(row, column, count) {
                prop_assert_eq!(stretch.start, at);
                prop_assert_eq!(index, row / 128 * across + (column + at) / block);
                prop_assert_eq!((column + stretch.end - 1) / block, (column + at) / block);
                at = stretch.end;
            }
            prop_assert_eq!(at, count);
        }

        #[test]
        fn grown_scales_are_the_smallest_that_do(
            old in 1e-6_f32..1e3, above in 0.0_f32..1e8, below in 0.0_f32..1e8, format in 0_usize..3,
        ) {
            let format = [Format::F32, Format::F16, Format::Bf16][format];
            let old = ScaleFormat::Float(format).nearest(old);
            prop_assume!(old > 0.0);
            let scales = Scales {
                base: std::ptr::null_mut(), strides: [0, 0], counts: [1, 1], block: [1, 1],
                format: ScaleFormat::Float(format), factor: 1.0,
            };
            for coding in [Coding::E4M3, Coding::E5M2, Coding::Int8] {
                let extent = Extent { above, below };
                let new = scales.grown(coding, extent, old);
                if coding.is_beyond(extent, old) {
                    let is_limit = format == Format::F16 && (new > 16384.0 || extent.largest() / 127.0 > 60000.0);
                    prop_assert!(is_limit || (new > old && !coding.is_beyond(extent, new)), "{new} {old}");
                    if !coding.is_integer() {
                        prop_assert!(coding.is_beyond(extent, new / 2.0));
                        prop_assert_eq!((new / old).log2().fract(), 0.0);
                    } else if !is_limit {
                        prop_assert!((extent.largest() / new - 127.0).abs() < 0.5);
                    }
                } else {
                    prop_assert_eq!(new, old);
                }
            }
        }
    }
}
