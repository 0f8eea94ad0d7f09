//! Merging into codes, against its definition.
#![allow(clippy::unwrap_used)]

use infer_accel_lora::{Delta, Error, QuantizedError, QuantizedOptions, ScaleRule, merge_quantized};
use infer_accel_tensor::simd::available;
use infer_accel_tensor::{DType, TensorMut, TensorRef, float};
use proptest::prelude::*;

/// The ways of quantizing that are served.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    /// Codes of a byte: their format, that of the scales, and the layout: one scale, one a row, or one a block.
    Byte(DType, DType, u8),
    Mx,
    Nv,
}

/// What the codes of E2M1 stand for.
const FOUR_BITS: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

const GLOBAL: f32 = 0.0071;

impl Kind {
    fn decode(self, code: u8) -> f32 {
        match self {
            Self::Byte(DType::F8E4M3, ..) => float::f8e4m3_to_f32(code),
            Self::Byte(DType::F8E5M2, ..) => float::f8e5m2_to_f32(code),
            Self::Byte(..) => f32::from(code.cast_signed()),
            _ => FOUR_BITS[usize::from(code & 7)] * if code & 8 == 0 { 1.0 } else { -1.0 },
        }
    }

    fn largest(self) -> f32 {
        match self {
            Self::Byte(DType::F8E4M3, ..) => 448.0,
            Self::Byte(DType::F8E5M2, ..) => 57344.0,
            Self::Byte(..) => 127.0,
            _ => 6.0,
        }
    }

    fn is_beyond(self, number: f32) -> bool {
        match self {
            Self::Byte(DType::F8E4M3, ..) => number.abs() > 464.0,
            Self::Byte(DType::F8E5M2, ..) => number.abs() >= 61440.0,
            Self::Byte(..) => !(-128.0..=127.0).contains(&number.round_ties_even()),
            _ => number.abs() >= 7.0,
        }
    }

    fn encode(self, number: f32) -> u8 {
        let most = self.largest();
        let within = number.clamp(-most, most);
        match self {
            Self::Byte(DType::F8E4M3, ..) => float::f32_to_f8e4m3(within),
            Self::Byte(DType::F8E5M2, ..) => float::f32_to_f8e5m2(within),
            Self::Byte(..) => (number.round_ties_even() as i8).cast_unsigned(),
            _ => {
                let distance = |code: u8| (FOUR_BITS[usize::from(code)] - within.abs()).abs();
                let best = [0_u8, 2, 4, 6, 1, 3, 5, 7].into_iter();
                let best =
                    best.reduce(|best, code| if distance(code) < distance(best) { code } else { best });
                best.unwrap() | u8::from(number.is_sign_negative()) << 3
            }
        }
    }

    /// Rows and columns that share a scale.
    fn block(self, [rows, columns]: [usize; 2]) -> [usize; 2] {
        match self {
            Self::Byte(_, _, 0) => [rows, columns],
            Self::Byte(_, _, 1) => [1, columns],
            Self::Byte(..) => [128, 128],
            Self::Mx => [1, 32],
            Self::Nv => [1, 16],
        }
    }

    /// A scale as its format can hold it.
    fn stored(self, scale: f32) -> f32 {
        match self {
            Self::Byte(_, DType::F16, _) => float::f16_to_f32(float::f32_to_f16(scale)),
            Self::Byte(_, DType::BF16, _) => float::bf16_to_f32(float::f32_to_bf16(scale)),
            Self::Byte(..) => scale,
            Self::Mx => scale.log2().round().exp2(),
            Self::Nv => float::f8e4m3_to_f32(float::f32_to_f8e4m3(scale)),
        }
    }

    fn grown(self, old: f32, values: &[f32]) -> f32 {
        let factor = if self == Self::Nv { GLOBAL } else { 1.0 };
        let does = |scale: f32| !values.iter().any(|value| self.is_beyond(value / (scale * factor)));
        if does(old) {
            return old;
        }
        if let Self::Byte(DType::I8, ..) = self {
            let most = values.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
            let wanted = self.stored(most / 127.0);
            return if wanted.is_finite() && wanted > old { wanted } else { old };
        }
        let mut scale = old;
        while !does(scale) && self.stored(2.0 * scale) == 2.0 * scale {
            scale *= 2.0;
        }
        scale
    }
}

