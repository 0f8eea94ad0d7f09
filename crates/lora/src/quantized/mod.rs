//! Merging into weights of eight or four bits with scales.

mod error;
mod scheme;

use crate::Error;
use crate::check::{Named, Options, apart, matrix, same};
use crate::kernels::{CallSettings, CodeCall, CodeFault};
use crate::slab::Delta;
use crate::statistics::MergeStatistics;
use infer_accel_tensor::TensorMut;
use infer_accel_tensor::simd::Tier;
use std::ops::AddAssign;

pub use error::QuantizedError;
pub(crate) use scheme::{BLOCK, Scheme};

/// What becomes of scales.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ScaleRule {
    /// A scale stays as long as every element of its block has a code at it. One that is too small is doubled until that is
    /// so: floating-point codes then still lie on the grid that they lay on, but for the smallest, and a power
    /// of two stays one. Integer codes get the scale at which the largest magnitude of the block is 127.
    #[default]
    Grow,
    /// Scales stay. What grows beyond the last code gets that one.
    Keep,
}

impl ScaleRule {
    /// The rule of a name, `grow` or `keep`.
    ///
    /// # Errors
    ///
    /// [`QuantizedError::Rule`] for another name.
    pub fn from_name(name: &str) -> Result<Self, Error> {
        match name {
            "grow" => Ok(Self::Grow),
            "keep" => Ok(Self::Keep),
            _ => Err(QuantizedError::Rule { name: name.to_owned() }.into()),
        }
    }
}

/// How [`merge_quantized`] runs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct QuantizedOptions {
    /// What becomes of scales.
    pub scales: ScaleRule,
    /// NVFP4: what all scales are multiplied by. Not written.
    pub global_scale: Option<f32>,
    /// Whether to measure what the merge did; it costs about a third of a merge of a small rank. Without it only the counts
    /// of scales and of saturated elements are told.
    pub measure: bool,
    /// The most threads to use; `None` is the default. Results do not depend on it.
    pub num_threads: Option<usize>,
    /// The highest instruction tier to use; `None` is the processor's. Results do not depend on it.
    pub tier: Option<Tier>,
}

/// What a merge into a quantized weight did, and what quantizing cost.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct QuantizationReport {
    /// What the merge did, in numbers, not in codes.
    pub statistics: MergeStatistics,
    /// Elements beyond the last code, which got that one.
    pub saturated: u64,
    /// Scales of the weight.
    pub scales: u64,
    /// Scales that are others than before.
    pub scales_changed: u64,
    /// Sum of the squares of the differences between what is stored and the sum before it was encoded.
    pub error_squares: f64,
    /// Largest magnitude of such a difference.
    pub largest_error: f64,
}

impl QuantizationReport {
    /// The root of the mean square of what encoding lost; 0 for a weight without elements.
    pub fn rms_error(&self) -> f64 {
        (self.error_squares / self.statistics.elements.max(1) as f64).sqrt()
    }
}

impl AddAssign for QuantizationReport {
    fn add_assign(&mut self, other: Self) {
        self.statistics += other.statistics;
        self.saturated += other.saturated;
        self.scales += other.scales;
        self.scales_changed += other.scales_changed;
        self.error_squares += other.error_squares;
        self.largest_error = self.largest_error.max(other.largest_error);
    }
}

