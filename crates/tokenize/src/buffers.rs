//! Memory for the results of a batch's parts.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use crate::error::Result;

/// What results are appended to.
pub(crate) trait Memory {
    fn with_room(room: usize) -> Self;
    fn length(&self) -> usize;
}

impl Memory for Vec<u32> {
    fn with_room(room: usize) -> Self {
        Self::with_capacity(room)
    }

    fn length(&self) -> usize {
        self.len()
    }
}

impl Memory for String {
    fn with_room(room: usize) -> Self {
        Self::with_capacity(room)
    }

    fn length(&self) -> usize {
        self.len()
    }
}

/// As many pieces of memory as threads work at the same time, and no more: none for each part.
pub(crate) struct Buffers<M> {
    room: usize,
    free: Mutex<Vec<Buffer<M>>>,
}

pub(crate) struct Buffer<M> {
    pub(crate) memory: M,
    /// What lies in it, by the number of a part's first item, in order.
    pub(crate) parts: Vec<(usize, Range<usize>)>,
}

impl<M: Memory> Buffers<M> {
    /// Each has room for so many things at first.
    pub(crate) fn new(room: usize) -> Self {
        Self { room, free: Mutex::new(Vec::new()) }
    }

    /// Calls `fill` with memory to which it appends the results of the part that begins at item `first`.
    pub(crate) fn with(&self, first: usize, fill: impl FnOnce(&mut M) -> Result<()>) -> Result<()> {
        let free = || self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = free().pop();
        let mut buffer =
            taken.unwrap_or_else(|| Buffer { memory: M::with_room(self.room), parts: Vec::new() });
        let start = buffer.memory.length();
        let outcome = fill(&mut buffer.memory);
        buffer.parts.push((first, start..buffer.memory.length()));
        free().push(buffer);
        outcome
    }

    /// All that was used.
    pub(crate) fn into_inner(self) -> Vec<Buffer<M>> {
        self.free.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Buffers<Vec<u32>> {
    /// Everything in the order of the items.
    pub(crate) fn join(self) -> Vec<u32> {
        let mut buffers = self.into_inner();
        if buffers.len() == 1 {
            // One thread took the parts in order.
            let Buffer { mut memory, .. } = buffers.swap_remove(0);
            if memory.capacity() / 2 > memory.len() {
                memory.shrink_to_fit();
            }
            return memory;
        }
        let mut parts: Vec<(usize, &[u32])> = Vec::new();
        for Buffer { memory, parts: places } in &buffers {
            let part = |(first, place): &(usize, Range<usize>)| {
                (*first, memory.get(place.clone()).unwrap_or_default())
            };
            parts.extend(places.iter().map(part));
        }
        parts.sort_unstable_by_key(|(first, _)| *first);
        let parts: Vec<&[u32]> = parts.into_iter().map(|(_, ids)| ids).collect();
        parts.concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_join_in_the_order_of_their_items() {
        let buffers = Buffers::<Vec<u32>>::new(4);
        let fill = |first: usize, part: &[u32]| {
            buffers.with(first, |ids| {
                ids.extend_from_slice(part);
                Ok(())
            })
        };
        // A part inside another's time, as on another thread.
        let outcome = buffers.with(0, |ids| {
            ids.extend_from_slice(&[1, 2]);
            fill(2, &[4])?;
            fill(5, &[])
        });
        assert!(outcome.is_ok() && fill(6, &[5]).is_ok() && fill(1, &[3]).is_ok());
        assert_eq!(buffers.free.lock().unwrap().len(), 2);
        assert_eq!(buffers.join(), [1, 2, 3, 4, 5]);
        assert!(Buffers::<Vec<u32>>::new(0).join().is_empty());
    }
}
