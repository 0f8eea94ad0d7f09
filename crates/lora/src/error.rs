//! What can be wrong with a call.

use infer_accel_tensor::{DType, ErrorKind, TensorError};
use thiserror::Error;

/// Why a merge or an application was refused. Nothing has been written when one of these comes back.
#[derive(Clone, Debug, Error, PartialEq)]
#[non_exhaustive]
pub enum Error {
    /// A tensor that is no matrix.
    #[error("{name} has shape {shape:?}; a matrix is needed: {expected}")]
    NotMatrix {
        /// The argument.
        name: &'static str,
        /// The shape that came.
        shape: Vec<usize>,
        /// What its two dimensions mean.
        expected: &'static str,
    },
    /// Matrices that do not fit each other.
    #[error("{name} has shape {shape:?}, but {other} has shape {other_shape:?}: {rule}")]
    Shape {
        /// The argument.
        name: &'static str,
        /// Its shape.
        shape: Vec<usize>,
        /// The argument that it must fit.
        other: &'static str,
        /// That one's shape.
        other_shape: Vec<usize>,
        /// What must be equal.
        rule: &'static str,
    },
    /// A number format that is not served.
    #[error("{name} is of {dtype}; allowed: float32, float16, bfloat16: convert it first")]
    DType {
        /// The argument.
        name: &'static str,
        /// The format that came.
        dtype: DType,
    },
    /// A target whose format is not its source's.
    #[error("{name} is of {dtype}, but {other} is of {other_dtype}: both must be the same")]
    DTypeMismatch {
        /// The argument.
        name: &'static str,
        /// Its format.
        dtype: DType,
        /// The argument that it must match.
        other: &'static str,
        /// That one's format.
        other_dtype: DType,
    },
    /// A target that shares memory with something that is read.
    #[error(
        "{target} shares memory with {name}, which is read while {target} is written: pass a copy of one of them"
    )]
    Overlap {
        /// The argument that is written.
        target: &'static str,
        /// The argument that is read.
        name: &'static str,
    },
    /// A scaling that no result could come from.
    #[error("scaling={scaling} came; it must be a finite number that float32 can hold")]
    Scaling {
        /// The number that came.
        scaling: f64,
    },
    /// What is wrong with a view or a setting of any part.
    #[error(transparent)]
    Tensor(#[from] TensorError),
}

impl Error {
    /// The class of this error.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotMatrix { .. } | Self::Shape { .. } => ErrorKind::Shape,
            Self::DType { .. } | Self::DTypeMismatch { .. } => ErrorKind::DType,
            Self::Overlap { .. } => ErrorKind::Overlap,
            Self::Scaling { .. } => ErrorKind::Argument,
            Self::Tensor(error) => error.kind(),
        }
    }

    /// A name for this case that stays the same between releases.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotMatrix { .. } => "shape.matrix",
            Self::Shape { .. } => "shape.mismatch",
            Self::DType { .. } => "dtype.unsupported",
            Self::DTypeMismatch { .. } => "dtype.mismatch",
            Self::Overlap { .. } => "overlap.adapter",
            Self::Scaling { .. } => "argument.scaling",
            Self::Tensor(error) => error.code(),
        }
    }
}
