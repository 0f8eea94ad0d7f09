//! Memory of the core, lent to numpy.

use numpy::PyArray2;
use numpy::ndarray::ArrayView2;
use pyo3::prelude::*;

/// An array of `rows` rows of bytes at `start`, one behind the other, which keeps `owner` alive.
///
/// # Safety
/// As long as `owner` lives, the bytes at `start` may be read and written from any thread, and nothing refers to
/// them as a slice.
pub(crate) unsafe fn lend(
    owner: Bound<'_, PyAny>,
    start: *mut u8,
    rows: usize,
    row_bytes: usize,
) -> Bound<'_, PyArray2<u8>> {
    // SAFETY: the caller's promise; the view lives only to say where the bytes are.
    unsafe {
        let view = ArrayView2::from_shape_ptr((rows, row_bytes), start);
        PyArray2::borrow_from_array(&view, owner)
    }
}
