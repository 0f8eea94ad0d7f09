//! `DLPack`: the structures of version 1 and the rules of their capsules.
//!
//! Source: the header `dlpack.h` 1.3 of the DMLC project and the "Python specification for `DLPack`".

use std::ffi::{CStr, c_void};

use infer_accel_tensor::{DType, ErrorKind, Layout, MAX_DIMS, TensorError};
use pyo3::exceptions::PyTypeError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyCapsule, PyDict};

use super::Raw;
use crate::errors::NativeError;

const VERSIONED: &CStr = c"dltensor_versioned";
const UNVERSIONED: &CStr = c"dltensor";
const READ_ONLY: u64 = 1;
/// The version that is read here; a producer must not hand out a later major version than it was asked for.
pub(super) const MAJOR: u32 = 1;

#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Version {
    pub(super) major: u32,
    pub(super) minor: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Device {
    pub(super) kind: i32,
    pub(super) id: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct DataType {
    code: u8,
    bits: u8,
    lanes: u16,
}

#[repr(C)]
pub(super) struct DlTensor {
    data: *mut c_void,
    pub(super) device: Device,
    ndim: i32,
    dtype: DataType,
    shape: *const i64,
    strides: *const i64,
    byte_offset: u64,
}

#[repr(C)]
struct ManagedUnversioned {
    tensor: DlTensor,
    manager: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut ManagedUnversioned)>,
}

#[repr(C)]
struct ManagedVersioned {
    version: Version,
    manager: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut ManagedVersioned)>,
    flags: u64,
    tensor: DlTensor,
}

/// A managed tensor taken out of its capsule: its deleter is called once, when this is dropped.
pub(super) enum Managed {
    Versioned(*mut VersionedTensor),
    Unversioned(*mut UnversionedTensor),
}

/// Opaque outside this file.
pub(super) struct VersionedTensor(ManagedVersioned);
/// Opaque outside this file.
pub(super) struct UnversionedTensor(ManagedUnversioned);

impl Drop for Managed {
    fn drop(&mut self) {
        // SAFETY: the pointers came out of capsules that were renamed, so that nobody else calls the deleter; it
        // is the last thing done with them. The thread is attached: a `TensorArg` holds a bound object beside.
        unsafe {
            match *self {
                Self::Versioned(managed) => {
                    if let Some(deleter) = (*managed).0.deleter {
                        deleter(managed.cast());
                    }
                }
                Self::Unversioned(managed) => {
                    if let Some(deleter) = (*managed).0.deleter {
                        deleter(managed.cast());
                    }
                }
            }
        }
    }
}

pub(super) fn raw(object: Borrowed<'_, '_, PyAny>) -> PyResult<Option<(Raw, Managed)>> {
    let py = object.py();
    let Some(export) = object.getattr_opt(intern!(py, "__dlpack__"))? else {
        return Ok(None);
    };
    let capsule = match call_export(py, &export) {
        Ok(capsule) => capsule,
        Err(error) if error.is_instance_of::<pyo3::exceptions::PyException>(py) => {
            return Err(refused(object, &error)?);
        }
        Err(error) => return Err(error),
    };
    let Ok(capsule) = capsule.cast_into::<PyCapsule>() else {
        return Err(broken("__dlpack__ returned no capsule").into());
    };
    let managed = take(&capsule)?;
    let raw = match &managed {
        Managed::Versioned(tensor) => {
            // SAFETY: `take` checked the pointer, and the version says that the structure is the one above.
            let managed = unsafe { &(**tensor).0 };
            let mut raw = read(&managed.tensor)?;
            raw.writable = managed.flags & READ_ONLY == 0;
            raw
        }
        // Such a capsule cannot say whether it may be written (jax's arrays may not): so it is only read.
        // SAFETY: `take` checked the pointer.
        Managed::Unversioned(tensor) => read(unsafe { &(**tensor).0.tensor })?,
    };
    Ok(Some((raw, managed)))
}

fn call_export<'py>(py: Python<'py>, export: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let keywords = PyDict::new(py);
    keywords.set_item(intern!(py, "max_version"), (MAJOR, 0))?;
    match export.call((), Some(&keywords)) {
        // Exporters from before version 1 do not know the keyword.
        Err(error) if error.is_instance_of::<PyTypeError>(py) => export.call0(),
        other => other,
    }
}

/// Takes the managed tensor out of a capsule and marks the capsule as used.
fn take(capsule: &Bound<'_, PyCapsule>) -> PyResult<Managed> {
    let (name, used) = if capsule.is_valid_checked(Some(VERSIONED)) {
        (VERSIONED, c"used_dltensor_versioned")
    } else if capsule.is_valid_checked(Some(UNVERSIONED)) {
        (UNVERSIONED, c"used_dltensor")
    } else {
        return Err(broken("a capsule came that was used before, or is of no known name").into());
    };
    let pointer = capsule.pointer_checked(Some(name))?.as_ptr();
    // SAFETY: a live capsule, and a name that lives as long as the process.
    if unsafe { pyo3::ffi::PyCapsule_SetName(capsule.as_ptr(), used.as_ptr()) } != 0 {
        return Err(PyErr::fetch(capsule.py()));
    }
    if name == UNVERSIONED {
        return Ok(Managed::Unversioned(pointer.cast()));
    }
    let managed = Managed::Versioned(pointer.cast());
    // SAFETY: the version comes first in every version of the structure; the deleter stays at its place.
    let version = unsafe { (*pointer.cast::<ManagedVersioned>()).version };
    if version.major != MAJOR {
        // Dropping `managed` calls the deleter, the only thing that may be done with such a tensor.
        return Err(broken(&format!("a tensor of version {}.{} came", version.major, version.minor)).into());
    }
    Ok(managed)
}

