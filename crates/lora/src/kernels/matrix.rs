//! Matrices as the kernels address them: bytes, strides, a format.

use super::storage::Format;
use infer_accel_tensor::TensorRef;

/// A matrix that somebody else owns, to be read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Matrix {
    /// The element of row 0 and column 0.
    pub(crate) base: *const u8,
    /// What an element is.
    pub(crate) format: Format,
    /// Rows.
    pub(crate) rows: usize,
    /// Columns.
    pub(crate) columns: usize,
    /// Bytes from a row to the next.
    pub(crate) row_stride: isize,
    /// Bytes from a column to the next.
    pub(crate) column_stride: isize,
}

impl Matrix {
    /// The matrix of a tensor, if it has two dimensions and one of the three formats.
    pub(crate) fn of(tensor: &TensorRef<'_>) -> Option<Self> {
        let format = Format::of(tensor.dtype())?;
        let (&[rows, columns], &[row_stride, column_stride]) = (tensor.shape(), tensor.strides()) else {
            return None;
        };
        let size = format.size() as isize;
        Some(Self {
            base: tensor.as_ptr(),
            format,
            rows,
            columns,
            row_stride: row_stride * size,
            column_stride: column_stride * size,
        })
    }

    /// A vector, or a matrix of one column, as such a matrix.
    pub(crate) fn of_vector(tensor: &TensorRef<'_>) -> Option<Self> {
        let format = Format::of(tensor.dtype())?;
        let (&[rows] | &[rows, 1], Some(&stride)) = (tensor.shape(), tensor.strides().first()) else {
            return None;
        };
        let size = format.size() as isize;
        let base = tensor.as_ptr();
        Some(Self { base, format, rows, columns: 1, row_stride: stride * size, column_stride: size })
    }

    /// Copies all elements to a matrix of the same shape and format.
    ///
    /// # Safety
    ///
    /// The elements are readable, those of `target` writable, and apart.
    pub(crate) unsafe fn copy_to(&self, target: &Self) {
        for row in 0..self.rows {
            for column in 0..self.columns {
                let (from, to) = (self.at(row, column), target.at(row, column).cast_mut());
                // SAFETY: the caller vouches for the elements, which lie apart.
                unsafe { to.copy_from_nonoverlapping(from, self.format.size()) };
            }
        }
    }

    /// Whether the matrix has no elements.
    pub(crate) fn is_empty(&self) -> bool {
        self.rows == 0 || self.columns == 0
    }

    /// The address of an element; valid where the element exists.
    #[inline(always)]
    pub(crate) fn at(&self, row: usize, column: usize) -> *const u8 {
        self.base.wrapping_offset(self.offset(row, column))
    }

    /// Bytes from the first element to another.
    #[inline(always)]
    pub(crate) fn offset(&self, row: usize, column: usize) -> isize {
        row as isize * self.row_stride + column as isize * self.column_stride
    }

    /// Whether elements of a row lie side by side.
    #[inline(always)]
    pub(crate) fn has_dense_rows(&self) -> bool {
        self.column_stride == self.format.size() as isize || self.columns <= 1
    }

    /// Whether elements of a column lie side by side.
    #[inline(always)]
    pub(crate) fn has_dense_columns(&self) -> bool {
        self.row_stride == self.format.size() as isize || self.rows <= 1
    }

    /// Some elements of a row side by side: where they lie, or gathered into `buffer`.
    ///
    /// # Safety
    ///
    /// The elements are readable; `buffer` is writable for `count` of them.
    #[inline(always)]
    pub(crate) unsafe fn dense(&self, row: usize, column: usize, count: usize, buffer: *mut u8) -> *const u8 {
        if self.has_dense_rows() {
            return self.at(row, column);
        }
        // SAFETY: the caller vouches for the elements and the buffer.
        unsafe { self.gather(row, column, count, buffer) };
        buffer
    }

    /// Copies some elements of a row.
    ///
    /// # Safety
    ///
    /// The elements are readable, `bytes` writable for `count` of them, and apart.
    #[inline(always)]
    pub(crate) unsafe fn gather(&self, row: usize, column: usize, count: usize, bytes: *mut u8) {
        let (first, size) = (self.at(row, column), self.format.size());
        // SAFETY: the caller vouches for the elements and the bytes.
        unsafe {
            if self.has_dense_rows() {
                return bytes.copy_from_nonoverlapping(first, count * size);
            }
            for at in 0..count {
                let from = first.wrapping_offset(at as isize * self.column_stride);
                bytes.add(at * size).copy_from_nonoverlapping(from, size);
            }
        }
    }

    /// Writes some elements of a row.
    ///
    /// # Safety
    ///
    /// The elements are writable, `bytes` readable for `count` of them, and apart.
    #[inline(always)]
    pub(crate) unsafe fn scatter(&self, row: usize, column: usize, count: usize, bytes: *const u8) {
        let (first, size) = (self.at(row, column).cast_mut(), self.format.size());
        // SAFETY: the caller vouches for the elements and the bytes.
        unsafe {
            if self.has_dense_rows() {
                return first.copy_from_nonoverlapping(bytes, count * size);
            }
            for at in 0..count {
                let to = first.wrapping_offset(at as isize * self.column_stride);
                to.copy_from_nonoverlapping(bytes.add(at * size), size);
            }
        }
    }

    /// The same elements with rows and columns exchanged.
    pub(crate) fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }
}
