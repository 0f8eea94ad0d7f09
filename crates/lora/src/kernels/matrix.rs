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