/// Adds deltas to a weight of codes, in place, and to its scales where the codes would not reach.
///
/// | `weight` | `scale` | what it is |
/// |---|---|---|
/// | `[out, in]` of `float8_e4m3fn`, `float8_e5m2` or int8 | float32, float16 or bfloat16: one number (any shape of one element), one a row (`[out]` or `[out, 1]`), or one a block of 128 × 128 (`[⌈out / 128⌉, ⌈in / 128⌉]`) | a code times its scale |
/// | `[out, in / 2]` of uint8 | `[out, in / 32]` of uint8 | MXFP4: two codes of E2M1 a byte, the lower four bits first; E8M0 scales of 32 |
/// | `[out, in / 2]` of uint8 | `[out, in / 16]` of `float8_e4m3fn`, and [`global_scale`](QuantizedOptions::global_scale) | NVFP4: the same codes; scales of 16 |
///
/// # Exactness
///
/// Defined to the bit, whatever the instruction tier and the number of threads:
///
/// ```text
/// before = value_of(code) · scale                     # binary32, as all that follows; NVFP4: scale = its scale · global
/// value = fma(scaling, sum, before)                   # for each delta; sum as in [`merge_weights`](crate::merge_weights)
/// scale' = scale, or the one that [`ScaleRule::Grow`] says
/// code' = nearest(value / scale')                     # ties to even
/// ```
///
/// An element is *beyond* a scale where `value / scale` would round to a number behind the last code if there were more: above
/// 464 in E4M3, from 61440 on in E5M2, from 7 on in E2M1, and outside −128 … 127 when rounded in int8. A scale that
/// cannot grow further in its format stays, and elements beyond it get the last code.
///
/// With nothing to add every bit stays. A delta of zeros leaves every code and every scale as they are, except
/// that −0 becomes +0 (IEEE 754), as long as products of codes and scales are not subnormal numbers.
///
/// # Cost
///
/// Two sweeps of the work of a merge, as nothing is written before all of it is known to be finite; memory for one number a
/// scale, where blocks are larger than 256 elements of a row, otherwise none.
///
/// # Errors
///
/// [`Error`] before anything is written: shapes and formats; a scale that is not above zero, or not finite; a code that is
/// not a number; a sum that is not finite; memory that is shared.
///
/// # Examples
///
/// ```
/// use infer_accel_lora::{Delta, QuantizedOptions, merge_quantized};
/// use infer_accel_tensor::{TensorMut, TensorRef};
///
/// let (mut weight, mut scale) = ([10_i8, -20, 100], [0.5_f32]);
/// let delta = Delta {
///     lora_a: TensorRef::from_slice(&[1.0_f32, 2.0, 77.0], &[1, 3])?,
///     lora_b: TensorRef::from_slice(&[1.0_f32], &[1, 1])?,
///     scaling: 1.0,
/// };
/// let report = merge_quantized(
///     &mut TensorMut::from_slice(&mut weight, &[1, 3])?,
///     &mut TensorMut::from_slice(&mut scale, &[1])?,
///     &[delta],
///     &QuantizedOptions::default(),
/// )?;
/// // 5 + 1, −10 + 2 and 50 + 77 = 127, which has no code at a scale of one half.
/// assert_eq!((weight, scale), ([6, -8, 127], [1.0]));
/// assert_eq!((report.saturated, report.scales_changed), (0, 1));
/// # Ok::<(), infer_accel_lora::Error>(())
/// ```
pub fn merge_quantized(
    weight: &mut TensorMut<'_>,
    scale: &mut TensorMut<'_>,
    deltas: &[Delta<'_>],
    options: &QuantizedOptions,
) -> Result<QuantizationReport, Error> {
    let checked = check(weight, scale, deltas, options)?;
    let Checked { scheme, scalings, settings } = &checked;
    let call = CodeCall::new(weight, scale, scheme, deltas, scalings, settings);
    if call.is_nothing() {
        call.check_scales().map_err(|fault| scheme.refusal(fault))?;
        let statistics = MergeStatistics { elements: call.elements(), ..MergeStatistics::default() };
        return Ok(QuantizationReport {
            statistics,
            scales: call.scale_count(),
            ..QuantizationReport::default()
        });
    }
    let mut report = call.run(options.scales, options.measure).map_err(|fault| scheme.refusal(fault))?;
    report.statistics.elements = call.elements();
    Ok(report)
}

/// What a call needs once its arguments fit.
pub(crate) struct Checked {
    pub(crate) scheme: Scheme,
    pub(crate) scalings: Vec<f32>,
    pub(crate) settings: CallSettings,
}

/// Refuses what does not fit.
pub(crate) fn check(
    weight: &TensorMut<'_>,
    scale: &TensorMut<'_>,
    deltas: &[Delta<'_>],
    options: &QuantizedOptions,
) -> Result<Checked, Error> {
    let call = Options { scaling: 1.0, num_threads: options.num_threads, tier: options.tier };
    let settings = call.settings()?;
    let (target, scales) = (weight.as_ref(), scale.as_ref());
    let weight_named = Named { name: "weight", tensor: &target };
    let scale_named = Named { name: "weight_scale", tensor: &scales };
    let scheme = Scheme::of(&target, &scales, options.global_scale)?;
    let [rows, columns] = scheme.shape;
    let mut scalings = Vec::with_capacity(deltas.len());
    for delta in deltas {
        scalings.push(delta.checked_scaling()?);
        let a = Named { name: "lora_A", tensor: &delta.lora_a };
        let b = Named { name: "lora_B", tensor: &delta.lora_b };
        let (rank, a_features) = matrix(a, "[rank, in_features]")?;
        let (b_features, b_rank) = matrix(b, "[out_features, rank]")?;
        let rule = "lora_A [rank, in_features] and lora_B [out_features, rank] must have the same rank";
        same((rank, b_rank), a, b, rule)?;
        let rule = "both must have the same in_features (two for each byte where codes have four bits)";
        same((a_features, columns), a, weight_named, rule)?;
        same(
            (b_features, rows),
            b,
            weight_named,
            "both must have the same out_features (the first dimension)",
        )?;
        for written in [weight_named, scale_named] {
            apart(written, a)?;
            apart(written, b)?;
        }
    }
    apart(weight_named, scale_named)?;
    Ok(Checked { scheme, scalings, settings })
}

impl Scheme {
    /// What is told about a fault.
    pub(crate) fn refusal(&self, fault: CodeFault) -> Error {
        match fault {
            CodeFault::Scale { index, scale } => {
                let across = self.counts[1].max(1);
                QuantizedError::Scale { row: index / across, column: index % across, scale }.into()
            }
            CodeFault::Element(fault) => match fault.value {
                Some(value) => {
                    QuantizedError::NotFinite { row: fault.row, column: fault.column, value }.into()
                }
                None => QuantizedError::NotNumber { row: fault.row, column: fault.column }.into(),
            },
        }
    }
}
