//! Arrow arrays of strings, without a copy: the C data interface and its capsules.
//!
//! What a producer hands over is taken out of its capsule, as the interface asks, and released once, when it is
//! dropped. The interface does not say how long its buffers are: that offsets lie in them is the producer's word,
//! as for everyone who reads them. Everything that can be checked is: formats, counts, the order of offsets, the bounds
//! of views, nulls, UTF-8.
//!
//! Source: <https://arrow.apache.org/docs/format/CDataInterface.html>, `CStreamInterface` and
//! `CDataInterface/PyCapsuleInterface` beside it.

mod interface;
mod strings;

use infer_accel_tensor::ErrorKind;
use pyo3::prelude::*;
use pyo3::types::{PyCapsule, PyTuple};

use crate::errors::NativeError;
use interface::{ArrayStruct, Foreign, SchemaStruct, StreamStruct};
use strings::Kind;

/// Arrow arrays whose strings are read where they lie; alive as long as this.
pub(crate) struct ArrowTexts {
    kind: Kind,
    arrays: Vec<Foreign<ArrayStruct>>,
}

impl ArrowTexts {
    /// What the object exports, or `None` where it exports no Arrow data.
    pub(crate) fn of(object: &Bound<'_, PyAny>) -> PyResult<Option<Self>> {
        if let Some(export) = object.getattr_opt("__arrow_c_stream__")? {
            let mut stream = take::<StreamStruct>(&export.call0()?, c"arrow_array_stream")?;
            let kind = Kind::of(&*stream.schema()?)?;
            let mut arrays = Vec::new();
            while let Some(array) = stream.next_array()? {
                arrays.push(array);
            }
            return Ok(Some(Self { kind, arrays }));
        }
        let Some(export) = object.getattr_opt("__arrow_c_array__")? else { return Ok(None) };
        let exported = export.call0()?;
        let pair = exported.cast::<PyTuple>().ok().filter(|pair| pair.len() == 2);
        let Some(pair) = pair else {
            return Err(broken("__arrow_c_array__ returned no pair of capsules").into());
        };
        let schema = take::<SchemaStruct>(&pair.get_item(0)?, c"arrow_schema")?;
        let array = take::<ArrayStruct>(&pair.get_item(1)?, c"arrow_array")?;
        Ok(Some(Self { kind: Kind::of(&schema)?, arrays: vec![array] }))
    }

    /// All texts in order.
    pub(crate) fn utf8(&self) -> Result<Vec<&str>, NativeError> {
        let mut texts = Vec::new();
        for array in &self.arrays {
            strings::append(array, self.kind, &mut texts)?;
        }
        Ok(texts)
    }
}

/// Takes a structure out of its capsule, which is left as released.
fn take<T: interface::Release>(
    capsule: &Bound<'_, PyAny>,
    name: &'static std::ffi::CStr,
) -> PyResult<Foreign<T>> {
    let named = capsule.cast::<PyCapsule>().ok().filter(|capsule| capsule.is_valid_checked(Some(name)));
    let Some(capsule) = named else {
        return Err(broken(format!("a capsule named {name:?} is expected, and something else came")).into());
    };
    let pointer = capsule.pointer_checked(Some(name))?.cast::<T>();
    // SAFETY: a live capsule of this name points to a structure of this kind, which the interface lets its consumer
    // move out; nobody else uses it meanwhile: the interpreter's lock is held.
    let taken = unsafe { Foreign::take(pointer) };
    taken.ok_or_else(|| broken(format!("the capsule {name:?} was used before")).into())
}

/// What a producer got wrong.
fn broken(what: impl Into<String>) -> NativeError {
    NativeError::new(ErrorKind::Argument, "tokenizer.arrow", format!("Arrow data: {}", what.into()))
}
