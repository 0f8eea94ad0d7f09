//! Memory between the caller and the device.

use std::ops::{Deref, DerefMut};

/// Where it begins. Some processors copy several times slower between addresses whose places in a page of memory differ
/// by 16, which is where an allocator puts long vectors and where a file's page is not: 2.3 GB/s instead of 13 (Zen 3,
/// Linux 6.18, `pread` of 128 KiB).
const ALIGNMENT: usize = 64;

/// A vector of bytes whose first one is aligned.
#[derive(Debug, Default)]
pub(super) struct Buffer {
    memory: Vec<u8>,
    /// Bytes in front of the first one.
    front: usize,
}

impl Buffer {
    pub(super) fn clear(&mut self) {
        self.memory.truncate(self.front);
    }

    /// Makes it this long; what is new is zero.
    pub(super) fn resize(&mut self, length: usize) {
        self.reserve(length.saturating_sub(self.len()));
        self.memory.resize(self.front + length, 0);
    }

    /// The vector itself, to append at most `more` bytes to.
    pub(super) fn room_for(&mut self, more: usize) -> &mut Vec<u8> {
        self.reserve(more);
        &mut self.memory
    }

    fn reserve(&mut self, more: usize) {
        if !self.memory.is_empty() && self.memory.capacity() - self.memory.len() >= more {
            return;
        }
        let room = (self.len() + more).next_power_of_two();
        let mut memory: Vec<u8> = Vec::with_capacity(room + ALIGNMENT);
        let front = memory.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        memory.resize(front, 0);
        memory.extend_from_slice(self);
        *self = Self { memory, front };
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[self.front..]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.front..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_keeps_its_bytes_and_its_alignment_while_it_grows() {
        let mut buffer = Buffer::default();
        assert!(buffer.is_empty());
        for turn in 0..2 {
            let mut expected = Vec::new();
            for step in 0..200_u8 {
                let more = usize::from(step) * 37;
                buffer.room_for(more).extend(std::iter::repeat_n(step, more));
                expected.resize(expected.len() + more, step);
                assert_eq!(*buffer, *expected, "turn {turn}");
                assert!(buffer.as_ptr().addr().is_multiple_of(ALIGNMENT));
            }
            buffer.resize(10);
            assert_eq!(*buffer, expected[..10]);
            buffer.resize(20);
            assert_eq!(buffer[10..], [0; 10]);
            buffer.clear();
            assert!(buffer.is_empty());
        }
    }
}
