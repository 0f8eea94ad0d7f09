//! Merging an adapter into a weight of codes.

use infer_accel_lora::{self as core, Delta, QuantizedOptions, ScaleRule};
use pyo3::prelude::*;

use super::multiplication_bytes;
use crate::errors::NativeError;
use crate::numbers::Count;
use crate::run::run;
use crate::tensor::TensorArg;

/// What a merge into codes did.
#[pyclass(frozen, get_all, module = "infer_accel._native.lora")]
pub(super) struct QuantizationReport {
    elements: u64,
    changed: u64,
    delta_norm: f64,
    survived: Option<f64>,
    largest_delta: f64,
    saturated: u64,
    scales: u64,
    scales_changed: u64,
    rms_error: f64,
    largest_error: f64,
}

impl From<core::QuantizationReport> for QuantizationReport {
    fn from(report: core::QuantizationReport) -> Self {
        let statistics = report.statistics;
        Self {
            elements: statistics.elements,
            changed: statistics.changed,
            delta_norm: statistics.norm(),
            survived: statistics.survived(),
            largest_delta: statistics.largest_delta,
            saturated: report.saturated,
            scales: report.scales,
            scales_changed: report.scales_changed,
            rms_error: report.rms_error(),
            largest_error: report.largest_error,
        }
    }
}

/// Adds ``scaling · lora_B @ lora_A`` to a weight of codes, in place; tells what it did if that is asked for.
#[pyfunction]
#[pyo3(signature = (
    weight, weight_scale, lora_A, lora_B, *, scaling = 1.0, global_scale = None, scales = "grow", return_report = false,
    num_threads = None
))]
#[expect(non_snake_case, reason = "the names of the field, which callers pass as keywords")]
#[expect(clippy::too_many_arguments, reason = "each is a keyword of the Python function")]
pub(super) fn merge_quantized(
    py: Python<'_>,
    weight: TensorArg<'_>,
    weight_scale: TensorArg<'_>,
    lora_A: TensorArg<'_>,
    lora_B: TensorArg<'_>,
    scaling: f64,
    global_scale: Option<f64>,
    scales: &str,
    return_report: bool,
    num_threads: Option<Count>,
) -> PyResult<Option<QuantizationReport>> {
    let delta = Delta {
        lora_a: lora_A.view().map_err(NativeError::from)?,
        lora_b: lora_B.view().map_err(NativeError::from)?,
        scaling,
    };
    let options = QuantizedOptions {
        scales: ScaleRule::from_name(scales).map_err(NativeError::from)?,
        global_scale: global_scale.map(|scale| scale as f32),
        measure: return_report,
        num_threads: num_threads.map(usize::from),
        tier: None,
    };
    let mut target = weight.view_mut()?;
    let mut scale = weight_scale.view_mut()?;
    let columns = delta.lora_a.shape().last().copied().unwrap_or(0);
    let work = target.byte_len() * 4 + 2 * multiplication_bytes(&delta.lora_b, columns);
    run(py, work, || {
        let report = core::merge_quantized(&mut target, &mut scale, &[delta], &options)?;
        Ok::<_, core::Error>(return_report.then(|| report.into()))
    })
}
