//! Memory for packed matrices: many of them side by side in huge pages.
//!
//! A batch with an adapter for each token reads each adapter once, a quarter of a megabyte from one place and the next
//! from another. In pages of 4 KiB that is a walk through the page table every 64 lines, and an end of what the
//! processor fetches by itself; in huge pages it is neither.

use infer_accel_tensor::Buffer;
use std::sync::{Arc, Mutex, Weak};

use super::LINE_BYTES;

/// Bytes of a block, enough for huge pages.
const BLOCK_BYTES: usize = 4 << 20;

/// Fewer bytes than these do not share a block, which would outlive its other tenants for their sake.
const SMALLEST: usize = 64 << 10;

/// More bytes than these have memory of their own.
const LARGEST: usize = BLOCK_BYTES / 2;

/// Zeros that begin at a cache line; they go back to the system with the last tenant of their block.
pub(super) struct Lines {
    start: *mut u8,
    len: usize,
    _block: Arc<Block>,
}

// SAFETY: the bytes belong to one `Lines` alone; a shared one is only read.
unsafe impl Send for Lines {}
// SAFETY: as above.
unsafe impl Sync for Lines {}

/// Memory that is handed out from front to back.
struct Block {
    start: *mut u8,
    _memory: Buffer,
}

// SAFETY: the block is only kept alive; its bytes are reached through the `Lines` that they were handed out to.
unsafe impl Send for Block {}
// SAFETY: as above.
unsafe impl Sync for Block {}

impl Block {
    fn new(bytes: usize) -> Option<Arc<Self>> {
        let mut memory = Buffer::zeroed(bytes)?;
        Some(Arc::new(Self { start: memory.as_mut_ptr(), _memory: memory }))
    }
}

/// The block that is being handed out, and how much of it is.
static CURRENT: Mutex<(Weak<Block>, usize)> = Mutex::new((Weak::new(), 0));

impl Lines {
    /// `len` zeros; `None` where the system has no memory.
    pub(super) fn zeroed(len: usize) -> Option<Self> {
        let bytes = len.max(1).checked_next_multiple_of(LINE_BYTES)?;
        if (SMALLEST..=LARGEST).contains(&bytes) {
            // Somebody else may hold the lock, or have held it while this process was forked: then go without.
            if let Ok(mut current) = CURRENT.try_lock() {
                let (block, used) = match current.0.upgrade() {
                    Some(block) if current.1 + bytes <= BLOCK_BYTES => (block, current.1),
                    _ => (Block::new(BLOCK_BYTES)?, 0),
                };
                *current = (Arc::downgrade(&block), used + bytes);
                return Some(Self { start: block.start.wrapping_add(used), len, _block: block });
            }
        }
        let block = Block::new(bytes)?;
        Some(Self { start: block.start, len, _block: block })
    }

    /// The first byte.
    pub(super) fn as_ptr(&self) -> *const u8 {
        self.start
    }

    /// The first byte, to be written.
    pub(super) fn as_mut_ptr(&mut self) -> *mut u8 {
        self.start
    }

    /// Bytes.
    pub(super) fn len(&self) -> usize {
        self.len
    }
}
