//! Integer tables that Python has allocated and the core fills: block tables and slots.

use infer_accel_tensor::{DType, ErrorKind, TensorMut};
use pyo3::inspect::PyStaticExpr;
use pyo3::prelude::*;
use pyo3::type_hint_identifier;

use super::TensorArg;
use crate::errors::NativeError;

/// An int32 or int64 table of one or two dimensions, whose rows are written as a whole.
pub(crate) struct IntTarget<'py>(TensorArg<'py>);

/// The same, open for writing.
pub(crate) struct IntRows<'a> {
    view: TensorMut<'a>,
    rows: usize,
    width: usize,
    /// Elements from one row to the next.
    pitch: isize,
}

impl<'a, 'py> FromPyObject<'a, 'py> for IntTarget<'py> {
    type Error = PyErr;

    const INPUT_TYPE: PyStaticExpr = type_hint_identifier!("infer_accel._typing", "Tensor");

    fn extract(object: Borrowed<'a, 'py, PyAny>) -> Result<Self, PyErr> {
        TensorArg::extract(object).map(Self)
    }
}

impl IntTarget<'_> {
    /// The rows of a target of `ndim` dimensions; one of one dimension is one row.
    pub(crate) fn rows(&self, ndim: usize) -> Result<IntRows<'_>, NativeError> {
        let view = self.0.view_mut()?;
        if !matches!(view.dtype(), DType::I32 | DType::I64) {
            return Err(NativeError::new(
                ErrorKind::DType,
                "dtype.integer_target",
                format!("a target of {} came; pass int32 or int64", view.dtype()),
            ));
        }
        let (shape, strides) = (view.shape(), view.strides());
        if shape.len() != ndim {
            return Err(NativeError::new(
                ErrorKind::Shape,
                "shape.integer_target",
                format!("a target of shape {shape:?} came; pass one of {ndim} dimensions"),
            ));
        }
        let width = shape.last().copied().unwrap_or(0);
        if width > 1 && !view.is_empty() && strides.last() != Some(&1) {
            return Err(NativeError::new(
                ErrorKind::Layout,
                "layout.integer_target",
                "a target came whose rows have gaps between their numbers; pass one that is contiguous in its rows",
            ));
        }
        let (rows, pitch) = if ndim == 2 { (shape[0], strides[0]) } else { (1, 0) };
        if rows > 1 && width > 0 && pitch.unsigned_abs() < width {
            return Err(NativeError::new(
                ErrorKind::Layout,
                "layout.self_overlap",
                "a target came whose rows share memory; pass a copy",
            ));
        }
        Ok(IntRows { view, rows, width, pitch })
    }
}

impl IntRows<'_> {
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// Writes `values` into a row from `at` on, as far as it goes; returns where the rest of the row begins.
    pub(crate) fn write(&mut self, row: usize, at: usize, values: impl Iterator<Item = u64>) -> usize {
        if row >= self.rows || at > self.width {
            return at;
        }
        let offset = row as isize * self.pitch + at as isize;
        let room = self.width - at;
        if self.view.dtype() == DType::I64 {
            let base = self.view.as_mut_ptr().cast::<i64>().wrapping_offset(offset);
            // SAFETY: the row and the elements behind `at` lie in the view, which is of this type and may be written.
            at + values
                .take(room)
                .enumerate()
                .map(|(index, value)| unsafe { base.add(index).write_unaligned(value as i64) })
                .count()
        } else {
            let base = self.view.as_mut_ptr().cast::<i32>().wrapping_offset(offset);
            // SAFETY: as above; `rows` lets no third type in.
            at + values
                .take(room)
                .enumerate()
                .map(|(index, value)| unsafe { base.add(index).write_unaligned(value as i32) })
                .count()
        }
    }

    /// Fills the rest of a row with -1 or 0.
    pub(crate) fn fill(&mut self, row: usize, at: usize, value: u64) {
        self.write(row, at, std::iter::repeat_n(value, self.width.saturating_sub(at)));
    }
}