/// Reads a tensor's description. Not writable until the caller says so.
pub(super) fn read(tensor: &DlTensor) -> Result<Raw, NativeError> {
    check_device(tensor.device)?;
    let dtype = dtype_of(tensor.dtype)?;
    let count = usize::try_from(tensor.ndim).map_err(|_| broken("a negative number of dimensions came"))?;
    if count > MAX_DIMS {
        return Err(TensorError::TooManyDimensions { got: count, max: MAX_DIMS }.into());
    }
    let mut shape = [0_usize; MAX_DIMS];
    let mut strides = [0_isize; MAX_DIMS];
    if count > 0 {
        if tensor.shape.is_null() {
            return Err(broken("a tensor without a shape came"));
        }
        for axis in 0..count {
            // SAFETY: the shape holds `ndim` numbers.
            let extent = unsafe { *tensor.shape.add(axis) };
            shape[axis] = usize::try_from(extent).map_err(|_| broken("a negative extent came"))?;
            if !tensor.strides.is_null() {
                // SAFETY: so do the strides, where they are given.
                strides[axis] = unsafe { *tensor.strides.add(axis) } as isize;
            }
        }
    }
    let layout = if tensor.strides.is_null() {
        Layout::contiguous(&shape[..count], dtype.size())?
    } else {
        // The stride of an axis of one entry is never taken and may be anything.
        for (stride, &extent) in strides.iter_mut().zip(&shape[..count]) {
            if extent <= 1 {
                *stride = 0;
            }
        }
        Layout::new(&shape[..count], &strides[..count], dtype.size())?
    };
    let ptr = tensor.data.cast::<u8>().wrapping_add(tensor.byte_offset as usize);
    Ok(Raw { ptr, dtype, layout, writable: false })
}

fn check_device(device: Device) -> Result<(), NativeError> {
    const CPU: i32 = 1;
    const CUDA_HOST: i32 = 3;
    const ROCM_HOST: i32 = 11;
    let name = match device.kind {
        CPU | CUDA_HOST | ROCM_HOST => return Ok(()),
        2 => "cuda",
        7 => "vulkan",
        8 => "metal",
        10 => "rocm",
        13 => "cuda managed",
        14 => "oneapi",
        _ => "unknown",
    };
    Err(NativeError::new(
        ErrorKind::Device,
        "device.not_cpu",
        format!(
            "a tensor on device {name}:{} came; this operation works on CPU memory: move it with .cpu()",
            device.id
        ),
    ))
}

fn dtype_of(dtype: DataType) -> Result<DType, NativeError> {
    const INT: u8 = 0;
    const UINT: u8 = 1;
    const FLOAT: u8 = 2;
    const BFLOAT: u8 = 4;
    const BOOL: u8 = 6;
    const FLOAT8_E4M3FN: u8 = 10;
    const FLOAT8_E5M2: u8 = 12;
    let DataType { code, bits, lanes } = dtype;
    match (code, bits, lanes) {
        (FLOAT, 64, 1) => Ok(DType::F64),
        (FLOAT, 32, 1) => Ok(DType::F32),
        (FLOAT, 16, 1) => Ok(DType::F16),
        (BFLOAT, 16, 1) => Ok(DType::BF16),
        (FLOAT8_E4M3FN, 8, 1) => Ok(DType::F8E4M3),
        (FLOAT8_E5M2, 8, 1) => Ok(DType::F8E5M2),
        (INT, 64, 1) => Ok(DType::I64),
        (INT, 32, 1) => Ok(DType::I32),
        (INT, 16, 1) => Ok(DType::I16),
        (INT, 8, 1) => Ok(DType::I8),
        (UINT, 64, 1) => Ok(DType::U64),
        (UINT, 32, 1) => Ok(DType::U32),
        (UINT, 16, 1) => Ok(DType::U16),
        (UINT, 8, 1) => Ok(DType::U8),
        (BOOL, 8, 1) => Ok(DType::Bool),
        _ => Err(super::unknown_dtype(&format!("DLPack type code {code}, {bits} bits, {lanes} lanes"))),
    }
}

fn broken(what: &str) -> NativeError {
    NativeError::new(
        ErrorKind::Layout,
        "layout.dlpack",
        format!("{what}; infer-accel reads DLPack {MAJOR}: pass a fresh export of a tensor"),
    )
}

/// The error for an exporter that refused. torch refuses what records gradients, is sparse, conjugated or negated.
fn refused(object: Borrowed<'_, '_, PyAny>, error: &PyErr) -> PyResult<PyErr> {
    let py = object.py();
    let gradient = object.getattr_opt(intern!(py, "requires_grad"))?;
    if gradient.is_some_and(|flag| flag.is_truthy().unwrap_or(false)) {
        return Ok(records_gradient().into());
    }
    let refusal = PyErr::from(NativeError::new(
        ErrorKind::Layout,
        "layout.export",
        format!(
            "the tensor does not let itself be exported: {}; pass a plain dense CPU tensor",
            error.value(py)
        ),
    ));
    refusal.set_cause(py, Some(error.clone_ref(py)));
    Ok(refusal)
}

pub(super) fn records_gradient() -> NativeError {
    NativeError::new(
        ErrorKind::Gradient,
        "gradient.recorded",
        "a tensor with requires_grad=True came while gradients are recorded, which this operation would break; \
         call it under torch.no_grad(), or pass tensor.detach()",
    )
}
