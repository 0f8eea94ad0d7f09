//! Putting the residue of a weight together from those of its slabs.

use super::format::append;
use super::{AdapterDigest, Exception, KERNEL_REVISION, Residue};
use crate::Error;
use infer_accel_tensor::DType;

/// The exceptions of some rows of a weight; see [`ResidueBuilder::push`].
#[derive(Clone, Debug)]
pub struct SlabResidue {
    pub(crate) first_row: usize,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) base: DType,
    pub(crate) merged: DType,
    /// In rising order.
    pub(crate) exceptions: Vec<Exception>,
    /// What the rows add to the digest of the merged weight.
    pub(crate) digest: u64,
}

/// Collects the slabs of a weight, top to bottom.
#[derive(Debug)]
pub struct ResidueBuilder {
    residue: Residue,
    next_row: usize,
    next_index: u64,
}

impl ResidueBuilder {
    /// A builder for a weight of `[rows, columns]`, before and after the merge of the formats given.
    pub fn new(shape: [usize; 2], base: DType, merged: DType, adapter: AdapterDigest) -> Self {
        let residue = Residue {
            revision: KERNEL_REVISION,
            base,
            merged,
            shape,
            adapter,
            weight: 0,
            count: 0,
            entries: Vec::new(),
        };
        Self { residue, next_row: 0, next_index: 0 }
    }

    /// Adds the next rows.
    ///
    /// # Errors
    ///
    /// [`Error::ResidueSlab`] for a slab that does not begin where the last one ended, is wider or narrower than the
    /// weight, reaches beyond it, or is of other formats.
    pub fn push(&mut self, slab: &SlabResidue) -> Result<(), Error> {
        let residue = &mut self.residue;
        let end = slab.first_row.checked_add(slab.rows);
        let fits = (slab.first_row, slab.columns) == (self.next_row, residue.shape[1])
            && (slab.base, slab.merged) == (residue.base, residue.merged)
            && end.is_some_and(|end| end <= residue.shape[0]);
        if !fits {
            return Err(Error::ResidueSlab {
                first_row: slab.first_row,
                rows: slab.rows,
                next_row: self.next_row,
                all_rows: residue.shape[0],
            });
        }
        append(&mut residue.entries, &mut self.next_index, &slab.exceptions, residue.base);
        residue.count += slab.exceptions.len() as u64;
        residue.weight = residue.weight.wrapping_add(slab.digest);
        self.next_row += slab.rows;
        Ok(())
    }

    /// The residue of the whole weight.
    ///
    /// # Errors
    ///
    /// [`Error::ResidueSlab`] where rows are missing.
    pub fn finish(self) -> Result<Residue, Error> {
        if self.next_row != self.residue.shape[0] {
            let all_rows = self.residue.shape[0];
            return Err(Error::ResidueSlab {
                first_row: all_rows,
                rows: 0,
                next_row: self.next_row,
                all_rows,
            });
        }
        Ok(self.residue)
    }
}
