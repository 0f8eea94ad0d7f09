//! Small tables of bytes, such as block hashes: copied privately, as ids are.

use infer_accel_tensor::{DType, ErrorKind};
use pyo3::inspect::PyStaticExpr;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyTuple};
use pyo3::{type_hint_identifier, type_hint_subscript, type_hint_union};

use super::TensorArg;
use crate::errors::NativeError;

/// A private copy of a table of bytes.
pub(crate) struct ByteTable {
    bytes: Vec<u8>,
    shape: Vec<usize>,
}

impl ByteTable {
    /// The bytes in row-major order.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Entries of each axis.
    pub(crate) fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Rows that Python holds as `bytes`, all of one length; `None` when a row is something else.
    fn from_rows(rows: &Bound<'_, PyAny>) -> PyResult<Option<Self>> {
        let (mut bytes, mut count, mut length) = (Vec::new(), 0, None);
        for row in rows.try_iter()? {
            let row = row?;
            let Ok(row) = row.cast::<PyBytes>() else { return Ok(None) };
            let row = row.as_bytes();
            if *length.get_or_insert(row.len()) != row.len() {
                return Err(refused("rows of different lengths").into());
            }
            bytes.extend_from_slice(row);
            count += 1;
        }
        let shape = length.map_or_else(|| vec![0], |length| vec![count, length]);
        Ok(Some(Self { bytes, shape }))
    }
}

impl<'a, 'py> FromPyObject<'a, 'py> for ByteTable {
    type Error = PyErr;

    const INPUT_TYPE: PyStaticExpr = type_hint_union!(
        type_hint_identifier!("infer_accel._typing", "Tensor"),
        type_hint_subscript!(
            type_hint_identifier!("collections.abc", "Sequence"),
            type_hint_identifier!("builtins", "bytes")
        )
    );

    fn extract(object: Borrowed<'a, 'py, PyAny>) -> Result<Self, PyErr> {
        if object.is_instance_of::<PyList>() || object.is_instance_of::<PyTuple>() {
            return Self::from_rows(&object)?.ok_or_else(|| refused("a list of other things").into());
        }
        let tensor = TensorArg::extract(object)?;
        let view = tensor.view().map_err(NativeError::from)?;
        if view.dtype() != DType::U8 {
            return Err(refused(&format!("a tensor of {}", view.dtype())).into());
        }
        if !view.is_contiguous() {
            let message =
                "bytes with gaps between them came; pass a contiguous array, such as numpy.ascontiguousarray";
            return Err(NativeError::new(ErrorKind::Layout, "layout.bytes", message).into());
        }
        let mut bytes = vec![0; view.len()];
        // SAFETY: the view is contiguous and as long as the vector, which nobody else can see yet.
        unsafe { std::ptr::copy_nonoverlapping(view.as_ptr(), bytes.as_mut_ptr(), bytes.len()) };
        Ok(Self { bytes, shape: view.shape().to_vec() })
    }
}

fn refused(what: &str) -> NativeError {
    NativeError::new(
        ErrorKind::DType,
        "dtype.bytes",
        format!(
            "{what} came where bytes are expected; pass a uint8 array of one row each, or a list of bytes"
        ),
    )
}
