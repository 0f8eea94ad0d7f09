//! What can be wrong with a quantized weight.

use infer_accel_tensor::{DType, ErrorKind};
use thiserror::Error;

/// Why a quantized weight was refused. Nothing has been written when one of these comes back.
#[derive(Clone, Debug, Error, PartialEq)]
#[non_exhaustive]
pub enum QuantizedError {
    /// A weight of no codes.
    #[error(
        "weight is of {dtype}, but came with a weight_scale; allowed then: float8_e4m3fn, float8_e5m2, int8, and uint8 for \
         two codes of four bits a byte"
    )]
    Coding {
        /// The format that came.
        dtype: DType,
    },
    /// Scales of a format that those codes do not have.
    #[error(
        "weight_scale is of {scale_dtype} for a weight of {dtype}; allowed: {}",
        if *dtype == DType::U8 { "uint8 (MXFP4), float8_e4m3fn (NVFP4)" } else { "float32, float16, bfloat16" }
    )]
    ScaleDType {
        /// The weight's format.
        dtype: DType,
        /// The format that came.
        scale_dtype: DType,
    },
    /// Scales that fit no layout.
    #[error(
        "weight_scale has shape {shape:?}, which does not fit a weight of {weight:?} elements; allowed: {}",
        if *is_packed {
            "[out, in / 32] for MXFP4, [out, in / 16] for NVFP4"
        } else {
            "one number, [out] or [out, 1], or [⌈out / 128⌉, ⌈in / 128⌉]"
        }
    )]
    ScaleShape {
        /// The shape that came.
        shape: Vec<usize>,
        /// The weight's, in elements.
        weight: [usize; 2],
        /// Whether a byte holds two codes.
        is_packed: bool,
    },
    /// A scale that is none.
    #[error(
        "weight_scale[{row}, {column}] is {scale:e}; a scale must be above zero and at most 2^100: quantize the weight again, \
         or fetch the file again"
    )]
    Scale {
        /// Its row among the scales.
        row: usize,
        /// Its column among the scales.
        column: usize,
        /// What it is.
        scale: f32,
    },
    /// NVFP4 without a scale of the whole tensor, or such a scale without NVFP4.
    #[error(
        "{}",
        if *is_missing {
            "scales of float8_e4m3fn (NVFP4) came without global_scale: pass the number that all scales are multiplied by"
        } else {
            "a global_scale came for a weight that has none: leave it out"
        }
    )]
    GlobalScale {
        /// Whether it was missing.
        is_missing: bool,
    },
    /// A scale of the whole tensor that is none.
    #[error("global_scale={scale} came; it must be finite, above zero and not subnormal in float32")]
    GlobalScaleValue {
        /// The number that came.
        scale: f32,
    },
    /// A code that stands for no number.
    #[error(
        "weight[{row}, {column}] is not a finite number: nothing can be added to it; fetch the file again, or quantize it again"
    )]
    NotNumber {
        /// Its row.
        row: usize,
        /// Its column.
        column: usize,
    },
    /// A sum that no code can stand for.
    #[error(
        "weight[{row}, {column}] would become {value}, which no code stands for: look at the adapter and its scaling"
    )]
    NotFinite {
        /// Its row.
        row: usize,
        /// Its column.
        column: usize,
        /// What came out.
        value: f32,
    },
    /// A stored tensor whose codes are not understood.
    #[error(
        "it is stored as {stored}, and how it is quantized is not known: {problem}; merge into an unquantized checkpoint and \
         quantize that, or leave its module out"
    )]
    Scheme {
        /// The format.
        stored: &'static str,
        /// What is not understood.
        problem: String,
    },
    /// A name of no rule.
    #[error("scales={name:?} came; allowed: \"grow\", \"keep\"")]
    Rule {
        /// The name that came.
        name: String,
    },
}

impl QuantizedError {
    /// The class of this error.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Coding { .. } | Self::ScaleDType { .. } | Self::Scheme { .. } => ErrorKind::DType,
            Self::ScaleShape { .. } => ErrorKind::Shape,
            Self::Scale { .. } | Self::NotNumber { .. } => ErrorKind::Integrity,
            Self::GlobalScale { .. }
            | Self::GlobalScaleValue { .. }
            | Self::NotFinite { .. }
            | Self::Rule { .. } => ErrorKind::Argument,
        }
    }

    /// A name for this case that stays the same between releases.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Coding { .. } => "dtype.quantized",
            Self::ScaleDType { .. } => "dtype.scale",
            Self::ScaleShape { .. } => "shape.scale",
            Self::Scale { .. } => "quantized.scale",
            Self::GlobalScale { .. } | Self::GlobalScaleValue { .. } => "argument.global_scale",
            Self::Scheme { .. } => "quantized.scheme",
            Self::NotNumber { .. } => "quantized.not_a_number",
            Self::NotFinite { .. } => "quantized.not_finite",
            Self::Rule { .. } => "argument.scales",
        }
    }
}
