//! Conversions between number formats, one element at a time: exact upwards, round-to-nearest-even downwards.
//!
//! These are the specification; kernels that convert many elements at once give the same bits. A NaN stays a
//! NaN with its sign and the upper bits of its payload, made quiet, as the hardware's own conversions do.

use half::f16;

/// bfloat16 to binary32; exact.
#[inline(always)]
pub const fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits((bits as u32) << 16)
}

/// binary32 to bfloat16, to nearest even.
#[inline(always)]
pub const fn f32_to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    if value.is_nan() {
        return (bits >> 16) as u16 | 0x0040;
    }
    ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

/// binary16 to binary32; exact. A signalling NaN becomes quiet.
#[inline(always)]
pub fn f16_to_f32(bits: u16) -> f32 {
    f16::from_bits(bits).to_f32_const()
}

/// binary32 to binary16, to nearest even.
#[inline(always)]
pub fn f32_to_f16(value: f32) -> u16 {
    f16::from_f32_const(value).to_bits()
}

/// How an 8-bit float divides its bits.
struct Format8 {
    mantissa_bits: u32,
    bias: i32,
    /// The largest finite value's bits, without the sign.
    largest: u8,
    /// What a value too large to round to `largest` becomes, without the sign.
    overflow: u8,
    /// What a NaN becomes, without the sign.
    nan: u8,
}

const E4M3: Format8 = Format8 { mantissa_bits: 3, bias: 7, largest: 0x7e, overflow: 0x7f, nan: 0x7f };
const E5M2: Format8 = Format8 { mantissa_bits: 2, bias: 15, largest: 0x7b, overflow: 0x7c, nan: 0x7e };

impl Format8 {
    const fn magnitude(&self, bits: u8) -> f32 {
        let mantissa = (bits & ((1 << self.mantissa_bits) - 1)) as u32;
        let exponent = (bits >> self.mantissa_bits) as i32;
        let (significand, power) = if exponent == 0 {
            (mantissa, 1 - self.bias)
        } else {
            (mantissa | 1 << self.mantissa_bits, exponent - self.bias)
        };
        // Both factors are small powers of two and integers: the product is exact.
        significand as f32 * f32::from_bits(((power - self.mantissa_bits as i32 + 127) as u32) << 23)
    }

    const fn round(&self, value: f32) -> u8 {
        let bits = value.to_bits();
        let sign = ((bits >> 24) & 0x80) as u8;
        if value.is_nan() {
            return sign | self.nan;
        }
        let magnitude = bits & 0x7fff_ffff;
        let exponent = (magnitude >> 23) as i32 - 127;
        let smallest = 1 - self.bias;
        // Bits of the significand that fall away: more of them below the smallest normal value.
        let below = if exponent < smallest { smallest - exponent } else { 0 };
        let dropped = 23 - self.mantissa_bits as i32 + below;
        if dropped > 24 {
            return sign; // less than half of the smallest subnormal value
        }
        let significand = (magnitude & 0x007f_ffff) | 0x0080_0000;
        let kept = significand >> dropped;
        let rest = significand & ((1 << dropped) - 1);
        let half = 1 << (dropped - 1);
        let up = (rest > half || (rest == half && kept & 1 == 1)) as u32;
        // A carry out of the mantissa lands in the exponent, where it belongs.
        let base = if below > 0 { 0 } else { ((exponent + self.bias - 1) as u32) << self.mantissa_bits };
        let rounded = base + kept + up;
        if rounded > self.largest as u32 { sign | self.overflow } else { sign | rounded as u8 }
    }
}

/// OCP E4M3 ("fn": no infinity, one NaN a sign) to binary32; exact.
pub const fn f8e4m3_to_f32(bits: u8) -> f32 {
    let magnitude = bits & 0x7f;
    let value = if magnitude == 0x7f { f32::NAN } else { E4M3.magnitude(magnitude) };
    if bits & 0x80 == 0 { value } else { -value }
}

/// binary32 to OCP E4M3, to nearest even; what rounds above 448 becomes NaN, as in torch and `ml_dtypes`.
pub const fn f32_to_f8e4m3(value: f32) -> u8 {
    E4M3.round(value)
}

/// OCP E5M2 to binary32; exact.
pub const fn f8e5m2_to_f32(bits: u8) -> f32 {
    let magnitude = bits & 0x7f;
    let value = match magnitude {
        0x7c => f32::INFINITY,
        0x7d..=0x7f => f32::NAN,
        _ => E5M2.magnitude(magnitude),
    };
    if bits & 0x80 == 0 { value } else { -value }
}

