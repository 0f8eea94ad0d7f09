//! numpy arrays, by their C structure.

use std::sync::atomic::{AtomicI32, Ordering};

use infer_accel_tensor::{DType, ErrorKind, Layout, MAX_DIMS, TensorError};
use numpy::npyffi::NPY_ARRAY_WRITEABLE;
use numpy::{PyArrayDescr, PyArrayDescrMethods, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::prelude::*;

use super::{Raw, element_strides, unknown_dtype};
use crate::errors::NativeError;

/// Types that other packages register with numpy have numbers from here on.
const FIRST_USER_TYPE: i32 = 256;

pub(super) fn raw(object: Borrowed<'_, '_, PyAny>) -> PyResult<Option<Raw>> {
    let Ok(array) = object.cast::<PyUntypedArray>() else {
        return Ok(None);
    };
    let dtype = dtype_of(&array.dtype())?;
    let (shape, strides) = (array.shape(), array.strides());
    if shape.len() > MAX_DIMS {
        return Err(
            NativeError::from(TensorError::TooManyDimensions { got: shape.len(), max: MAX_DIMS }).into()
        );
    }
    let strides = element_strides(strides, shape, dtype.size())?;
    let layout = Layout::new(shape, &strides, dtype.size()).map_err(NativeError::from)?;
    // SAFETY: a numpy array, checked above, whose structure stays valid while the object is borrowed.
    let (data, flags) = unsafe {
        let fields = &raw const (*array.as_array_ptr()).fields;
        ((*fields).data, (*fields).flags)
    };
    Ok(Some(Raw { ptr: data.cast(), dtype, layout, writable: flags & NPY_ARRAY_WRITEABLE != 0 }))
}

fn dtype_of(descr: &Bound<'_, PyArrayDescr>) -> PyResult<DType> {
    if descr.num() >= FIRST_USER_TYPE {
        return registered(descr);
    }
    if descr.is_native_byteorder() == Some(false) {
        return Err(NativeError::new(
            ErrorKind::Layout,
            "layout.byte_order",
            format!("an array of {descr} came, whose bytes are swapped; convert it with .astype(dtype.newbyteorder('='))"),
        )
        .into());
    }
    let dtype = match (descr.kind(), descr.itemsize()) {
        (b'f', 8) => DType::F64,
        (b'f', 4) => DType::F32,
        (b'f', 2) => DType::F16,
        (b'i', 8) => DType::I64,
        (b'i', 4) => DType::I32,
        (b'i', 2) => DType::I16,
        (b'i', 1) => DType::I8,
        (b'u', 8) => DType::U64,
        (b'u', 4) => DType::U32,
        (b'u', 2) => DType::U16,
        (b'u', 1) => DType::U8,
        (b'b', 1) => DType::Bool,
        _ => return Err(unknown_dtype(&descr.to_string()).into()),
    };
    Ok(dtype)
}

/// A format of `ml_dtypes`. Its number is given out when that package is imported and stays for the process, so
/// the name is looked up once.
fn registered(descr: &Bound<'_, PyArrayDescr>) -> PyResult<DType> {
    const NAMED: [DType; 3] = [DType::BF16, DType::F8E4M3, DType::F8E5M2];
    static KNOWN: [AtomicI32; 3] = [const { AtomicI32::new(-1) }; 3];
    let number = descr.num();
    for (known, dtype) in KNOWN.iter().zip(NAMED) {
        if known.load(Ordering::Relaxed) == number {
            return Ok(dtype);
        }
    }
    let name: String = descr.getattr("name")?.extract()?;
    for (known, dtype) in KNOWN.iter().zip(NAMED) {
        if dtype.name() == name {
            known.store(number, Ordering::Relaxed);
            return Ok(dtype);
        }
    }
    Err(unknown_dtype(&name).into())
}
