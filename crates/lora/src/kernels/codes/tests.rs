//! Codes against the conversions of the tensor crate, which are tested against all numbers there are.

use super::*;
use infer_accel_tensor::float;
use infer_accel_tensor::simd::available;
use proptest::prelude::*;

const ALL: [Coding; 4] = [Coding::E4M3, Coding::E5M2, Coding::Int8, Coding::E2M1];

/// The numbers of E2M1, as the OCP specification lists them.
const FOUR_BITS: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

fn value(coding: Coding, code: u8) -> f32 {
    match coding {
        Coding::E4M3 => float::f8e4m3_to_f32(code),
        Coding::E5M2 => float::f8e5m2_to_f32(code),
        Coding::Int8 => f32::from(code.cast_signed()),
        Coding::E2M1 => {
            let size = FOUR_BITS[usize::from(code & 7)];
            if code & 8 == 0 { size } else { -size }
        }
    }
}

fn nearest(coding: Coding, number: f32) -> u8 {
    let largest = coding.largest();
    let within = number.clamp(-largest, largest);
    match coding {
        Coding::E4M3 => float::f32_to_f8e4m3(within),
        Coding::E5M2 => float::f32_to_f8e5m2(within),
        Coding::Int8 => (number.round_ties_even() as i8).cast_unsigned(),
        Coding::E2M1 => {
            let size = within.abs();
            // The even one of two that are as near: the first that is strictly nearer, from the evens on.
            let order = [0_u8, 2, 4, 6, 1, 3, 5, 7];
            let distance = |&code: &u8| (FOUR_BITS[usize::from(code)] - size).abs();
            let best = order
                .iter()
                .copied()
                .reduce(|best, code| if distance(&code) < distance(&best) { code } else { best });
            best.unwrap() | if number.is_sign_negative() { 8 } else { 0 }
        }
    }
}

fn codes(coding: Coding) -> impl Iterator<Item = u8> {
    (0..=if coding == Coding::E2M1 { 15 } else { u8::MAX })
        .filter(move |&code| value(coding, code).is_finite())
}

#[test]
fn every_code_stands_for_its_number_and_comes_back() {
    for &tier in available() {
        let passes = CodePasses::of(tier);
        for coding in ALL {
            for code in 0..=if coding == Coding::E2M1 { 15 } else { u8::MAX } {
                let (mut found, mut back) = ([0.0], [0]);
                // SAFETY: the processor has the tier; one element each.
                let beyond = unsafe {
                    passes.decode(coding, &raw const code, 1.0, found.as_mut_ptr(), 1);
                    passes.encode(coding, found.as_ptr(), 1.0, back.as_mut_ptr(), 1)
                };
                let expected = value(coding, code);
                if expected.is_finite() {
                    assert_eq!(found[0].to_bits(), expected.to_bits(), "{coding:?} {code:#x}");
                    assert_eq!((back[0], beyond), (code, 0), "{coding:?}");
                } else {
                    assert!(found[0].is_nan(), "{coding:?} {code:#x}");
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3_000))]
    #[test]
    fn codes_are_the_nearest(
        bits in prop::collection::vec(any::<u32>(), 1..40),
        scale in prop_oneof![Just(1.0_f32), 1e-3_f32..1e3],
        range in prop_oneof![Just(f32::INFINITY), Just(700.0_f32), Just(200.0), Just(8.0), Just(0.01)],
    ) {
        let numbers: Vec<f32> = bits
            .iter()
            .map(|&bits| f32::from_bits(bits))
            .map(|number| if range.is_finite() { number % range } else { number })
            .filter(|number| !number.is_nan())
            .collect();
        for coding in ALL {
            let expected: Vec<u8> = numbers.iter().map(|&number| nearest(coding, number / scale)).collect();
            let is_beyond = |number: f32| {
                let quotient = f64::from(number / scale);
                match coding {
                    Coding::E4M3 => quotient.abs() > 464.0,
                    Coding::E5M2 => quotient.abs() >= 61440.0,
                    Coding::Int8 => !(-128.0..=127.0).contains(&quotient.round_ties_even()),
                    Coding::E2M1 => quotient.abs() >= 7.0,
                }
            };
            let above = numbers.iter().filter(|&&number| is_beyond(number)).count() as u32;
            for &tier in available() {
                let mut found = vec![0; numbers.len()];
                // SAFETY: the processor has the tier; the buffers are as long as each other.
                let beyond = unsafe {
                    CodePasses::of(tier).encode(coding, numbers.as_ptr(), scale, found.as_mut_ptr(), numbers.len())
                };
                prop_assert_eq!(&found, &expected, "{:?} {:?} {:?} / {}", coding, tier, numbers, scale);
                prop_assert_eq!(beyond, above, "{:?}", coding);
            }
        }
    }

    #[test]
    fn what_is_scaled_and_untouched_comes_back(
        scale in prop_oneof![1e-12_f32..1e-6, 1e-6_f32..1.0, 1.0_f32..1e6, Just(f32::MIN_POSITIVE)],
        power in -100_i32..100,
    ) {
        for scale in [scale, f32::powi(2.0, power)] {
            if !(1e-30..=1e30).contains(&scale) {
                continue;
            }
            for coding in ALL {
                let codes: Vec<u8> = codes(coding).collect();
                let (mut numbers, mut back) = (vec![0.0; codes.len()], vec![0; codes.len()]);
                let passes = CodePasses::of(available()[available().len() - 1]);
                // SAFETY: as above.
                let beyond = unsafe {
                    passes.decode(coding, codes.as_ptr(), scale, numbers.as_mut_ptr(), codes.len());
                    passes.encode(coding, numbers.as_ptr(), scale, back.as_mut_ptr(), codes.len())
                };
                prop_assert_eq!(&back, &codes, "{:?} {}", coding, scale);
                prop_assert_eq!(beyond, 0);
            }
        }
    }

    #[test]
    fn extents_see_both_signs_and_what_is_no_number(bits in prop::collection::vec(any::<u32>(), 0..40), wild: bool) {
        let numbers: Vec<f32> = bits
            .iter()
            .map(|&bits| f32::from_bits(bits))
            .filter(|number| wild || number.is_finite())
            .collect();
        for &tier in available() {
            // SAFETY: the processor has the tier.
            let extent = unsafe { CodePasses::of(tier).extent(numbers.as_ptr(), numbers.len()) };
            prop_assert_eq!(extent.is_finite(), numbers.iter().all(|number| number.is_finite()));
            if extent.is_finite() {
                let most = |sign: f32| numbers.iter().map(|number| number * sign).fold(0.0_f32, f32::max);
                prop_assert_eq!((extent.above, extent.below), (most(1.0), most(-1.0)));
            }
        }
    }
}
