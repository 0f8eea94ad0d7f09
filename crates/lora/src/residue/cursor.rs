//! Undoing a merge from top to bottom.

use super::format::Entries;
use super::{Exception, KERNEL_REVISION, Residue};
use crate::slab::{Delta, SlabOptions, check_slab};
use crate::{Error, kernels};
use infer_accel_tensor::{TensorMut, TensorRef};
use std::iter::Peekable;

/// Undoes a merge slab by slab; see [`Residue::undo`].
pub struct UndoCursor<'a> {
    residue: &'a Residue,
    entries: Peekable<Entries<'a>>,
    next_row: usize,
    digest: u64,
}

impl<'a> UndoCursor<'a> {
    pub(super) fn new(residue: &'a Residue) -> Self {
        let entries = Entries::new(&residue.entries, residue.base).peekable();
        Self { residue, entries, next_row: 0, digest: 0 }
    }

    /// Gives the next rows back: `target`, of the base's format, from `source`, the merged weight, or in place.
    /// `deltas` are those of the merge, with the rows of `lora_b` that belong to the slab.
    ///
    /// Whether the weight was the merged one is known at the end: see [`Self::finish`].
    ///
    /// # Errors
    ///
    /// [`Error`] before anything is written: what [`crate::merge_slab`] refuses, formats and widths other than the
    /// residue's, rows beyond its last, another kernel revision.
    pub fn unmerge_slab(
        &mut self,
        target: &mut TensorMut<'_>,
        source: Option<&TensorRef<'_>>,
        deltas: &[Delta<'_>],
        num_threads: Option<usize>,
    ) -> Result<(), Error> {
        let residue = self.residue;
        if residue.revision != KERNEL_REVISION {
            return Err(Error::ResidueRevision { found: residue.revision, expected: KERNEL_REVISION });
        }
        let options = SlabOptions { first_row: self.next_row, num_threads, ..SlabOptions::default() };
        let (settings, scalings) = check_slab(&target.as_ref(), source, deltas, &options)?;
        let merged = source.map_or(target.dtype(), TensorRef::dtype);
        let (rows, columns) = (target.shape()[0], target.shape()[1]);
        residue.check_dtypes(target.dtype(), merged)?;
        if columns != residue.shape[1] || rows > residue.shape[0] - self.next_row {
            return Err(Error::ResidueShape {
                shape: [self.next_row + rows, columns],
                expected: residue.shape,
            });
        }
        let end = (self.next_row + rows) as u64 * columns as u64;
        let mut exceptions: Vec<Exception> = Vec::new();
        while let Some(exception) = self.entries.next_if(|exception| exception.index < end) {
            exceptions.push(exception);
        }
        let part = kernels::undo(target, source, (deltas, &scalings), self.next_row, &exceptions, &settings);
        self.digest = self.digest.wrapping_add(part);
        self.next_row += rows;
        Ok(())
    }

    /// Says whether all rows have come, and whether they were those of the merged weight. Only then is what was
    /// written the base.
    ///
    /// # Errors
    ///
    /// [`Error::ResidueShape`], [`Error::ResidueWeight`].
    pub fn finish(self) -> Result<(), Error> {
        let expected = self.residue.shape;
        if self.next_row != expected[0] {
            return Err(Error::ResidueShape { shape: [self.next_row, expected[1]], expected });
        }
        if self.digest != self.residue.weight {
            return Err(Error::ResidueWeight { found: self.digest, expected: self.residue.weight });
        }
        Ok(())
    }
}
