//! Python's strings as UTF-8.
//!
//! The interpreter keeps the UTF-8 form of a string beside it (for ASCII it is the string itself), so that a
//! borrowed view lives as long as the string object. It makes that form slowly, one character after the other: for long
//! strings that are not ASCII, [`LongText`] makes it itself, in memory that the next one uses again.

use std::ops::Deref;
use std::sync::{Mutex, TryLockError};

use infer_accel_tensor::ErrorKind;
use pyo3::prelude::*;
use pyo3::types::{PyList, PyString, PyTuple};

use infer_accel_tokenize::text_of;

use crate::errors::NativeError;
use crate::tensor::{ArrowTexts, read_characters};

/// The UTF-8 form of a string, or a typed error for what is no text.
pub(crate) fn utf8<'a>(object: &'a Bound<'_, PyAny>) -> PyResult<&'a str> {
    let Ok(text) = object.cast::<PyString>() else {
        return Err(not_text(object)?.into());
    };
    text.to_str().map_err(|error| lone_surrogate(text, &error).into())
}

/// Below so many characters the interpreter's own conversion is as fast as asking whether there is a faster one.
const LONG: usize = 1024;
/// Above so many, memory to convert a string is not worth keeping.
const LONGEST: usize = 512 * 1024;
/// Strings that are converted at the same time without new memory.
const PLACES: usize = 2;

/// Memory in which a string is converted.
#[derive(Default)]
pub(crate) struct Workspace {
    characters: Vec<u32>,
    text: String,
}

static WORKSPACES: Mutex<Vec<Workspace>> = Mutex::new(Vec::new());

/// The UTF-8 form of a string, for a call that reads it once: the string's own, or one that was made for it.
pub(crate) enum LongText<'a> {
    Own(&'a str),
    Made(Workspace),
}

impl<'a> LongText<'a> {
    pub(crate) fn of(object: &'a Bound<'_, PyAny>) -> PyResult<Self> {
        let Ok(string) = object.cast::<PyString>() else { return utf8(object).map(Self::Own) };
        let length = string.len()?;
        if !(LONG..=LONGEST).contains(&length) || string.call_method0("isascii")?.is_truthy()? {
            return utf8(object).map(Self::Own);
        }
        let Workspace { mut characters, text } = with_workspaces(Vec::pop).flatten().unwrap_or_default();
        let made = text_of(read_characters(string, &mut characters)?, text);
        // What is no character is refused with the interpreter's own words.
        made.map_or_else(
            |_| utf8(object).map(Self::Own),
            |text| Ok(Self::Made(Workspace { characters, text })),
        )
    }
}

impl Deref for LongText<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            Self::Own(text) => text,
            Self::Made(workspace) => &workspace.text,
        }
    }
}

impl Drop for LongText<'_> {
    fn drop(&mut self) {
        if let Self::Made(workspace) = self {
            let workspace = std::mem::take(workspace);
            with_workspaces(|kept| {
                if kept.len() < PLACES {
                    kept.push(workspace);
                }
            });
        }
    }
}

/// Calls `f` unless another thread has the workspaces: nothing waits for memory.
fn with_workspaces<T>(f: impl FnOnce(&mut Vec<Workspace>) -> T) -> Option<T> {
    match WORKSPACES.try_lock() {
        Ok(mut kept) => Some(f(&mut kept)),
        Err(TryLockError::Poisoned(poisoned)) => Some(f(&mut poisoned.into_inner())),
        Err(TryLockError::WouldBlock) => None,
    }
}

/// The strings of a list, a tuple, Arrow data or any other iterable, kept alive.
pub(crate) enum Texts<'py> {
    Objects(Vec<Bound<'py, PyAny>>),
    Arrow(ArrowTexts),
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
        } else if let Some(arrow) = ArrowTexts::of(texts)? {
            return Ok(Self::Arrow(arrow));
        } else {
            texts.try_iter()?.collect::<PyResult<Vec<_>>>()?
        };
        Ok(Self::Objects(objects))
    }

    pub(crate) fn utf8(&self) -> PyResult<Vec<&str>> {
        match self {
            Self::Objects(objects) => objects.iter().map(utf8).collect(),
            Self::Arrow(arrow) => Ok(arrow.utf8()?),
        }
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
