#![allow(unsafe_code)] // asks the system for memory, and hands out its address
//! Host memory for pages: large, blank, and in huge pages where the system has them.

use crate::KvCacheError;
use crate::tier::TierError;
use std::ptr::NonNull;

/// What the memory begins at a multiple of: a huge page of x86-64 and of most others.
const ALIGNMENT: usize = 2 << 20;

/// Memory of `num_pages` pages, blank at first.
///
/// The system gives it as it is touched. On Linux it asks for huge pages, which makes copies of whole pages faster
/// and the first touch much cheaper.
#[derive(Debug)]
pub struct HostPool {
    start: NonNull<u8>,
    num_pages: usize,
    page_bytes: usize,
    _memory: Memory,
}

// SAFETY: the pool owns its memory, and hands out nothing but the address.
unsafe impl Send for HostPool {}
// SAFETY: as above.
unsafe impl Sync for HostPool {}

impl HostPool {
    /// Asks for memory; with `prefault`, touches all of it.
    pub fn new(num_pages: usize, page_bytes: usize, prefault: bool) -> Result<Self, KvCacheError> {
        let refused = || KvCacheError::from(TierError::HostMemory { pages: num_pages, page_bytes });
        let bytes =
            num_pages.checked_mul(page_bytes).filter(|&bytes| bytes <= isize::MAX as usize - 2 * ALIGNMENT);
        let bytes = bytes.ok_or_else(refused)?;
        let memory = Memory::new(bytes.max(1)).ok_or_else(refused)?;
        let start = memory.start();
        if prefault {
            memory.touch(bytes);
        }
        Ok(Self { start, num_pages, page_bytes, _memory: memory })
    }

    /// Pages.
    pub fn num_pages(&self) -> usize {
        self.num_pages
    }

    /// Bytes of a page.
    pub fn page_bytes(&self) -> usize {
        self.page_bytes
    }

    /// Where page 0 begins; the others follow without gaps. Valid as long as the pool lives.
    pub fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }
}

/// A mapping, or what stands for one.
#[derive(Debug)]
struct Memory {
    base: NonNull<u8>,
    length: usize,
}

impl Memory {
    /// Memory of at least `bytes` from the first aligned address on, all zero.
    #[cfg(unix)]
    fn new(bytes: usize) -> Option<Self> {
        let length = bytes.checked_next_multiple_of(ALIGNMENT)? + ALIGNMENT;
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping, anywhere; nothing that exists is touched.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), length, access, kind, -1, 0) };
        if base == libc::MAP_FAILED {
            return None;
        }
        let memory = Self { base: NonNull::new(base.cast())?, length };
        #[cfg(target_os = "linux")]
        // SAFETY: advice about the mapping made above; a system without huge pages refuses, which is as well.
        unsafe {
            libc::madvise(memory.start().as_ptr().cast(), length - ALIGNMENT, libc::MADV_HUGEPAGE);
        }
        Some(memory)
    }

    #[cfg(not(unix))]
    fn new(bytes: usize) -> Option<Self> {
        let length = bytes + ALIGNMENT;
        let layout = std::alloc::Layout::from_size_align(length, 1).ok()?;
        // SAFETY: the length is not zero.
        let base = unsafe { std::alloc::alloc_zeroed(layout) };
        NonNull::new(base).map(|base| Self { base, length })
    }

    /// The first aligned address.
    fn start(&self) -> NonNull<u8> {
        let skip = self.base.as_ptr().align_offset(ALIGNMENT);
        // SAFETY: an alignment more than was asked for was mapped, so the address lies within.
        unsafe { self.base.add(skip.min(ALIGNMENT)) }
    }

    /// Touches every small page of the first `bytes`.
    fn touch(&self, bytes: usize) {
        let start = self.start().as_ptr();
        for at in (0..bytes).step_by(4096) {
            // SAFETY: within the memory, which nobody else has seen yet.
            unsafe { start.add(at).write_volatile(0) };
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        #[cfg(unix)]
        // SAFETY: the mapping that `new` made; nothing refers to it any more.
        unsafe {
            libc::munmap(self.base.as_ptr().cast(), self.length);
        }
        #[cfg(not(unix))]
        if let Ok(layout) = std::alloc::Layout::from_size_align(self.length, 1) {
            // SAFETY: allocated by `new` with this layout.
            unsafe { std::alloc::dealloc(self.base.as_ptr(), layout) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_blank_aligned_and_all_there() {
        for (pages, bytes, prefault) in [(3, 5000, true), (1, 1, false), (7, 1 << 20, false), (0, 10, true)] {
            let pool = HostPool::new(pages, bytes, prefault).unwrap();
            assert_eq!(pool.as_ptr().addr() % ALIGNMENT, 0);
            // SAFETY: the pool's own memory, which nobody else knows.
            let all = unsafe { std::slice::from_raw_parts_mut(pool.as_ptr(), pages * bytes) };
            assert!(all.iter().all(|&byte| byte == 0));
            all.fill(7);
            assert_eq!((pool.num_pages(), pool.page_bytes()), (pages, bytes));
        }
    }

    #[test]
    fn too_much_is_refused() {
        for (pages, bytes) in [(usize::MAX, 2), (1, usize::MAX), (1 << 40, 1 << 21)] {
            assert_eq!(HostPool::new(pages, bytes, false).unwrap_err().code(), "storage.host_memory");
        }
    }
}
