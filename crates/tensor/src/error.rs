//! What can be wrong with a tensor, and how callers in other languages see it.

use thiserror::Error;

use crate::DType;

/// The class of an error: the binding maps each to one Python exception.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Shapes that do not fit each other (`ShapeError`).
    Shape,
    /// A number format that an operation does not take (`DTypeError`).
    DType,
    /// Memory on another device (`DeviceError`).
    Device,
    /// Strides or alignment that an operation cannot serve (`LayoutError`).
    Layout,
    /// A target that must not be written (`ReadOnlyError`).
    ReadOnly,
    /// A target that shares memory with a source (`OverlapError`).
    Overlap,
    /// A tensor whose gradient is being recorded (`GradientError`).
    Gradient,
    /// Any other argument that is not allowed (`ArgumentError`).
    Argument,
    /// An id that is out of range, negative or named twice (`IdError`).
    Id,
    /// No free block is left (`OutOfBlocksError`).
    OutOfBlocks,
    /// A store of adapters that has no room (`StoreFullError`).
    StoreFull,
    /// A handle whose block was freed since (`StaleBlockError`).
    StaleBlock,
    /// An adapter that must not be used (`AdapterError`).
    Adapter,
    /// A tokenizer file or text that cannot be served (`TokenizerError`).
    Tokenizer,
    /// Stored bytes that are not what was stored (`IntegrityError`).
    Integrity,
    /// A directory that is no checkpoint, or must not become one (`CheckpointError`).
    Checkpoint,
    /// A directory, file or device that cannot serve (`StorageError`).
    Storage,
    /// Ctrl-C was pressed (`KeyboardInterrupt`).
    Interrupted,
    /// A defect of this library (`InternalError`).
    Internal,
}

/// What can be wrong with a view or with the settings of a call.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum TensorError {
    /// More dimensions than a view can hold.
    #[error("a tensor of {got} dimensions came; at most {max} are allowed: reshape it to fewer")]
    TooManyDimensions {
        /// Dimensions that came.
        got: usize,
        /// Dimensions that are allowed.
        max: usize,
    },
    /// Shape and strides differ in length.
    #[error("a shape of {shape} dimensions came with {strides} strides; both must be as long as each other")]
    StrideCount {
        /// Length of the shape.
        shape: usize,
        /// Length of the strides.
        strides: usize,
    },
    /// The elements of a shape, or the bytes they span, do not fit into the address space.
    #[error("the shape {shape:?} spans more bytes than an address can name")]
    TooLarge {
        /// The shape that came.
        shape: Vec<usize>,
    },
    /// A slice that is not as long as its shape says.
    #[error("{got} elements came for the shape {shape:?}, which holds {expected}")]
    ElementCount {
        /// Elements in the slice.
        got: usize,
        /// Elements that the shape asks for.
        expected: usize,
        /// The shape that came.
        shape: Vec<usize>,
    },
    /// Elements that lie outside the bytes they were said to lie in.
    #[error("{shape:?} of {dtype} from element {offset} on do not fit into {bytes} bytes")]
    OutOfBytes {
        /// Bytes that there are.
        bytes: usize,
        /// The format.
        dtype: DType,
        /// The element at which the first of them was said to lie.
        offset: usize,
        /// The shape that came.
        shape: Vec<usize>,
    },
    /// An axis that a tensor does not have.
    #[error("axis {axis} came for a tensor of {ndim} dimensions; the axes go from 0 to {}", ndim.saturating_sub(1))]
    Axis {
        /// The axis that came.
        axis: usize,
        /// Dimensions of the tensor.
        ndim: usize,
    },
    /// An index outside an axis.
    #[error("index {index} came for axis {axis}, which has {len} entries")]
    Index {
        /// The index that came.
        index: usize,
        /// The axis.
        axis: usize,
        /// Entries of the axis.
        len: usize,
    },
    /// A null pointer for a tensor that has elements.
    #[error("a null address came for a tensor of {bytes} bytes")]
    NullAddress {
        /// Bytes of the tensor.
        bytes: usize,
    },
    /// A writable view in which two indices name one element.
    #[error(
        "shape {shape:?} with strides {strides:?} names elements more than once; a target must not: copy it first"
    )]
    SelfOverlap {
        /// The shape that came.
        shape: Vec<usize>,
        /// The strides that came, in elements.
        strides: Vec<isize>,
    },
    /// A thread count of zero.
    #[error("num_threads=0 came; pass 1 or more, or None for the default ({default})")]
    ZeroThreads {
        /// What None would mean.
        default: usize,
    },
}

impl TensorError {
    /// The class of this error.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::TooManyDimensions { .. }
            | Self::ElementCount { .. }
            | Self::TooLarge { .. }
            | Self::OutOfBytes { .. } => ErrorKind::Shape,
            Self::StrideCount { .. } | Self::NullAddress { .. } | Self::SelfOverlap { .. } => {
                ErrorKind::Layout
            }
            Self::Axis { .. } | Self::ZeroThreads { .. } => ErrorKind::Argument,
            Self::Index { .. } => ErrorKind::Id,
        }
    }

    /// A name for this case that stays the same between releases.
    pub fn code(&self) -> &'static str {
        match self {
            Self::TooManyDimensions { .. } => "shape.dimensions",
            Self::ElementCount { .. } => "shape.elements",
            Self::TooLarge { .. } => "shape.too_large",
            Self::OutOfBytes { .. } => "shape.bytes",
            Self::StrideCount { .. } => "layout.strides",
            Self::NullAddress { .. } => "layout.null",
            Self::SelfOverlap { .. } => "layout.self_overlap",
            Self::Axis { .. } => "argument.axis",
            Self::ZeroThreads { .. } => "argument.num_threads",
            Self::Index { .. } => "id.range",
        }
    }
}