fn numbers(count: usize, mut state: u32, size: f32) -> Vec<f32> {
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            ((state >> 8) as f32 / (1 << 23) as f32 - 1.0) * size
        })
        .collect()
}

/// Bytes as a tensor; elements of a row lie `step` elements apart.
fn tensor<'a>(bytes: &'a mut [u8], dtype: DType, shape: &[usize], step: usize) -> TensorMut<'a> {
    let mut strides = vec![step as isize; shape.len()];
    if let [rest @ .., _] = strides.as_mut_slice() {
        for (stride, &extent) in rest.iter_mut().rev().zip(shape.iter().rev()) {
            *stride = (extent * step) as isize;
        }
    }
    TensorMut::from_bytes(bytes, dtype, 0, shape, &strides).unwrap()
}

/// A quantized weight in memory and what it should become.
struct Quantized {
    kind: Kind,
    shape: [usize; 2],
    /// A byte for each code.
    codes: Vec<u8>,
    /// Scales before they are multiplied by a global one.
    scales: Vec<f32>,
}

impl Quantized {
    fn random(kind: Kind, shape: [usize; 2], seed: u32) -> Self {
        let count = shape[0] * shape[1];
        let codes = numbers(count, seed, kind.largest() * 1.05).into_iter().map(|value| kind.encode(value));
        let block = kind.block(shape);
        let scales = shape[0].div_ceil(block[0]) * shape[1].div_ceil(block[1]);
        let size = if kind == Kind::Nv { 200.0 } else { 0.01 };
        let scales =
            numbers(scales, seed ^ 7, size).into_iter().map(|scale| kind.stored(scale.abs() + size / 20.0));
        Self { kind, shape, codes: codes.collect(), scales: scales.collect() }
    }

    fn block_of(&self, at: usize) -> usize {
        let ([down, across], columns) = (self.kind.block(self.shape), self.shape[1]);
        at / columns / down * columns.div_ceil(across) + at % columns / across
    }

    fn factor(&self) -> f32 {
        if self.kind == Kind::Nv { GLOBAL } else { 1.0 }
    }

    fn value(&self, at: usize) -> f32 {
        self.kind.decode(self.codes[at]) * (self.scales[self.block_of(at)] * self.factor())
    }

    /// What every element should become, before it is encoded.
    fn sums(&self, deltas: &[(&[f32], &[f32], usize, f32)]) -> Vec<f32> {
        let columns = self.shape[1];
        let sum = |at: usize| {
            deltas.iter().filter(|delta| delta.2 > 0).fold(self.value(at), |value, &(a, b, rank, scaling)| {
                let (i, j) = (at / columns, at % columns);
                let sum = (0..rank).fold(0.0_f32, |sum, k| b[i * rank + k].mul_add(a[k * columns + j], sum));
                scaling.mul_add(sum, value)
            })
        };
        (0..self.codes.len()).map(sum).collect()
    }

    fn merged(&self, values: &[f32], rule: ScaleRule) -> Self {
        let mut of_blocks = vec![Vec::new(); self.scales.len()];
        for (at, &value) in values.iter().enumerate() {
            of_blocks[self.block_of(at)].push(value);
        }
        let mut scales = self.scales.clone();
        if rule == ScaleRule::Grow {
            for (scale, values) in scales.iter_mut().zip(&of_blocks) {
                *scale = self.kind.grown(*scale, values);
            }
        }
        let code = |(at, value): (usize, &f32)| {
            self.kind.encode(value / (scales[self.block_of(at)] * self.factor()))
        };
        let codes = values.iter().enumerate().map(code).collect();
        Self { codes, scales, ..*self }
    }

    /// The bytes of the codes, `step` apart, with `0xaa` between them.
    fn weight_bytes(&self, step: usize) -> Vec<u8> {
        let bytes: Vec<u8> = match self.kind {
            Kind::Byte(..) => self.codes.clone(),
            _ => self.codes.chunks(2).map(|pair| pair[0] | pair[1] << 4).collect(),
        };
        bytes
            .into_iter()
            .flat_map(|byte| std::iter::once(byte).chain(std::iter::repeat_n(0xaa, step - 1)))
            .collect()
    }

