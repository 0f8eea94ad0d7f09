//! What can be wrong with a call.

use std::path::{Path, PathBuf};

use crate::{QuantizedError, ServingError};
use infer_accel_tensor::{DType, ErrorKind, TensorError};
use thiserror::Error;

use crate::problem::{Problem, summary};
use crate::safetensors::StoredType;

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
    /// Settings that adapters cannot be combined with.
    #[error("adapters cannot be combined: {}", problems.join("; "))]
    CombineArgument {
        /// Everything that is wrong.
        problems: Vec<String>,
    },
    /// Adapters that do not go together.
    #[error("adapters cannot be combined: {}", crate::problem::summary(problems))]
    Combine {
        /// Everything that is wrong.
        problems: Vec<crate::problem::Problem>,
    },
    /// A long call was asked to stop.
    #[error(transparent)]
    Interrupted(#[from] infer_accel_tensor::threads::Interrupted),
    /// A scaling that no result could come from.
    #[error("scaling={scaling} came; it must be a finite number that float32 can hold")]
    Scaling {
        /// The number that came.
        scaling: f64,
    },
    /// A layer that was refused.
    #[error("layer {layer}: {error}")]
    Layer {
        /// Its place in the list.
        layer: usize,
        /// Why.
        error: Box<Error>,
    },
    /// Layers that share memory.
    #[error(
        "the weight of layer {target} shares memory with {name} of layer {layer}: each weight may come once, and apart \
         from all adapters"
    )]
    LayerOverlap {
        /// The layer whose weight is written.
        target: usize,
        /// The other argument.
        name: &'static str,
        /// The layer of the other argument.
        layer: usize,
    },
    /// A name of no rounding.
    #[error("rounding={name:?} came; allowed: \"nearest\", \"stochastic\"")]
    Rounding {
        /// The name that came.
        name: String,
    },
    /// Stochastic rounding without a seed, or a seed without stochastic rounding.
    #[error(
        "{}",
        if *is_missing {
            "rounding=\"stochastic\" came without a seed: pass seed=, so that the merge can be repeated"
        } else {
            "a seed came with rounding=\"nearest\", which draws no numbers: leave it out, or pass rounding=\"stochastic\""
        }
    )]
    Seed {
        /// Whether it was missing.
        is_missing: bool,
    },
    /// Bytes that are no residue, or a damaged one.
    #[error("these bytes are no residue: {problem}; take the bytes that Residue.to_bytes gave")]
    ResidueFormat {
        /// What is wrong with them.
        problem: &'static str,
    },
    /// A residue of another revision of the arithmetic.
    #[error(
        "the residue was made by kernel revision {found}, this is revision {expected}: undo the merge with a release of \
         that revision"
    )]
    ResidueRevision {
        /// The residue's.
        found: u32,
        /// This library's.
        expected: u32,
    },
    /// A residue of the merge of other adapters.
    #[error(
        "the adapters have digest {found:016x}, but those that were merged {expected:016x}: pass the same matrices, \
         dtypes, scalings and order as for the merge"
    )]
    ResidueAdapter {
        /// The digest of those that came.
        found: u64,
        /// The digest of those that were merged.
        expected: u64,
    },
    /// A residue of another weight.
    #[error(
        "the weight has digest {found:016x}, but the merged one had {expected:016x}: it was changed since the merge, or \
         is another one"
    )]
    ResidueWeight {
        /// The digest of the one that came.
        found: u64,
        /// The digest of the merged one.
        expected: u64,
    },
    /// A weight of another shape than the residue's, or more or fewer rows of it.
    #[error("a weight of shape {shape:?} came, but the residue is of one of {expected:?}")]
    ResidueShape {
        /// The shape that came; of slabs, all rows so far.
        shape: [usize; 2],
        /// The residue's.
        expected: [usize; 2],
    },
    /// Formats other than the residue's.
    #[error(
        "undoing from {merged} to {base} was asked for, but the merge went from {expected_base} to {expected_merged}"
    )]
    ResidueDType {
        /// The format of the target.
        base: DType,
        /// The format of the merged weight.
        merged: DType,
        /// The format of the weight before the merge.
        expected_base: DType,
        /// The format after it.
        expected_merged: DType,
    },
    /// A slab that does not follow the one before it.
    #[error(
        "a slab of {rows} rows from row {first_row} on came, but the next of {all_rows} rows is {next_row}: slabs come \
         from top to bottom, whole rows, of one width and format"
    )]
    ResidueSlab {
        /// The slab's first row.
        first_row: usize,
        /// The slab's rows.
        rows: usize,
        /// The row that is wanted.
        next_row: usize,
        /// Rows of the weight.
        all_rows: usize,
    },
    /// A residue of a merge that scales rows.
    #[error("a merge with magnitudes (DoRA) has no residue: keep the whole weight instead")]
    ResidueMagnitude,
    /// An adapter that must not be used.
    #[error("{} is refused: {}", path.display(), summary(problems))]
    Adapter {
        /// Where it lies.
        path: PathBuf,
        /// Everything that is wrong with it.
        problems: Vec<Problem>,
    },
    /// A file of weights that cannot be read.
    #[error("{} is refused: {problem}", path.display())]
    File {
        /// Where it lies.
        path: PathBuf,
        /// What is wrong with it.
        problem: Problem,
    },
    /// A format in which weights are stored, but not merged.
    #[error(
        "it is stored as {dtype}; deltas can be added to F32, F16 and BF16: convert it first, or leave its module out"
    )]
    StoredDType {
        /// The format.
        dtype: StoredType,
    },
    /// What is wrong with a stack of adapters, with a mixed batch, or with a store.
    #[error(transparent)]
    Serving(#[from] ServingError),
    /// What is wrong with a quantized weight.
    #[error(transparent)]
    Quantized(#[from] QuantizedError),
    /// What is wrong with a view or a setting of any part.
    #[error(transparent)]
    Tensor(#[from] TensorError),
}

impl Error {
    pub(crate) fn adapter(path: &Path, problems: Vec<Problem>) -> Self {
        Self::Adapter { path: path.to_owned(), problems }
    }

    pub(crate) fn file(path: &Path, problem: Problem) -> Self {
        Self::File { path: path.to_owned(), problem }
    }

    /// The class of this error.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotMatrix { .. } | Self::Shape { .. } | Self::ResidueShape { .. } => ErrorKind::Shape,
            Self::DType { .. }
            | Self::DTypeMismatch { .. }
            | Self::ResidueDType { .. }
            | Self::StoredDType { .. } => ErrorKind::DType,
            Self::Overlap { .. } | Self::LayerOverlap { .. } => ErrorKind::Overlap,
            Self::Layer { error, .. } => error.kind(),
            Self::Interrupted(_) => ErrorKind::Interrupted,
            Self::CombineArgument { .. }
            | Self::Scaling { .. }
            | Self::Rounding { .. }
            | Self::Seed { .. }
            | Self::ResidueSlab { .. }
            | Self::ResidueMagnitude => ErrorKind::Argument,
            Self::File { .. }
            | Self::ResidueFormat { .. }
            | Self::ResidueRevision { .. }
            | Self::ResidueAdapter { .. }
            | Self::ResidueWeight { .. } => ErrorKind::Integrity,
            Self::Adapter { .. } | Self::Combine { .. } => ErrorKind::Adapter,
            Self::Serving(error) => error.kind(),
            Self::Quantized(error) => error.kind(),
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
            Self::CombineArgument { .. } => "argument.combine",
            Self::Combine { .. } => "adapter.combine",
            Self::Interrupted(_) => "interrupted",
            Self::Scaling { .. } => "argument.scaling",
            Self::Layer { error, .. } => error.code(),
            Self::LayerOverlap { .. } => "overlap.layers",
            Self::Rounding { .. } => "argument.rounding",
            Self::Seed { .. } => "argument.seed",
            Self::ResidueFormat { .. } => "residue.format",
            Self::ResidueRevision { .. } => "residue.revision",
            Self::ResidueAdapter { .. } => "residue.adapter",
            Self::ResidueWeight { .. } => "residue.weight",
            Self::ResidueShape { .. } => "residue.shape",
            Self::ResidueDType { .. } => "residue.dtype",
            Self::ResidueSlab { .. } => "residue.slab",
            Self::ResidueMagnitude => "residue.magnitude",
            Self::Adapter { problems, .. } => {
                problems.first().map_or("adapter", |problem| problem.code.code())
            }
            Self::File { problem, .. } => problem.code.code(),
            Self::StoredDType { .. } => "dtype.stored",
            Self::Serving(error) => error.code(),
            Self::Quantized(error) => error.code(),
            Self::Tensor(error) => error.code(),
        }
    }
}
