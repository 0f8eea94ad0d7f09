#![allow(unsafe_code)] // The prefetch instruction has no safe face on stable Rust.
//! A hint that an entry of a table will be read soon.

/// Asks the cache for `table[index]`; does nothing where there is no such entry.
#[inline(always)]
pub(crate) fn prefetch_entry<T>(table: &[T], index: usize) {
    #[cfg(target_arch = "x86_64")]
    if let Some(entry) = table.get(index) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch has no effect that a program can see, and SSE is part of every x86-64.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(entry).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (table, index);
}
