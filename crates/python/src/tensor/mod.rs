//! Python's tensors as views, without a copy.
//!
//! In order: numpy arrays by their C structure (`ml_dtypes` formats included), torch tensors by the C exchange
//! API of `DLPack` (a tenth of the cost of `__dlpack__`), anything else that has `__dlpack__`, and anything that
//! has the buffer protocol. A read-only flag is honoured wherever the exporter sets one.
#![allow(unsafe_code)] // the one place where addresses come out of Python objects

mod arrow;
mod buffer;
mod bytes;
mod characters;
mod dlpack;
mod exchange;
mod id_list;
mod ids;
mod lend;
mod numpy;
mod prefetch;
mod target;
mod tokens;

use infer_accel_tensor::{DType, ErrorKind, Layout, TensorError, TensorMut, TensorRef};
use pyo3::buffer::PyUntypedBuffer;
use pyo3::inspect::PyStaticExpr;
use pyo3::prelude::*;
use pyo3::type_hint_identifier;

pub(crate) use arrow::ArrowTexts;
pub(crate) use bytes::ByteTable;
pub(crate) use characters::read_characters;
pub(crate) use id_list::IdList;
pub(crate) use ids::IntTable;
pub(crate) use lend::lend;
pub(crate) use prefetch::prefetch;
pub(crate) use target::IntTarget;
pub(crate) use tokens::{TokenIds, TokenView};

use crate::errors::NativeError;

/// Where a tensor lies and what it holds, as its exporter said it.
struct Raw {
    ptr: *mut u8,
    dtype: DType,
    layout: Layout,
    writable: bool,
}

/// What must live as long as the address is used, beside the object itself.
enum Keep {
    Nothing,
    Capsule { _managed: dlpack::Managed },
    Buffer { _buffer: PyUntypedBuffer },
}

/// A tensor argument: its view, and what keeps the memory alive.
pub(crate) struct TensorArg<'py> {
    raw: Raw,
    _keep: Keep,
    _object: Bound<'py, PyAny>,
}

impl<'py> TensorArg<'py> {
    fn of(object: Borrowed<'_, 'py, PyAny>) -> Result<Self, PyErr> {
        let (raw, keep) = if let Some(raw) = numpy::raw(object)? {
            (raw, Keep::Nothing)
        } else if let Some(raw) = exchange::raw(object)? {
            (raw, Keep::Nothing)
        } else if let Some((raw, managed)) = dlpack::raw(object)? {
            (raw, Keep::Capsule { _managed: managed })
        } else if let Some((raw, buffer)) = buffer::raw(object)? {
            (raw, Keep::Buffer { _buffer: buffer })
        } else {
            return Err(not_a_tensor(object)?.into());
        };
        Ok(Self { raw, _keep: keep, _object: object.to_owned() })
    }

    /// Whether the exporter allows writing.
    pub(crate) fn is_writable(&self) -> bool {
        self.raw.writable
    }

    /// The tensor, to read.
    pub(crate) fn view(&self) -> Result<TensorRef<'_>, TensorError> {
        let Raw { ptr, dtype, layout, .. } = &self.raw;
        // SAFETY: the exporter vouched for the memory, and `self` keeps the exporter alive.
        unsafe { TensorRef::from_raw(*ptr, *dtype, layout.shape(), layout.strides()) }
    }

    /// The tensor, to write.
    pub(crate) fn view_mut(&self) -> Result<TensorMut<'_>, NativeError> {
        let Raw { ptr, dtype, layout, writable } = &self.raw;
        if !writable {
            return Err(NativeError::new(
                ErrorKind::ReadOnly,
                "read_only",
                format!(
                    "a read-only tensor of {dtype} {:?} came as a target; pass one that may be written, or a copy",
                    layout.shape()
                ),
            ));
        }
        // SAFETY: as in `view`; the exporter says that the memory may be written.
        Ok(unsafe { TensorMut::from_raw(*ptr, *dtype, layout.shape(), layout.strides()) }?)
    }
}

impl<'a, 'py> FromPyObject<'a, 'py> for TensorArg<'py> {
    type Error = PyErr;

    const INPUT_TYPE: PyStaticExpr = type_hint_identifier!("infer_accel._typing", "Tensor");

    fn extract(object: Borrowed<'a, 'py, PyAny>) -> Result<Self, PyErr> {
        Self::of(object)
    }
}

fn not_a_tensor(object: Borrowed<'_, '_, PyAny>) -> PyResult<NativeError> {
    let name = object.get_type().fully_qualified_name()?;
    Ok(NativeError::new(
        ErrorKind::DType,
        "dtype.not_a_tensor",
        format!(
            "an object of type {name} came; pass a numpy array, a torch tensor, or an object with __dlpack__ or the \
             buffer protocol"
        ),
    ))
}

/// The error for a number format that has no name here.
fn unknown_dtype(name: &str) -> NativeError {
    NativeError::new(
        ErrorKind::DType,
        "dtype.unknown",
        format!(
            "a tensor of {name} came; allowed: float64, float32, float16, bfloat16, float8_e4m3fn, float8_e5m2, \
             int64, int32, int16, int8, uint64, uint32, uint16, uint8, bool"
        ),
    )
}

/// Strides in elements from strides in bytes.
fn element_strides(strides: &[isize], shape: &[usize], size: usize) -> Result<Vec<isize>, NativeError> {
    let size = size as isize;
    let step = |(&stride, &extent): (&isize, &usize)| {
        if extent <= 1 {
            return Ok(0); // never taken; numpy and torch put anything there
        }
        if stride % size != 0 {
            return Err(NativeError::new(
                ErrorKind::Layout,
                "layout.stride_bytes",
                format!(
                    "strides of {strides:?} bytes are no multiples of the element's {size}; copy the tensor first"
                ),
            ));
        }
        Ok(stride / size)
    };
    strides.iter().zip(shape).map(step).collect()
}