    fn scale_bytes(&self) -> Vec<u8> {
        let bytes = |scale: &f32| match self.kind {
            Kind::Byte(_, DType::F16, _) => float::f32_to_f16(*scale).to_le_bytes().to_vec(),
            Kind::Byte(_, DType::BF16, _) => float::f32_to_bf16(*scale).to_le_bytes().to_vec(),
            Kind::Byte(..) => scale.to_le_bytes().to_vec(),
            Kind::Mx => vec![(scale.to_bits() >> 23) as u8],
            Kind::Nv => vec![float::f32_to_f8e4m3(*scale)],
        };
        self.scales.iter().flat_map(bytes).collect()
    }

    fn dtypes(&self) -> (DType, DType) {
        match self.kind {
            Kind::Byte(dtype, scale, _) => (dtype, scale),
            Kind::Mx => (DType::U8, DType::U8),
            Kind::Nv => (DType::U8, DType::F8E4M3),
        }
    }

    fn stored_shape(&self) -> [usize; 2] {
        [self.shape[0], if matches!(self.kind, Kind::Byte(..)) { self.shape[1] } else { self.shape[1] / 2 }]
    }

    fn scale_shape(&self) -> Vec<usize> {
        let block = self.kind.block(self.shape);
        match self.kind {
            Kind::Byte(_, _, 0) => vec![],
            Kind::Byte(_, _, 1) => vec![self.shape[0]],
            _ => vec![self.shape[0].div_ceil(block[0]), self.shape[1].div_ceil(block[1])],
        }
    }
}

fn kinds() -> impl Strategy<Value = Kind> {
    let codes = prop_oneof![Just(DType::F8E4M3), Just(DType::F8E5M2), Just(DType::I8)];
    let scales = prop_oneof![3 => Just(DType::F32), 1 => Just(DType::F16), 1 => Just(DType::BF16)];
    prop_oneof![
        4 => (codes, scales, 0_u8..3).prop_map(|(code, scale, layout)| Kind::Byte(code, scale, layout)),
        1 => Just(Kind::Mx),
        1 => Just(Kind::Nv),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, ..ProptestConfig::default() })]
    #[test]
    fn codes_and_scales_are_merged_to_the_bit(
        kind in kinds(),
        (rows, columns) in (1_usize..=150, 1_usize..=330),
        (ranks, step) in ((0_usize..=5, 0_usize..=3), 1_usize..=2),
        (threads, seed) in (1_usize..=4, any::<u32>()),
        size in prop_oneof![Just(0.0_f32), Just(1e-3), Just(0.1), Just(30.0)],
        rule in prop_oneof![Just(ScaleRule::Grow), Just(ScaleRule::Keep)],
    ) {
        let columns = if matches!(kind, Kind::Byte(..)) { columns } else { columns.next_multiple_of(32) };
        let base = Quantized::random(kind, [rows, columns], seed);
        let a: Vec<Vec<f32>> = [ranks.0, ranks.1].iter().map(|rank| numbers(rank * columns, seed ^ 1, 1.0)).collect();
        let b: Vec<Vec<f32>> = [ranks.0, ranks.1].iter().map(|rank| numbers(rows * rank, seed ^ 2, size)).collect();
        let terms = [(&a[0][..], &b[0][..], ranks.0, 0.5), (&a[1][..], &b[1][..], ranks.1, -0.25)];
        let deltas = terms.map(|(a, b, rank, scaling)| Delta {
            lora_a: TensorRef::from_slice(a, &[rank, columns]).unwrap(),
            lora_b: TensorRef::from_slice(b, &[rows, rank]).unwrap(),
            scaling: f64::from(scaling),
        });
        let values = base.sums(&terms);
        let is_nothing = ranks == (0, 0);
        let expected = if is_nothing { Quantized { codes: base.codes.clone(), scales: base.scales.clone(), ..base } }
            else { base.merged(&values, rule) };
        for &tier in available() {
            let (mut weight, mut scale) = (base.weight_bytes(step), base.scale_bytes());
            let (dtype, scale_dtype) = base.dtypes();
            let options = QuantizedOptions {
                scales: rule,
                global_scale: (kind == Kind::Nv).then_some(GLOBAL),
                measure: true,
                num_threads: Some(threads),
                tier: Some(tier),
            };
            let report = merge_quantized(
                &mut tensor(&mut weight, dtype, &base.stored_shape(), step),
                &mut tensor(&mut scale, scale_dtype, &base.scale_shape(), 1),
                &deltas,
                &options,
            ).unwrap();
            prop_assert_eq!(&scale, &expected.scale_bytes());
            prop_assert_eq!(&weight, &expected.weight_bytes(step));
            let changed = base.scales.iter().zip(&expected.scales).filter(|(old, new)| old != new).count();
            prop_assert_eq!((report.scales, report.scales_changed), (base.scales.len() as u64, changed as u64));
            prop_assert_eq!(report.statistics.elements, (rows * columns) as u64);
            if is_nothing {
                continue;
            }
            let beyond = values.iter().enumerate().filter(|&(at, value)| {
                kind.is_beyond(value / (expected.scales[base.block_of(at)] * base.factor()))
            });
            prop_assert_eq!(report.saturated, beyond.count() as u64);
            let lost = |at: usize| f64::from(expected.value(at)) - f64::from(values[at]);
            let squares: f64 = (0..values.len()).map(|at| lost(at).powi(2)).sum();
            prop_assert!((report.error_squares - squares).abs() <= 1e-4 * squares + 1e-20);
            let largest = (0..values.len()).map(|at| lost(at).abs()).fold(0.0, f64::max);
            prop_assert!((report.largest_error - largest).abs() <= 1e-5 * largest + 1e-20);
            let differ = (0..values.len()).filter(|&at| expected.value(at).to_bits() != base.value(at).to_bits());
            prop_assert_eq!(report.statistics.changed, differ.count() as u64);
            if size == 0.0 {
                prop_assert_eq!(&expected.scales, &base.scales);
                prop_assert!((0..values.len()).all(|at| expected.value(at) == base.value(at)));
            }
        }
    }
}

