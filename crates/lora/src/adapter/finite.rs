//! NaN and infinity, and how large numbers are, found at the speed of memory.
//!
//! A number is not finite when all bits of its exponent are set. With the sign taken off, adding one unit of the
//! exponent then carries into the sign's place, and nothing else does. The OR of all numbers without their signs is
//! no smaller than the largest of them: a rough bound, but below 2 wherever all numbers are, as weights mostly are.
//! Both take an AND, an ADD and two ORs for each vector, which every compiler turns into vector code for every
//! processor.

use half::{bf16, f16};
use infer_accel_tensor::DType;

/// What was seen of a run of elements.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// Elements that are NaN or infinite.
    pub(super) not_finite: usize,
    /// The OR of all elements' bits, without the sign.
    pub(super) bits: u32,
}

impl Seen {
    /// What was seen of two runs.
    pub(super) fn and(self, other: Self) -> Self {
        Self { not_finite: self.not_finite + other.not_finite, bits: self.bits | other.bits }
    }

    /// No element is larger than this, in magnitude. Infinity where the bits tell nothing.
    pub(super) fn bound(self, dtype: DType) -> f64 {
        let bound = match dtype {
            DType::F16 => f16::from_bits(self.bits as u16).to_f64(),
            DType::BF16 => bf16::from_bits(self.bits as u16).to_f64(),
            DType::F32 => f64::from(f32::from_bits(self.bits)),
            _ => f64::INFINITY,
        };
        if bound.is_nan() { f64::INFINITY } else { bound }
    }
}

/// Looks at all elements. Formats without infinity and NaN have none; bytes behind the last whole element are not
/// looked at.
pub(super) fn scan(bytes: &[u8], dtype: DType) -> Seen {
    let count = |not_finite| Seen { not_finite, bits: 0 };
    match dtype {
        DType::F16 => scan16(bytes, 0x0400),
        DType::BF16 => scan16(bytes, 0x0080),
        DType::F32 => scan32(bytes),
        DType::F64 => {
            let elements = bytes.as_chunks::<8>().0.iter();
            count(elements.filter(|&&element| !f64::from_le_bytes(element).is_finite()).count())
        }
        DType::F8E4M3 => count(bytes.iter().filter(|&&byte| byte & 0x7F == 0x7F).count()),
        DType::F8E5M2 => count(bytes.iter().filter(|&&byte| byte & 0x7C == 0x7C).count()),
        _ => count(0),
    }
}

/// The index of the first element that is not finite.
pub(super) fn first_not_finite(bytes: &[u8], dtype: DType) -> Option<usize> {
    bytes.chunks(dtype.size()).position(|element| scan(element, dtype).not_finite > 0)
}

/// Bytes of a block: a carry is looked for after each.
const BLOCK: usize = 4096;

fn scan16(bytes: &[u8], unit: u16) -> Seen {
    let mut seen = Seen::default();
    let mut all = 0;
    for block in bytes.chunks(BLOCK) {
        let (elements, _) = block.as_chunks::<2>();
        let mut carries = 0;
        for &element in elements {
            let bits = u16::from_le_bytes(element) & 0x7FFF;
            all |= bits;
            carries |= bits.wrapping_add(unit);
        }
        if carries & 0x8000 != 0 {
            let is_bad = |&&e: &&[u8; 2]| (u16::from_le_bytes(e) & 0x7FFF).wrapping_add(unit) & 0x8000 != 0;
            seen.not_finite += elements.iter().filter(is_bad).count();
        }
    }
    seen.bits = u32::from(all);
    seen
}

fn scan32(bytes: &[u8]) -> Seen {
    const UNIT: u32 = 0x0080_0000;
    let mut seen = Seen::default();
    for block in bytes.chunks(BLOCK) {
        let (elements, _) = block.as_chunks::<4>();
        let mut carries = 0;
        for &element in elements {
            let bits = u32::from_le_bytes(element) & 0x7FFF_FFFF;
            seen.bits |= bits;
            carries |= bits.wrapping_add(UNIT);
        }
        if carries & 0x8000_0000 != 0 {
            seen.not_finite += elements.iter().filter(|&&e| !f32::from_le_bytes(e).is_finite()).count();
        }
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_16_bit_number_is_judged_right() {
        for bits in 0..=u16::MAX {
            let bytes = bits.to_le_bytes();
            let is_bad = !f16::from_bits(bits).is_finite();
            assert_eq!(scan(&bytes, DType::F16).not_finite, usize::from(is_bad), "f16 {bits:#x}");
            let is_bad = !bf16::from_bits(bits).is_finite();
            assert_eq!(scan(&bytes, DType::BF16).not_finite, usize::from(is_bad), "bf16 {bits:#x}");
        }
    }

    #[test]
    fn edges_of_32_bits() {
        let special = [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::from_bits(0x7F80_0001)];
        let fine = [0.0, -0.0, f32::MAX, f32::MIN, f32::MIN_POSITIVE, f32::from_bits(1), -1.5];
        for value in special {
            assert_eq!(scan(&value.to_le_bytes(), DType::F32).not_finite, 1, "{value}");
        }
        for value in fine {
            assert_eq!(scan(&value.to_le_bytes(), DType::F32).not_finite, 0, "{value}");
        }
    }

    proptest! {
        #[test]
        fn sees_what_a_plain_loop_sees(values in proptest::collection::vec(any::<u32>(), 0..3000), cut in 0..4_usize) {
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            let bytes = &bytes[..bytes.len().saturating_sub(cut)];
            let of32 = bytes.chunks_exact(4).map(|e| f32::from_le_bytes(e.try_into().unwrap()));
            prop_assert_eq!(scan(bytes, DType::F32).not_finite, of32.clone().filter(|v| !v.is_finite()).count());
            prop_assert_eq!(first_not_finite(bytes, DType::F32), of32.clone().position(|v| !v.is_finite()));
            let of16 = bytes.chunks_exact(2).map(|e| bf16::from_le_bytes(e.try_into().unwrap()));
            prop_assert_eq!(scan(bytes, DType::BF16).not_finite, of16.filter(|v| !v.is_finite()).count());
            let of64 = bytes.chunks_exact(8).map(|e| f64::from_le_bytes(e.try_into().unwrap()));
            prop_assert_eq!(scan(bytes, DType::F64).not_finite, of64.filter(|v| !v.is_finite()).count());
        }

        #[test]
        fn the_bound_holds(values in proptest::collection::vec(-1.0_f32..1.0, 1..200), power in -20..20) {
            let values: Vec<f32> = values.iter().map(|value| value * 2_f32.powi(power)).collect();
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            let largest = values.iter().fold(0_f32, |largest, value| largest.max(value.abs()));
            let bound = scan(&bytes, DType::F32).bound(DType::F32);
            prop_assert!(bound >= f64::from(largest));
            prop_assert!(power > 0 || bound < 2.0);
            let halves: Vec<u8> = values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect();
            let largest = values.iter().map(|&value| bf16::from_f32(value).to_f64().abs()).fold(0.0, f64::max);
            prop_assert!(scan(&halves, DType::BF16).bound(DType::BF16) >= largest);
        }
    }
}
