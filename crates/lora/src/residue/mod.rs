//! What makes a merge undoable bit for bit.
//!
//! A merge rounds `W + Δ` to the grid of its format. Rounding `W′ − Δ` gives `W` back, except where the merge lost
//! bits: where exponents differ, and where a zero lost its sign or a NaN its payload. A residue is the list of these
//! exceptions. For adapters as they are trained that is less than one element in a hundred.

mod builder;
mod cursor;
mod format;

pub use builder::{ResidueBuilder, SlabResidue};
pub use cursor::UndoCursor;
pub(crate) use format::Exception;

use crate::{Delta, Error, kernels};
use infer_accel_tensor::DType;

/// The revision of the arithmetic: what a delta is, bit for bit. A residue of another revision does not fit.
pub const KERNEL_REVISION: u32 = 1;

/// What tells the adapters of a merge from others: their matrices, bit for bit, scalings and order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AdapterDigest(pub(crate) u64);

impl AdapterDigest {
    /// The digest of deltas whose matrices are whole.
    ///
    /// # Errors
    ///
    /// [`Error`] where a matrix is none or of a format that is not served, or a scaling is not finite.
    pub fn of(deltas: &[Delta<'_>]) -> Result<Self, Error> {
        let mut digest = 0;
        for delta in deltas {
            let scaling = delta.checked_scaling()?;
            let matrices = [("lora_A", &delta.lora_a), ("lora_B", &delta.lora_b)];
            for (name, tensor) in matrices {
                crate::check::matrix(
                    crate::check::Named { name, tensor },
                    "[rank, in_features] or [out_features, rank]",
                )?;
                let shape = tensor.shape().iter().fold(0, |all, &side| kernels::mix(all ^ side as u64));
                let format = tensor.dtype().size() as u64 | u64::from(tensor.dtype() == DType::BF16) << 8;
                digest = kernels::mix(digest ^ kernels::mix(shape ^ format)) ^ kernels::matrix_digest(tensor);
            }
            digest = kernels::mix(digest ^ u64::from(scaling.to_bits()));
        }
        Ok(Self(digest))
    }

    /// The digest as a number, to be shown or stored.
    pub fn get(self) -> u64 {
        self.0
    }
}

/// The exceptions of the merge of one weight, and what they belong to.
///
/// Stored ([`Self::to_bytes`]) it begins with a header of 72 bytes, all numbers little endian:
///
/// | bytes | what |
/// |---|---|
/// | 8 | `IAresid` and the version of this layout, 1 |
/// | 4 | the kernel revision |
/// | 1, 1, 2 | formats of the base and of the merged weight (0 float32, 1 float16, 2 bfloat16); zero |
/// | 8, 8 | rows and columns |
/// | 8, 8 | digests of the adapters and of the merged weight |
/// | 8, 8 | exceptions, and bytes that follow the header |
/// | 8 | checksum of all other bytes |
///
/// Then comes, for each exception in order, two numbers of seven bits a byte, least significant first: elements since
/// the last exception; and what must be added to the bits that `round(W′ − Δ)` gives, as a signed number whose sign
/// is in the lowest bit. Neighbours on the grid differ by one, so that most take two bytes in all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Residue {
    pub(crate) revision: u32,
    pub(crate) base: DType,
    pub(crate) merged: DType,
    pub(crate) shape: [usize; 2],
    pub(crate) adapter: AdapterDigest,
    pub(crate) weight: u64,
    pub(crate) count: u64,
    pub(crate) entries: Vec<u8>,
}

impl Residue {
    /// Shape of the weight, `[out_features, in_features]`.
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// Format of the weight before the merge.
    pub fn base_dtype(&self) -> DType {
        self.base
    }

    /// Format of the merged weight.
    pub fn merged_dtype(&self) -> DType {
        self.merged
    }

    /// Elements that are noted.
    pub fn exceptions(&self) -> u64 {
        self.count
    }

    /// The revision of the arithmetic that it was made with.
    pub fn kernel_revision(&self) -> u32 {
        self.revision
    }

    /// The digest of the adapters that were merged.
    pub fn adapter_digest(&self) -> AdapterDigest {
        self.adapter
    }

    /// The digest of the merged weight.
    pub fn merged_digest(&self) -> u64 {
        self.weight
    }

    /// Bytes that [`Self::to_bytes`] gives.
    pub fn nbytes(&self) -> usize {
        format::HEADER_BYTES + self.entries.len()
    }

    /// The index of each exception in a dense weight, and what is added to its bits there.
    pub fn entries(&self) -> impl Iterator<Item = (u64, u32)> + '_ {
        format::Entries::new(&self.entries, self.base)
            .map(|exception| (exception.index, exception.difference))
    }

    /// Refuses another revision of the arithmetic and other adapters than those that were merged.
    ///
    /// # Errors
    ///
    /// [`Error::ResidueRevision`], [`Error::ResidueAdapter`].
    pub fn check_adapter(&self, adapter: AdapterDigest) -> Result<(), Error> {
        if self.revision != KERNEL_REVISION {
            return Err(Error::ResidueRevision { found: self.revision, expected: KERNEL_REVISION });
        }
        if self.adapter != adapter {
            return Err(Error::ResidueAdapter { found: adapter.0, expected: self.adapter.0 });
        }
        Ok(())
    }

    /// Refuses formats other than those of the base and of the merged weight.
    pub(crate) fn check_dtypes(&self, base: DType, merged: DType) -> Result<(), Error> {
        if (base, merged) == (self.base, self.merged) {
            return Ok(());
        }
        Err(Error::ResidueDType { base, merged, expected_base: self.base, expected_merged: self.merged })
    }

    /// Starts to undo the merge, slab by slab.
    pub fn undo(&self) -> UndoCursor<'_> {
        UndoCursor::new(self)
    }
}