/// Merges a small delta into a weight of 4 × 6; the weight and its scales must be as before if that fails.
fn attempt(
    (dtype, shape, code): (DType, [usize; 2], u8),
    (scale_dtype, scale_shape, scale): (DType, &[usize], &[u8]),
    lora_b: f32,
    options: &QuantizedOptions,
) -> Result<infer_accel_lora::QuantizationReport, Error> {
    let (a, b) = ([1.0_f32; 2 * 6], [lora_b; 4 * 2]);
    let delta = Delta {
        lora_a: TensorRef::from_slice(&a, &[2, 6]).unwrap(),
        lora_b: TensorRef::from_slice(&b, &[4, 2]).unwrap(),
        scaling: 1.0,
    };
    let mut codes = vec![3_u8; shape[0] * shape[1]];
    if let Some(last) = codes.last_mut() {
        *last = code;
    }
    let count: usize = scale_shape.iter().product();
    let mut scales = scale.repeat(count);
    let before = (codes.clone(), scales.clone());
    let result = merge_quantized(
        &mut tensor(&mut codes, dtype, &shape, 1),
        &mut tensor(&mut scales, scale_dtype, scale_shape, 1),
        &[delta],
        options,
    );
    assert!(result.is_ok() || (codes, scales) == before, "written before it was refused");
    result
}

