//! torch tensors by the C exchange API of `DLPack` 1.2 and later: a function pointer in place of a method call.

use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;

use infer_accel_tensor::ErrorKind;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyCapsule, PyType};

use super::Raw;
use super::dlpack::{self, DlTensor, MAJOR, Version};
use crate::errors::NativeError;

type TensorFromObject = unsafe extern "C" fn(*mut c_void, *mut DlTensor) -> c_int;

#[repr(C)]
struct Header {
    version: Version,
    previous: *const Header,
}

#[repr(C)]
struct Api {
    header: Header,
    managed_tensor_allocator: *const c_void,
    managed_tensor_from_object: *const c_void,
    managed_tensor_to_object: *const c_void,
    tensor_from_object: Option<TensorFromObject>,
    current_work_stream: *const c_void,
}

/// The types whose instances are plain tensors. Subclasses may have no memory of their own (fake, distributed
/// and lazy tensors): those take the way through `__dlpack__`, which asks them.
const PLAIN: [&str; 2] = ["torch.Tensor", "torch.nn.parameter.Parameter"];

struct Exporter {
    class: Py<PyType>,
    tensor_from_object: TensorFromObject,
}

/// One exporter for each of [`PLAIN`], found when the first such tensor comes.
static EXPORTERS: [PyOnceLock<Exporter>; 2] = [const { PyOnceLock::new() }; 2];

pub(super) fn raw(object: Borrowed<'_, '_, PyAny>) -> PyResult<Option<Raw>> {
    let py = object.py();
    let class = object.get_type();
    let known = EXPORTERS.iter().filter_map(|slot| slot.get(py)).find(|known| known.class.is(&class));
    let exporter = match known {
        Some(known) => known,
        None => match find(&class)? {
            Some(found) => found,
            None => return Ok(None),
        },
    };
    if gradient_is_recorded(object)? {
        return Err(dlpack::records_gradient().into());
    }
    let mut tensor = MaybeUninit::<DlTensor>::uninit();
    // SAFETY: the function is the one that this object's type publishes; it borrows shape and strides from the
    // object, which outlives the reading below. 0 means that the description was written.
    let status = unsafe { (exporter.tensor_from_object)(object.as_ptr().cast(), tensor.as_mut_ptr()) };
    if status != 0 {
        // Sparse, quantised and the like: `__dlpack__` says the same in words.
        drop(PyErr::take(py));
        return Ok(None);
    }
    // SAFETY: just written.
    let mut raw = dlpack::read(unsafe { tensor.assume_init_ref() })?;
    // The imaginary part of a conjugated tensor lies in memory with the wrong sign, and only this flag says so.
    if raw.dtype.is_float() && object.call_method0(intern!(py, "is_neg"))?.is_truthy()? {
        return Err(NativeError::new(
            ErrorKind::Layout,
            "layout.negated",
            "a tensor came whose memory holds its values negated; pass tensor.resolve_neg()",
        )
        .into());
    }
    raw.writable = true;
    Ok(Some(raw))
}

fn find(class: &Bound<'_, PyType>) -> PyResult<Option<&'static Exporter>> {
    let py = class.py();
    let Some(capsule) = class.getattr_opt(intern!(py, "__dlpack_c_exchange_api__"))? else {
        return Ok(None);
    };
    let name = class.fully_qualified_name()?;
    let Some(slot) = PLAIN.iter().position(|plain| name == *plain).and_then(|index| EXPORTERS.get(index))
    else {
        return Ok(None);
    };
    let Ok(capsule) = capsule.cast_into::<PyCapsule>() else {
        return Ok(None);
    };
    let mut header =
        capsule.pointer_checked(Some(c"dlpack_exchange_api"))?.as_ptr().cast_const().cast::<Header>();
    // SAFETY: the capsule's structure is static and starts with a header; so does each older one in the chain.
    unsafe {
        while !header.is_null() && (*header).version.major != MAJOR {
            header = (*header).previous;
        }
        if header.is_null() || (*header).version.minor < 2 {
            return Ok(None);
        }
    }
    // SAFETY: a version 1 header of minor 2 or later begins this structure, which lives as long as the process.
    let Some(tensor_from_object) = (unsafe { (*header.cast::<Api>()).tensor_from_object }) else {
        return Ok(None);
    };
    let exporter = slot.get_or_init(py, || Exporter { class: class.clone().unbind(), tensor_from_object });
    // Another torch in the same process, under the same name, keeps the slow way.
    Ok(exporter.class.is(class).then_some(exporter))
}

/// Whether operations on the tensor are being recorded for a gradient.
fn gradient_is_recorded(object: Borrowed<'_, '_, PyAny>) -> PyResult<bool> {
    static ENABLED: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let py = object.py();
    if !object.getattr(intern!(py, "requires_grad"))?.is_truthy()? {
        return Ok(false);
    }
    let enabled =
        ENABLED.get_or_try_init(py, || py.import("torch")?.getattr("is_grad_enabled").map(Bound::unbind))?;
    enabled.call0(py)?.is_truthy(py)
}
