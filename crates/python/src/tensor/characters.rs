//! A string's characters as numbers.

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyString;

/// Copies the characters of a string into `memory`, which grows if it must, and returns them.
pub(crate) fn read_characters<'m>(
    text: &Bound<'_, PyString>,
    memory: &'m mut Vec<u32>,
) -> PyResult<&'m [u32]> {
    // SAFETY: a string object, and the interpreter's lock is held. Not `len()`, which a subclass may answer itself.
    let length = unsafe { ffi::PyUnicode_GetLength(text.as_ptr()) };
    let Ok(length) = usize::try_from(length) else { return Err(PyErr::fetch(text.py())) };
    if memory.len() < length {
        memory.resize(length, 0);
    }
    let room = ffi::Py_ssize_t::try_from(memory.len()).unwrap_or(ffi::Py_ssize_t::MAX);
    // SAFETY: as above; the memory has room for so many numbers, which is what the interpreter is told and checks,
    // and a zero at the end is not asked for.
    let written = unsafe { ffi::PyUnicode_AsUCS4(text.as_ptr(), memory.as_mut_ptr(), room, 0) };
    if written.is_null() {
        return Err(PyErr::fetch(text.py()));
    }
    Ok(memory.get(..length).unwrap_or_default())
}