#[test]
fn what_does_not_fit_is_refused_and_nothing_is_written() {
    let options = QuantizedOptions::default();
    let one = 1.0_f32.to_le_bytes();
    let refused = |weight, scale: (DType, &[usize], &[u8]), lora_b| {
        attempt(weight, scale, lora_b, &options).unwrap_err().code()
    };
    let float = |value: f32| value.to_le_bytes();
    let fp8 = (DType::F8E4M3, [4, 6], 3);
    assert!(attempt(fp8, (DType::F32, &[4], &one), 1.0, &options).is_ok());
    assert_eq!(
        refused((DType::Bool, [4, 6], 1), (DType::F32, &[1], &one), 1.0).to_owned(),
        "dtype.quantized"
    );
    assert_eq!(refused(fp8, (DType::U8, &[1], &[1]), 1.0), "dtype.scale");
    assert_eq!(refused(fp8, (DType::F64, &[1], &1.0_f64.to_le_bytes()), 1.0), "dtype.scale");
    for shape in [&[3][..], &[2, 2], &[6], &[4, 6], &[0]] {
        assert_eq!(refused(fp8, (DType::F32, shape, &one), 1.0), "shape.scale", "{shape:?}");
    }
    assert_eq!(refused((DType::F8E4M3, [4, 7], 3), (DType::F32, &[1], &one), 1.0), "shape.mismatch");
    assert_eq!(refused((DType::F8E4M3, [5, 6], 3), (DType::F32, &[1], &one), 1.0), "shape.mismatch");
    for scale in [0.0, -0.0, -1.0, f32::NAN, f32::INFINITY, 1e36] {
        assert_eq!(refused(fp8, (DType::F32, &[4], &float(scale)), 1.0), "quantized.scale", "{scale}");
    }
    for (dtype, codes) in [(DType::F8E4M3, &[0x7f, 0xff][..]), (DType::F8E5M2, &[0x7c, 0xfc, 0x7d, 0xff])] {
        for &code in codes {
            let error = attempt((dtype, [4, 6], code), (DType::F32, &[1], &one), 1.0, &options).unwrap_err();
            assert_eq!(error, QuantizedError::NotNumber { row: 3, column: 5 }.into());
        }
    }
    for value in [f32::NAN, f32::INFINITY, -3e38] {
        let error = attempt(fp8, (DType::F32, &[1], &one), value, &options).unwrap_err();
        assert_eq!(error.code(), "quantized.not_finite");
        assert!(error.to_string().contains("weight[0, 0]"), "{error}");
    }
    assert_eq!(ScaleRule::from_name("shrink").unwrap_err().code(), "argument.scales");
}

#[test]
fn scales_of_four_bits_are_held_against_their_formats() {
    let (a, b) = ([1.0_f32; 32], [1.0_f32; 1]);
    let delta = Delta {
        lora_a: TensorRef::from_slice(&a, &[1, 32]).unwrap(),
        lora_b: TensorRef::from_slice(&b, &[1, 1]).unwrap(),
        scaling: 0.0,
    };
    let merge = |dtype, scales: &[u8], global_scale| {
        let mut codes = [0x21_u8; 16];
        let mut scales = scales.to_vec();
        let count = scales.len();
        let options = QuantizedOptions { global_scale, ..QuantizedOptions::default() };
        let report = merge_quantized(
            &mut tensor(&mut codes, DType::U8, &[1, 16], 1),
            &mut tensor(&mut scales, dtype, &[1, count], 1),
            &[delta],
            &options,
        );
        assert_eq!(codes, [0x21; 16]);
        report.map(|_| ()).map_err(|error| error.code())
    };
    // The whole range of powers that leaves room for the largest code.
    for scale in [0, 1, 127, 252] {
        assert_eq!(merge(DType::U8, &[scale], None), Ok(()), "{scale}");
    }
    for scale in [253, 254, 255] {
        assert_eq!(merge(DType::U8, &[scale], None), Err("quantized.scale"), "{scale}");
    }
    assert_eq!(merge(DType::F8E4M3, &[1, 0x7e], Some(1e-3)), Ok(()));
    for scale in [0, 0x80, 0x7f, 0xb8] {
        assert_eq!(merge(DType::F8E4M3, &[0x38, scale], Some(1.0)), Err("quantized.scale"), "{scale}");
    }
    assert_eq!(merge(DType::F8E4M3, &[0x38, 0x38], None), Err("argument.global_scale"));
    assert_eq!(merge(DType::U8, &[127], Some(1.0)), Err("argument.global_scale"));
    assert_eq!(merge(DType::U8, &[127, 127], None), Err("shape.scale"));
}
