//! Large tables of plain entries, in huge pages where the system has them.
//!
//! A look-up at a random place of a table in pages of 4 KiB waits for the processor to find the page, which itself
//! takes reads from memory once other work has emptied the caches: a third of the time of a text that comes then.
#![allow(unsafe_code)]

use std::alloc::{Layout, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use infer_accel_tensor::Buffer;

/// What a [`Table`] may hold.
///
/// # Safety
/// Bytes that are all zero must be a value of the type.
pub(crate) unsafe trait Plain: Copy + Send + Sync {}

// SAFETY: numbers.
unsafe impl Plain for crate::bpe::token_table::Bucket {}
// SAFETY: numbers.
unsafe impl Plain for crate::bpe::pair_table::Bucket {}
// SAFETY: numbers.
unsafe impl Plain for crate::cache::Bucket {}
// SAFETY: bytes and numbers.
unsafe impl<const BYTES: usize> Plain for crate::long_table::Entry<BYTES> {}

/// A slice of fixed length, zero at first.
pub(crate) struct Table<T: Plain> {
    start: NonNull<T>,
    len: usize,
    /// Where the entries lie.
    _memory: Buffer,
}

// SAFETY: the memory belongs to this table alone; a shared table is only read, and entries are plain.
unsafe impl<T: Plain> Send for Table<T> {}
// SAFETY: as above.
unsafe impl<T: Plain> Sync for Table<T> {}

impl<T: Plain> Table<T> {
    /// Ends the program where the system has no memory for it, as every other allocation does.
    pub(crate) fn zeroed(len: usize) -> Self {
        const { assert!(align_of::<T>() <= Buffer::ALIGNMENT) };
        let memory = len.checked_mul(size_of::<T>()).and_then(Buffer::zeroed);
        let Some(mut memory) = memory else { handle_alloc_error(Layout::new::<T>()) };
        let start = NonNull::from(&mut *memory).cast();
        Self { start, len, _memory: memory }
    }
}

impl<T: Plain> Deref for Table<T> {
    type Target = [T];

    #[inline(always)]
    fn deref(&self) -> &[T] {
        // SAFETY: the buffer, whose memory stays where it is, has room for `len` entries, is aligned for them, and holds
        // zeros, which are entries, or what was written through `deref_mut`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<T: Plain> DerefMut for Table<T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`; the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // SAFETY: a number.
    unsafe impl Plain for u64 {}

    #[test]
    fn entries_are_zero_and_stay_what_they_became() {
        for len in [0, 1, 5, 1 << 18, (1 << 18) + 1] {
            let mut table = Table::<u64>::zeroed(len);
            assert!(table.len() == len && table.iter().all(|entry| *entry == 0));
            table.iter_mut().zip(1..).for_each(|(entry, value)| *entry = value);
            assert!(table.iter().copied().eq(1..=len as u64));
        }
    }
}
