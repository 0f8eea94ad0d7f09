//! The way back: what a merge added is computed again and taken away, and the noted exceptions are put right.

use super::Kernels;
use super::digest::summand;
use super::finish::{Buffers, Work, restore};
use super::matrix::Matrix;
use super::storage::Format;
use super::sweep::{RowSink, Segment};
use crate::residue::Exception;

/// The undoing of a merge whose inner products come from a [`super::sweep::Sweep`].
pub(crate) struct Undo<'a> {
    pub(crate) kernels: &'static Kernels,
    /// The merged weight.
    pub(crate) source: Matrix,
    /// What is written: the source itself, or memory apart from it, of the same shape.
    pub(crate) target: Matrix,
    /// What the inner products of each pair of factors were multiplied by.
    pub(crate) scalings: &'a [f32],
    /// Where the first row stands in the whole weight.
    pub(crate) first_row: usize,
    /// The exceptions of these rows, by index.
    pub(crate) exceptions: &'a [Exception],
}

// SAFETY: holds addresses of memory that the caller has borrowed for as long as the sweep runs; segments are
// disjoint, and each is written by the task that it is handed to.
unsafe impl Sync for Undo<'_> {}

/// What a task of an [`Undo`] keeps.
pub(crate) struct Undone {
    /// What the segments add to the digest of the merged weight.
    pub(crate) digest: u64,
    work: Box<Work>,
}

impl RowSink for Undo<'_> {
    type State = Undone;

    fn wants_split(&self) -> bool {
        let (before, after) = (self.target.format, self.source.format);
        self.scalings.len() == 1 && before == after && before.is_split()
    }

    fn begin(&self) -> Undone {
        Undone { digest: 0, work: Work::new() }
    }

    unsafe fn segment(&self, state: &mut Undone, segment: &Segment) {
        let &Segment { row, column, count, .. } = segment;
        let Buffers { gathered, stored, values, .. } = state.work.buffers();
        let formats = (self.target.format, self.source.format);
        let global_row = (self.first_row + row) as u64;
        // SAFETY: the caller vouches for tier and elements; every buffer holds a segment of the widest format.
        unsafe {
            let merged = self.source.dense(row, column, count, gathered);
            let hash = (self.kernels.passes.hash)(merged, count * formats.1.size());
            state.digest = state.digest.wrapping_add(summand(hash, global_row, column));
            restore(
                self.kernels,
                formats,
                merged,
                (segment, self.wants_split()),
                self.scalings,
                values,
                stored,
            );
            let first = global_row * self.source.columns as u64 + column as u64;
            self.put_right(std::slice::from_raw_parts_mut(stored, count * formats.0.size()), first, count);
            self.target.scatter(row, column, count, stored);
        }
    }
}

impl Undo<'_> {
    /// Adds the differences of the exceptions in a segment to its bits.
    fn put_right(&self, stored: &mut [u8], first: u64, count: usize) {
        let begin = self.exceptions.partition_point(|exception| exception.index < first);
        for exception in &self.exceptions[begin..] {
            let at = exception.index - first;
            if at >= count as u64 {
                break;
            }
            if self.target.format == Format::F32 {
                let (elements, _) = stored.as_chunks_mut::<4>();
                let Some(element) = elements.get_mut(at as usize) else { return };
                *element = u32::from_ne_bytes(*element).wrapping_add(exception.difference).to_ne_bytes();
            } else {
                let (elements, _) = stored.as_chunks_mut::<2>();
                let Some(element) = elements.get_mut(at as usize) else { return };
                *element =
                    u16::from_ne_bytes(*element).wrapping_add(exception.difference as u16).to_ne_bytes();
            }
        }
    }
}
