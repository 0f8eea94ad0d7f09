//! Numbers of four and eight bits: what a code stands for, and the code that is nearest to a number.
//!
//! The loops are plain Rust without branches, compiled once for each tier; every element is computed on its own, so that
//! all tiers give the same bits.

mod passes;
#[cfg(test)]
mod tests;

use super::matrix::Matrix;
use super::storage::Format;
use infer_accel_tensor::{DType, TensorRef};

use passes::Code as _;
pub(super) use passes::CodePasses;

/// How a code stands for a number, before it is multiplied by a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Coding {
    /// OCP E4M3, a byte.
    E4M3,
    /// OCP E5M2, a byte.
    E5M2,
    /// A signed integer of eight bits.
    Int8,
    /// OCP E2M1, two to a byte: the lower four bits come first.
    E2M1,
}

impl Coding {
    /// The coding of a format whose elements are codes of a byte.
    pub(crate) const fn of(dtype: DType) -> Option<Self> {
        match dtype {
            DType::F8E4M3 => Some(Self::E4M3),
            DType::F8E5M2 => Some(Self::E5M2),
            DType::I8 => Some(Self::Int8),
            _ => None,
        }
    }

    /// Codes in a byte.
    pub(crate) const fn in_byte(self) -> usize {
        if matches!(self, Self::E2M1) { 2 } else { 1 }
    }

    /// The magnitude that a scale is made for.
    pub(crate) const fn largest(self) -> f32 {
        match self {
            Self::E4M3 => 448.0,
            Self::E5M2 => 57344.0,
            Self::Int8 => 127.0,
            Self::E2M1 => 6.0,
        }
    }

    /// What a code stands for.
    pub(crate) fn number(self, code: u8) -> f32 {
        match self {
            Self::E4M3 => passes::E4M3::decode(code),
            Self::E5M2 => passes::E5M2::decode(code),
            Self::Int8 => passes::Int8::decode(code),
            Self::E2M1 => passes::E2M1::decode(code),
        }
    }

    /// The distance of neighbouring codes at a number.
    pub(crate) fn step(self, number: f64) -> f64 {
        let (mantissa, smallest) = match self {
            Self::E4M3 => (3, -6),
            Self::E5M2 => (2, -14),
            Self::Int8 => return 1.0,
            Self::E2M1 => (1, 0),
        };
        let exponent =
            if number == 0.0 { smallest } else { (number.abs().log2().floor() as i32).max(smallest) };
        f64::powi(2.0, exponent - mantissa)
    }

    /// Whether steps are the same everywhere, so that every scale is another grid. The grid of a float stays, but for the
    /// smallest numbers, if its scale is doubled.
    pub(crate) const fn is_integer(self) -> bool {
        matches!(self, Self::Int8)
    }

    /// Whether some numbers are beyond the codes at a scale: would round to one behind the last code, if there were more.
    pub(crate) fn is_beyond(self, extent: Extent, scale: f32) -> bool {
        let is_beyond = match self {
            Self::E4M3 => passes::E4M3::is_beyond,
            Self::E5M2 => passes::E5M2::is_beyond,
            Self::Int8 => passes::Int8::is_beyond,
            Self::E2M1 => passes::E2M1::is_beyond,
        };
        is_beyond(extent.above / scale) || is_beyond(-extent.below / scale)
    }
}

/// The largest magnitudes of some numbers: of those above zero, and of those below. Infinite if a number is not finite.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Extent {
    pub(crate) above: f32,
    pub(crate) below: f32,
}

impl Extent {
    pub(crate) fn largest(self) -> f32 {
        self.above.max(self.below)
    }

    /// The extent of these numbers and others.
    pub(crate) fn joined(self, other: Self) -> Self {
        Self { above: self.above.max(other.above), below: self.below.max(other.below) }
    }

    pub(crate) fn is_finite(self) -> bool {
        self.largest() < f32::INFINITY
    }
}

/// Codes in memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Codes {
    pub(crate) coding: Coding,
    /// Rows and columns of elements. The byte of an element is that of column `column / in_byte`; the format says nothing.
    pub(crate) matrix: Matrix,
}

impl Codes {
    /// The codes of a tensor of bytes, if it has two dimensions.
    pub(crate) fn of(tensor: &TensorRef<'_>, coding: Coding) -> Option<Self> {
        let (&[rows, bytes], &[row_stride, column_stride]) = (tensor.shape(), tensor.strides()) else {
            return None;
        };
        if tensor.dtype().size() != 1 {
            return None;
        }
        let columns = bytes.checked_mul(coding.in_byte())?;
        let (base, format) = (tensor.as_ptr(), Format::F32);
        Some(Self { coding, matrix: Matrix { base, format, rows, columns, row_stride, column_stride } })
    }

    fn address(&self, row: usize, column: usize) -> *const u8 {
        self.matrix.at(row, column / self.coding.in_byte())
    }

    fn is_dense(&self) -> bool {
        self.matrix.column_stride == 1 || self.matrix.columns <= self.coding.in_byte()
    }

    /// Some codes of a row, a byte each: where they lie, or gathered into `buffer`. The first column and the number of
    /// them are multiples of the codes in a byte.
    ///
    /// # Safety
    ///
    /// The codes are readable; `buffer` is writable for as many bytes.
    pub(crate) unsafe fn gather(
        &self,
        row: usize,
        column: usize,
        count: usize,
        buffer: *mut u8,
    ) -> *const u8 {
        let first = self.address(row, column);
        if self.is_dense() && self.coding.in_byte() == 1 {
            return first;
        }
        let step = if self.is_dense() { 1 } else { self.matrix.column_stride };
        for byte in 0..count / self.coding.in_byte() {
            // SAFETY: the caller vouches for codes and buffer.
            unsafe {
                let bits = first.wrapping_offset(byte as isize * step).read();
                if self.coding.in_byte() == 1 {
                    buffer.add(byte).write(bits);
                } else {
                    buffer.add(2 * byte).write(bits & 0xf);
                    buffer.add(2 * byte + 1).write(bits >> 4);
                }
            }
        }
        buffer
    }

    /// Writes some codes of a row; the inverse of [`Self::gather`].
    ///
    /// # Safety
    ///
    /// The codes are writable; `codes` is readable for as many bytes, and apart.
    pub(crate) unsafe fn scatter(&self, row: usize, column: usize, count: usize, codes: *const u8) {
        let first = self.address(row, column).cast_mut();
        let step = if self.is_dense() { 1 } else { self.matrix.column_stride };
        // SAFETY: the caller vouches for codes and bytes.
        unsafe {
            if self.is_dense() && self.coding.in_byte() == 1 {
                return first.copy_from_nonoverlapping(codes, count);
            }
            for byte in 0..count / self.coding.in_byte() {
                let bits = if self.coding.in_byte() == 1 {
                    codes.add(byte).read()
                } else {
                    codes.add(2 * byte).read() | codes.add(2 * byte + 1).read() << 4
                };
                first.wrapping_offset(byte as isize * step).write(bits);
            }
        }
    }
}
