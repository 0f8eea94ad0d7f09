//! Memory for large files: owned, aligned, in huge pages where the system has them.
//!
//! Fresh memory in pages of 4 KiB costs more than what is then done with it: a fault for each page. The buffer
//! asks for huge pages, and starts at a multiple of their size, so that one fault brings 2 MiB.
#![allow(unsafe_code)] // memory straight from the system

use std::fmt;
use std::ops::{Deref, DerefMut};

/// Bytes that begin at a multiple of [`Buffer::ALIGNMENT`], zero at first.
pub struct Buffer {
    memory: Memory,
    len: usize,
}

impl Buffer {
    /// The alignment of the first byte: a cache line, and more than any number format asks for.
    pub const ALIGNMENT: usize = 64;

    /// `len` zero bytes; `None` where the system has no such memory. Pages are touched by whoever first
    /// writes to them.
    pub fn zeroed(len: usize) -> Option<Self> {
        Some(Self { memory: Memory::zeroed(len)?, len })
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `len` initialized bytes that this buffer owns and nobody writes to while it is borrowed.
        unsafe { std::slice::from_raw_parts(self.memory.start(), self.len) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.memory.start(), self.len) }
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer").field("len", &self.len).finish_non_exhaustive()
    }
}

// SAFETY: the memory belongs to this buffer alone; a shared buffer is only read.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

/// Below this, huge pages cannot help and the allocator is quicker than the system.
const SMALL: usize = 2 << 20;

enum Memory {
    Heap {
        start: *mut u8,
        layout: std::alloc::Layout,
    },
    #[cfg(unix)]
    Mapped {
        mapping: *mut u8,
        mapped: usize,
        start: *mut u8,
    },
}

impl Memory {
    fn zeroed(len: usize) -> Option<Self> {
        #[cfg(unix)]
        if len >= SMALL {
            return Self::map(len);
        }
        let layout = std::alloc::Layout::from_size_align(len.max(1), Buffer::ALIGNMENT).ok()?;
        // SAFETY: the layout has a size above zero.
        let start = unsafe { std::alloc::alloc_zeroed(layout) };
        (!start.is_null()).then_some(Self::Heap { start, layout })
    }

    #[cfg(unix)]
    fn map(len: usize) -> Option<Self> {
        const HUGE_PAGE: usize = 2 << 20;
        let mapped = len.checked_next_multiple_of(HUGE_PAGE)?.checked_add(HUGE_PAGE)?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new private mapping at an address of the system's choice touches no other memory.
        let mapping = unsafe { libc::mmap(std::ptr::null_mut(), mapped, protection, flags, -1, 0) };
        if mapping == libc::MAP_FAILED {
            return None;
        }
        let mapping = mapping.cast::<u8>();
        let start = mapping.wrapping_add(mapping.align_offset(HUGE_PAGE));
        #[cfg(target_os = "linux")]
        // SAFETY: advice about memory of this mapping; refusal changes nothing.
        unsafe {
            libc::madvise(start.cast(), len.next_multiple_of(HUGE_PAGE), libc::MADV_HUGEPAGE);
        }
        Some(Self::Mapped { mapping, mapped, start })
    }

    fn start(&self) -> *mut u8 {
        match self {
            Self::Heap { start, .. } => *start,
            #[cfg(unix)]
            Self::Mapped { start, .. } => *start,
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        match *self {
            // SAFETY: allocated with this layout, and freed once.
            Self::Heap { start, layout } => unsafe { std::alloc::dealloc(start, layout) },
            #[cfg(unix)]
            // SAFETY: mapped with this length, and unmapped once.
            Self::Mapped { mapping, mapped, .. } => unsafe {
                libc::munmap(mapping.cast(), mapped);
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_zero_aligned_and_writable() {
        for len in [0, 1, 100, SMALL - 1, SMALL, SMALL + 1, 3 * SMALL + 17] {
            let mut buffer = Buffer::zeroed(len).unwrap();
            assert_eq!(buffer.len(), len);
            assert!(buffer.as_ptr().addr().is_multiple_of(Buffer::ALIGNMENT));
            assert!(buffer.iter().all(|&byte| byte == 0));
            if let Some(last) = buffer.last_mut() {
                *last = 7;
            }
            assert_eq!(buffer.iter().map(|&byte| u64::from(byte)).sum::<u64>(), if len > 0 { 7 } else { 0 });
        }
    }

    #[test]
    fn what_no_machine_has_is_refused() {
        assert!(Buffer::zeroed(usize::MAX).is_none());
        assert!(Buffer::zeroed(usize::MAX / 4).is_none());
    }
}
