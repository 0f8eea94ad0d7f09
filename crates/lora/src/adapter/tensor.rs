//! Tensors of an adapter: owned, read once, shared without a copy.

use std::sync::{Arc, OnceLock};

use infer_accel_tensor::{Buffer, DType, TensorError, TensorRef};

use super::finite::{self, Seen};

/// A contiguous tensor that shares its memory with the other tensors of its file. Cloning copies nothing.
#[derive(Clone, Debug)]
pub struct Tensor {
    memory: Arc<Buffer>,
    /// Byte at which the first element lies.
    start: usize,
    byte_len: usize,
    dtype: DType,
    shape: Vec<usize>,
    /// What a look at the elements told, once somebody has looked.
    seen: OnceLock<Seen>,
}

impl Tensor {
    /// A tensor of its own from bytes, which are copied.
    pub fn from_bytes(bytes: &[u8], dtype: DType, shape: &[usize]) -> Result<Self, TensorError> {
        let too_large = || TensorError::TooLarge { shape: shape.to_vec() };
        let mut memory = Buffer::zeroed(bytes.len()).ok_or_else(too_large)?;
        memory.copy_from_slice(bytes);
        Self::from_buffer(Arc::new(memory), 0, dtype, shape)
    }

    /// A tensor of float32 numbers.
    pub fn from_f32(values: &[f32], shape: &[usize]) -> Result<Self, TensorError> {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Self::from_bytes(&bytes, DType::F32, shape)
    }

    /// A tensor that lies in `memory`, from its byte `start` on.
    pub fn from_buffer(
        memory: Arc<Buffer>,
        start: usize,
        dtype: DType,
        shape: &[usize],
    ) -> Result<Self, TensorError> {
        let elements = shape.iter().try_fold(1_usize, |product, &extent| product.checked_mul(extent));
        let byte_len = elements.and_then(|elements| elements.checked_mul(dtype.size()));
        let byte_len = byte_len.ok_or_else(|| TensorError::TooLarge { shape: shape.to_vec() })?;
        if start.checked_add(byte_len).is_none_or(|end| end > memory.len()) {
            let offset = start / dtype.size();
            return Err(TensorError::OutOfBytes {
                bytes: memory.len(),
                dtype,
                offset,
                shape: shape.to_vec(),
            });
        }
        Ok(Self { memory, start, byte_len, dtype, shape: shape.to_vec(), seen: OnceLock::new() })
    }

    /// The number format.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Entries of each axis.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.byte_len / self.dtype.size()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.byte_len == 0
    }

    /// The elements' bytes, in row-major order, little-endian. They need not be aligned for the format.
    pub fn bytes(&self) -> &[u8] {
        self.memory.get(self.start..self.start + self.byte_len).unwrap_or_default()
    }

    /// The memory that this tensor shares, and the byte of it at which the tensor begins.
    pub fn memory(&self) -> (&Arc<Buffer>, usize) {
        (&self.memory, self.start)
    }

    /// The same elements in another shape.
    pub fn reshaped(&self, shape: &[usize]) -> Result<Self, TensorError> {
        let mut same = Self::from_buffer(Arc::clone(&self.memory), self.start, self.dtype, shape)?;
        same.seen.clone_from(&self.seen);
        if same.byte_len == self.byte_len {
            return Ok(same);
        }
        Err(TensorError::ElementCount { got: self.len(), expected: same.len(), shape: shape.to_vec() })
    }

    pub(super) fn with_seen(mut self, seen: Seen) -> Self {
        self.seen = OnceLock::from(seen);
        self
    }

    /// What a look at the elements tells; they are looked at once.
    pub(super) fn seen(&self) -> Seen {
        *self.seen.get_or_init(|| finite::scan(self.bytes(), self.dtype))
    }

    /// An element as a number, in row-major order; 0 beyond the end. Float formats of 16 and 32 bits only.
    pub(super) fn number(&self, index: usize) -> f64 {
        let size = self.dtype.size();
        let element = index.checked_mul(size).and_then(|start| self.bytes().get(start..start + size));
        match (self.dtype, element) {
            (DType::F32, Some(&[a, b, c, d])) => f64::from(f32::from_le_bytes([a, b, c, d])),
            (DType::F16, Some(&[a, b])) => half::f16::from_le_bytes([a, b]).to_f64(),
            (DType::BF16, Some(&[a, b])) => half::bf16::from_le_bytes([a, b]).to_f64(),
            _ => 0.0,
        }
    }

    /// The whole tensor as a view.
    pub fn view(&self) -> Result<TensorRef<'_>, TensorError> {
        let mut strides = vec![0; self.shape.len()];
        let mut next = 1_isize;
        for (stride, &extent) in strides.iter_mut().zip(&self.shape).rev() {
            *stride = next;
            next = next.saturating_mul(extent.max(1) as isize);
        }
        TensorRef::from_bytes(self.bytes(), self.dtype, 0, &self.shape, &strides)
    }
}

/// Two-dimensional and strided: the form in which every kind of layer meets the kernels.
#[derive(Clone, Debug)]
pub struct Matrix {
    tensor: Tensor,
    place: Place,
}

/// Where a matrix lies within a tensor: element of its corner, shape, strides in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The element of the tensor at row 0, column 0.
    pub offset: usize,
    /// Rows and columns.
    pub shape: [usize; 2],
    /// Elements from one row to the next, and from one column to the next.
    pub strides: [isize; 2],
}

impl Place {
    /// A row-major matrix from the start of a tensor.
    pub fn rows_of(rows: usize, columns: usize) -> Self {
        Self { offset: 0, shape: [rows, columns], strides: [columns as isize, 1] }
    }

    /// The same matrix with rows and columns exchanged.
    #[must_use]
    pub fn transposed(self) -> Self {
        let ([rows, columns], [down, across]) = (self.shape, self.strides);
        Self { offset: self.offset, shape: [columns, rows], strides: [across, down] }
    }
}

impl Matrix {
    /// A part of a tensor as a matrix.
    pub fn new(tensor: Tensor, place: Place) -> Result<Self, TensorError> {
        TensorRef::from_bytes(tensor.bytes(), tensor.dtype(), place.offset, &place.shape, &place.strides)?;
        Ok(Self { tensor, place })
    }

    /// The tensor that it is a part of.
    pub fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    /// Where in the tensor it lies.
    pub fn place(&self) -> Place {
        self.place
    }

    /// Rows and columns.
    pub fn shape(&self) -> [usize; 2] {
        self.place.shape
    }

    /// The matrix as a view.
    pub fn view(&self) -> Result<TensorRef<'_>, TensorError> {
        let Place { offset, shape, strides } = &self.place;
        TensorRef::from_bytes(self.tensor.bytes(), self.tensor.dtype(), *offset, shape, strides)
    }
}
