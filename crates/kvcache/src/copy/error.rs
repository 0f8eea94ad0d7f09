//! What can be wrong with pages.

use infer_accel_tensor::{DType, ErrorKind};
use thiserror::Error;

/// What can be wrong with pages that are to be copied, blanked or looked through.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum PageError {
    /// Source and target lists that differ in length.
    #[error("{sources} source layers came for {targets} target layers; pass one for each")]
    LayerCount {
        /// Sources that came.
        sources: usize,
        /// Targets that came.
        targets: usize,
    },
    /// An axis that a layer does not have.
    #[error("axis={axis} came, and layer {layer} has {ndim} dimensions; pass an axis from 0 to {}", ndim.saturating_sub(1))]
    PageAxis {
        /// Position of the layer.
        layer: usize,
        /// The axis that came.
        axis: usize,
        /// Dimensions of the layer.
        ndim: usize,
    },
    /// Source and target of different formats.
    #[error(
        "layer {layer} is {source_dtype} at the source and {target_dtype} at the target; a copy converts nothing"
    )]
    PageDType {
        /// Position of the layer.
        layer: usize,
        /// Format of the source.
        source_dtype: DType,
        /// Format of the target.
        target_dtype: DType,
    },
    /// Source and target pages of different shapes.
    #[error(
        "layer {layer} has the shape {source_shape:?} at the source and {target_shape:?} at the target; \
         all but the page axis ({axis}) must be equal"
    )]
    PageShape {
        /// Position of the layer.
        layer: usize,
        /// The page axis.
        axis: usize,
        /// Shape of the source.
        source_shape: Vec<usize>,
        /// Shape of the target.
        target_shape: Vec<usize>,
    },
    /// A packed tensor whose pages are not one to an id.
    #[error("layer {layer} has {pages} pages at the {side} for {ids} ids; pass one page for each id")]
    PackedPages {
        /// Position of the layer.
        layer: usize,
        /// `"source"` or `"target"`.
        side: &'static str,
        /// Its pages.
        pages: usize,
        /// Ids that came.
        ids: usize,
    },
    /// A page id that a layer does not have.
    #[error("row {row} names {side} page {id}; there are pages 0 to {} (of {pages})", *pages as i64 - 1)]
    PageId {
        /// Row of the mapping.
        row: usize,
        /// `"source"` or `"target"`.
        side: &'static str,
        /// The id that came.
        id: i64,
        /// Pages of the smallest layer on that side.
        pages: usize,
    },
    /// A target page that is written twice.
    #[error("rows {first_row} and {row} both name target page {id}; name each target once")]
    RepeatedTarget {
        /// The later row.
        row: usize,
        /// The earlier row.
        first_row: usize,
        /// The page.
        id: usize,
    },
    /// A page that is read and written by one copy.
    #[error(
        "row {row} writes page {id}, which row {source_row} reads from the same array; sources are a snapshot: \
         copy in two calls, or through a spare page"
    )]
    SourceIsTarget {
        /// The row that writes the page.
        row: usize,
        /// The row that reads it.
        source_row: usize,
        /// The page.
        id: usize,
    },
    /// A target that shares memory with a source or with another target.
    #[error(
        "the pages to be written in layer {layer} share memory with pages that the same call reads or writes; \
         sources are a snapshot: copy through memory of its own"
    )]
    PageOverlap {
        /// Position of the target layer.
        layer: usize,
    },
    /// Numbers that cannot be infinite, or bytes that are no bytes.
    #[error(
        "pages of {got} came, to be read as {meant}; pass floats, or uint8 pages and the float format that they hold"
    )]
    NonFiniteDType {
        /// The format of the pages.
        got: DType,
        /// The format that they should hold.
        meant: DType,
    },
    /// Bytes that do not make whole numbers.
    #[error(
        "pages of {bytes} bytes came, to be read as {dtype}; they must be contiguous and hold whole numbers"
    )]
    NonFiniteBytes {
        /// Bytes of a page.
        bytes: usize,
        /// The format.
        dtype: DType,
    },
}

impl PageError {
    /// The class of this error.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::PageId { .. } | Self::RepeatedTarget { .. } => ErrorKind::Id,
            Self::SourceIsTarget { .. } | Self::PageOverlap { .. } => ErrorKind::Overlap,
            Self::PageDType { .. } | Self::NonFiniteDType { .. } => ErrorKind::DType,
            Self::LayerCount { .. }
            | Self::PageShape { .. }
            | Self::NonFiniteBytes { .. }
            | Self::PackedPages { .. } => ErrorKind::Shape,
            Self::PageAxis { .. } => ErrorKind::Argument,
        }
    }

    /// A name for this case that stays the same between releases.
    pub fn code(&self) -> &'static str {
        match self {
            Self::LayerCount { .. } => "shape.layers",
            Self::PageAxis { .. } => "argument.axis",
            Self::NonFiniteDType { .. } => "dtype.nonfinite",
            Self::NonFiniteBytes { .. } => "shape.nonfinite",
            Self::PageDType { .. } => "dtype.pages",
            Self::PageShape { .. } => "shape.pages",
            Self::PackedPages { .. } => "shape.packed_pages",
            Self::PageId { .. } => "id.page",
            Self::RepeatedTarget { .. } => "id.repeated_target",
            Self::SourceIsTarget { .. } => "overlap.source_is_target",
            Self::PageOverlap { .. } => "overlap.pages",
        }
    }
}