/// binary32 to OCP E5M2, to nearest even; what rounds above 57344 becomes infinite.
pub const fn f32_to_f8e5m2(value: f32) -> u8 {
    E5M2.round(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;
    use proptest::prelude::*;

    /// The nearest of all finite values, ties to the even code; found by trying each.
    fn nearest(value: f32, decode: fn(u8) -> f32) -> Option<u8> {
        let codes = (0_u8..=0xff).filter(|&code| decode(code).is_finite());
        let distance = |code: &u8| (f64::from(decode(*code)) - f64::from(value)).abs();
        codes
            .filter(|&code| decode(code).is_sign_negative() == value.is_sign_negative())
            .min_by(|a, b| distance(a).total_cmp(&distance(b)).then((a & 1).cmp(&(b & 1))))
    }

    #[test]
    fn every_code_survives_the_round_trip() {
        for code in 0..=0xff_u8 {
            let value = f8e4m3_to_f32(code);
            assert!(value.is_nan() || f32_to_f8e4m3(value) == code, "e4m3 {code:#x}");
            let value = f8e5m2_to_f32(code);
            assert!(value.is_nan() || f32_to_f8e5m2(value) == code, "e5m2 {code:#x}");
        }
        for code in 0..=0xffff_u16 {
            let value = bf16_to_f32(code);
            assert!(value.is_nan() || f32_to_bf16(value) == code, "bf16 {code:#x}");
            let value = f16_to_f32(code);
            assert!(value.is_nan() || f32_to_f16(value) == code, "f16 {code:#x}");
        }
    }

    #[test]
    fn nan_stays_nan_with_its_sign() {
        for bits in [0x7f80_0001_u32, 0x7fff_ffff, 0xff80_0001, 0xffc0_0000] {
            let value = f32::from_bits(bits);
            let negative = value.is_sign_negative();
            for (back, sign) in [
                (bf16_to_f32(f32_to_bf16(value)), f32_to_bf16(value) >> 15 == 1),
                (f16_to_f32(f32_to_f16(value)), f32_to_f16(value) >> 15 == 1),
                (f8e4m3_to_f32(f32_to_f8e4m3(value)), f32_to_f8e4m3(value) >> 7 == 1),
                (f8e5m2_to_f32(f32_to_f8e5m2(value)), f32_to_f8e5m2(value) >> 7 == 1),
            ] {
                assert!(back.is_nan() && sign == negative, "{bits:#x}");
            }
        }
    }

    #[test]
    fn the_edges_of_eight_bits() {
        assert_eq!(f32_to_f8e4m3(448.0), 0x7e);
        assert_eq!(f32_to_f8e4m3(464.0), 0x7e); // halfway to 480, which does not exist: ties to even
        assert_eq!(f32_to_f8e4m3(464.1), 0x7f);
        assert_eq!(f32_to_f8e4m3(f32::NEG_INFINITY), 0xff);
        assert_eq!(f32_to_f8e5m2(57344.0), 0x7b);
        assert_eq!(f32_to_f8e5m2(61440.0), 0x7c);
        assert_eq!(f32_to_f8e5m2(f32::INFINITY), 0x7c);
        assert_eq!((f32_to_f8e4m3(-0.0), f32_to_f8e5m2(-0.0)), (0x80, 0x80));
        assert_eq!(f32_to_f8e4m3(f32::from_bits(1)), 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]
        #[test]
        fn rounding_finds_the_nearest(bits: u32) {
            let value = f32::from_bits(bits);
            if !value.is_nan() {
                prop_assert_eq!(f32_to_bf16(value), bf16::from_f32(value).to_bits());
                let code = f32_to_f8e4m3(value);
                if value.abs() <= 464.0 {
                    prop_assert_eq!(Some(code), nearest(value, f8e4m3_to_f32));
                } else {
                    prop_assert!(f8e4m3_to_f32(code).is_nan());
                }
                let code = f32_to_f8e5m2(value);
                if value.abs() < 61440.0 {
                    prop_assert_eq!(Some(code), nearest(value, f8e5m2_to_f32));
                } else {
                    prop_assert!(f8e5m2_to_f32(code).is_infinite());
                }
            }
        }

        #[test]
        fn rounding_small_values_finds_the_nearest(mantissa in 0_u32..0x80_0000, exponent in 100_u32..140, sign: bool) {
            let value = f32::from_bits(u32::from(sign) << 31 | exponent << 23 | mantissa);
            if value.abs() <= 464.0 {
                prop_assert_eq!(Some(f32_to_f8e4m3(value)), nearest(value, f8e4m3_to_f32));
            }
            prop_assert_eq!(Some(f32_to_f8e5m2(value)), nearest(value, f8e5m2_to_f32));
        }
    }
}
