#![allow(unsafe_code)] // A copy between two addresses.
//! The specification of a copy: `memcpy`.

/// # Safety
/// As [`super::RunKernel::copy`].
#[inline]
pub(super) unsafe fn copy(source: *const u8, target: *mut u8, bytes: usize) {
    // SAFETY: the caller's promise.
    unsafe { std::ptr::copy_nonoverlapping(source, target, bytes) };
}
