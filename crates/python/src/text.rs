//! Python's strings as UTF-8, without a copy of their own.
//!
//! The interpreter keeps the UTF-8 form of a string beside it (for ASCII it is the string itself), so that a
//! borrowed view lives as long as the string object.

use infer_accel_tensor::ErrorKind;
use pyo3::prelude::*;
use pyo3::types::{PyList, PyString, PyTuple};

use crate::errors::NativeError;

/// The UTF-8 form of a string, or a typed error for what is no text.
pub(crate) fn utf8<'a>(object: &'a Bound<'_, PyAny>) -> PyResult<&'a str> {
    let Ok(text) = object.cast::<PyString>() else {
        return Err(not_text(object)?.into());
    };
    text.to_str().map_err(|error| lone_surrogate(text, &error).into())
}

/// The strings of a list, a tuple or any other iterable, each kept alive.
pub(crate) struct Texts<'py> {
    objects: Vec<Bound<'py, PyAny>>,
}

impl<'py> Texts<'py> {
    pub(crate) fn of(texts: &Bound<'py, PyAny>) -> PyResult<Self> {
        if texts.is_instance_of::<PyString>() {
            return Err(NativeError::new(
                ErrorKind::DType,
                "tokenizer.not_texts",
                "one string came where several are expected; put it in a list",
            )
            .into());
        }
        let objects = if let Ok(list) = texts.cast::<PyList>() {
            list.iter().collect()
        } else if let Ok(tuple) = texts.cast::<PyTuple>() {
            tuple.iter().collect()
        } else {
            texts.try_iter()?.collect::<PyResult<Vec<_>>>()?
        };
        Ok(Self { objects })
    }

    pub(crate) fn utf8(&self) -> PyResult<Vec<&str>> {
        self.objects.iter().map(utf8).collect()
    }
}

fn not_text(object: &Bound<'_, PyAny>) -> PyResult<NativeError> {
    let name = object.get_type().fully_qualified_name()?;
    Ok(NativeError::new(
        ErrorKind::DType,
        "tokenizer.not_text",
        format!("an object of type {name} came; pass a str (decode bytes first: they may not be UTF-8)"),
    ))
}

fn lone_surrogate(text: &Bound<'_, PyString>, error: &PyErr) -> NativeError {
    let value = error.value(text.py());
    let position = value.getattr("start").and_then(|start| start.extract::<usize>());
    let Ok(position) = position else {
        return NativeError::new(ErrorKind::Tokenizer, "tokenizer.text", error.to_string());
    };
    let unit = text.get_item(position).and_then(|unit| unit.call_method0("__repr__"));
    let unit = unit.map_or_else(|_| "a surrogate".to_owned(), |unit| unit.to_string());
    NativeError::new(
        ErrorKind::Tokenizer,
        "tokenizer.lone_surrogate",
        format!(
            "the text has a lone surrogate, {unit}, at position {position}, which is no character and has no tokens; \
             replace it first, for instance by text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')"
        ),
    )
}
