//! The residue of a block, read when its rows are undone.

use std::ops::Range;

use infer_accel_tensor::{TensorMut, TensorRef};

use super::base::Source;
use super::error::CheckpointError;
use crate::residue::{Exception, Residue};
use crate::slab::check_slab;
use crate::{AdapterDigest, Delta, Error, SlabOptions, kernels};

/// Where the residue of a block lies, and whose it must be.
#[derive(Debug)]
pub(super) struct UndoWork {
    /// The file.
    pub(super) source: usize,
    /// Its bytes in the file.
    pub(super) range: Range<u64>,
    /// The adapters that are taken back.
    pub(super) adapter: AdapterDigest,
    /// The tensor, for messages.
    pub(super) name: String,
}

/// A residue, ready for any rows.
pub(super) struct Exceptions {
    residue: Residue,
    entries: Vec<Exception>,
}

impl UndoWork {
    /// Reads and checks the residue.
    pub(super) fn load(&self, sources: &[Source]) -> Result<Exceptions, CheckpointError> {
        let Some(source) = sources.get(self.source) else {
            return Err(CheckpointError::Argument(format!("the plan has no source {}", self.source)));
        };
        let mut bytes = vec![0; (self.range.end - self.range.start) as usize];
        source.read(&mut bytes, self.range.start)?;
        let named = |error| CheckpointError::Tensor { name: self.name.clone(), source: Box::new(error) };
        let residue = Residue::from_bytes(&bytes).map_err(named)?;
        residue.check_adapter(self.adapter).map_err(named)?;
        let entries = residue.entries().map(|(index, difference)| Exception { index, difference }).collect();
        Ok(Exceptions { residue, entries })
    }
}

impl Exceptions {
    /// The digest of the merged weight that the residue belongs to.
    pub(super) fn merged_digest(&self) -> u64 {
        self.residue.merged_digest()
    }

    /// Gives back the rows of `target` from `first_row` on. Returns what they add to the digest of the merged weight.
    pub(super) fn undo(
        &self,
        target: &mut TensorMut<'_>,
        source: Option<&TensorRef<'_>>,
        deltas: &[Delta<'_>],
        first_row: usize,
    ) -> Result<u64, Error> {
        let options = SlabOptions { first_row, num_threads: Some(1), ..SlabOptions::default() };
        let (settings, scalings) = check_slab(&target.as_ref(), source, deltas, &options)?;
        let merged = source.map_or(target.dtype(), TensorRef::dtype);
        self.residue.check_dtypes(target.dtype(), merged)?;
        let (rows, columns) = (target.shape()[0], target.shape()[1]);
        let expected = self.residue.shape();
        if columns != expected[1] || first_row + rows > expected[0] {
            return Err(Error::ResidueShape { shape: [first_row + rows, columns], expected });
        }
        let place = |row: usize| {
            let index = row as u64 * columns as u64;
            self.entries.partition_point(|exception| exception.index < index)
        };
        let exceptions = self.entries.get(place(first_row)..place(first_row + rows)).unwrap_or_default();
        Ok(kernels::undo(target, source, (deltas, &scalings), first_row, exceptions, &settings))
    }
}
