//! Undoing the merge of a whole weight.

use crate::residue::Residue;
use crate::slab::check_slab;
use crate::{AdapterDigest, Delta, Error, SlabOptions, kernels};
use infer_accel_tensor::{TensorMut, TensorRef};

/// Gives back the bits that a weight had before a merge: −0.0 and the payloads of NaN too.
///
/// `target` gets them; it is of the base's format. `source` is the merged weight, `None` for undoing in place, where
/// base and merged weight must be of one format. `deltas` are those of the merge, in the same order.
///
/// # Errors
///
/// [`Error`] before anything is written: what [`crate::merge_slab`] refuses, and a residue of other adapters, of
/// another weight, of other formats or of another kernel revision.
///
/// # Examples
///
/// ```
/// use infer_accel_lora::{Delta, SlabOptions, merge_with_residue, unmerge_weights};
/// use infer_accel_tensor::{TensorMut, TensorRef};
///
/// let mut weight = [1.0_f32, -0.0, 1e-9];
/// let delta = Delta {
///     lora_a: TensorRef::from_slice(&[0.1_f32, 0.0, 1.0], &[1, 3])?,
///     lora_b: TensorRef::from_slice(&[0.3_f32], &[1, 1])?,
///     scaling: 1.0,
/// };
/// let mut view = TensorMut::from_slice(&mut weight, &[1, 3])?;
/// let (_, residue) = merge_with_residue(&mut view, None, &[delta], &SlabOptions::default())?;
/// unmerge_weights(&mut view, None, &[delta], &residue, None)?;
/// assert_eq!(weight.map(f32::to_bits), [1.0_f32, -0.0, 1e-9].map(f32::to_bits));
/// # Ok::<(), infer_accel_lora::Error>(())
/// ```
pub fn unmerge_weights(
    target: &mut TensorMut<'_>,
    source: Option<&TensorRef<'_>>,
    deltas: &[Delta<'_>],
    residue: &Residue,
    num_threads: Option<usize>,
) -> Result<(), Error> {
    let options = SlabOptions { num_threads, ..SlabOptions::default() };
    let written = target.as_ref();
    check_slab(&written, source, deltas, &options)?;
    residue.check_adapter(AdapterDigest::of(deltas)?)?;
    let merged = source.unwrap_or(&written);
    if merged.shape() != residue.shape() {
        return Err(Error::ResidueShape {
            shape: [merged.shape()[0], merged.shape()[1]],
            expected: residue.shape(),
        });
    }
    residue.check_dtypes(written.dtype(), merged.dtype())?;
    let found = kernels::matrix_digest(merged);
    if found != residue.merged_digest() {
        return Err(Error::ResidueWeight { found, expected: residue.merged_digest() });
    }
    let mut cursor = residue.undo();
    cursor.unmerge_slab(target, source, deltas, num_threads)?;
    cursor.finish()
}
