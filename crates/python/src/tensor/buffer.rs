//! Anything with the buffer protocol: bytes, `bytearray`, `memoryview`, `array.array`, `mmap`.

use infer_accel_tensor::{DType, Layout, MAX_DIMS, TensorError};
use pyo3::buffer::PyUntypedBuffer;
use pyo3::prelude::*;
use pyo3::types::PyMemoryView;

use super::{Raw, element_strides, unknown_dtype};
use crate::errors::NativeError;

pub(super) fn raw(object: Borrowed<'_, '_, PyAny>) -> PyResult<Option<(Raw, PyUntypedBuffer)>> {
    // Some exporters (ctypes) leave the strides out even when asked; a memoryview fills them in.
    let buffer = PyUntypedBuffer::get(&object)
        .or_else(|_| PyMemoryView::from(&object).and_then(|view| PyUntypedBuffer::get(view.as_any())));
    let Ok(buffer) = buffer else {
        return Ok(None);
    };
    let size = buffer.item_size();
    let format = buffer.format();
    let dtype = dtype_of(format.to_bytes(), size).ok_or_else(|| unknown_dtype(&format.to_string_lossy()))?;
    if buffer.shape().len() > MAX_DIMS {
        let got = buffer.shape().len();
        return Err(NativeError::from(TensorError::TooManyDimensions { got, max: MAX_DIMS }).into());
    }
    let strides = element_strides(buffer.strides(), buffer.shape(), size)?;
    let layout = Layout::new(buffer.shape(), &strides, size).map_err(NativeError::from)?;
    let raw = Raw { ptr: buffer.buf_ptr().cast(), dtype, layout, writable: !buffer.readonly() };
    Ok(Some((raw, buffer)))
}

/// The format of a struct-module code in native byte order.
fn dtype_of(format: &[u8], size: usize) -> Option<DType> {
    let code = match format {
        [code] | [b'@' | b'=', code] => *code,
        [b'<', code] if cfg!(target_endian = "little") => *code,
        [b'>', code] if cfg!(target_endian = "big") => *code,
        _ => return None,
    };
    let dtype = match (code, size) {
        (b'd', 8) => DType::F64,
        (b'f', 4) => DType::F32,
        (b'e', 2) => DType::F16,
        (b'l' | b'q' | b'n', 8) => DType::I64,
        (b'i' | b'l', 4) => DType::I32,
        (b'h', 2) => DType::I16,
        (b'b', 1) => DType::I8,
        (b'L' | b'Q' | b'N', 8) => DType::U64,
        (b'I' | b'L', 4) => DType::U32,
        (b'H', 2) => DType::U16,
        (b'B' | b'c', 1) => DType::U8,
        (b'?', 1) => DType::Bool,
        _ => return None,
    };
    Some(dtype)
}
