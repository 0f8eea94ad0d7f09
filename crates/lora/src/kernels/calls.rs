//! From checked tensors to sweeps.

use super::digest;
use super::finish::{Finish, Finished, Squares};
use super::matrix::Matrix;
use super::passes::PARTS;
use super::random::mix;
use super::shrink::total;
use super::sweep::{Factors, SEGMENT, Sweep};
use super::undo::Undo;
use super::{CallSettings, Kernels};
use crate::residue::Exception;
use crate::slab::{Delta, Rounding, SlabOptions};
use crate::statistics::MergeStatistics;
use infer_accel_tensor::{TensorMut, TensorRef, simd, threads};

/// What a sweep of a merge found.
pub(crate) struct Outcome {
    pub(crate) statistics: MergeStatistics,
    /// In rising order.
    pub(crate) exceptions: Vec<Exception>,
    pub(crate) digest: u64,
}

/// Source, target and factors of a call.
pub(super) struct Parts {
    source: Matrix,
    target: Matrix,
    factors: Vec<Factors>,
    /// The scalings of the factors; deltas of rank 0 are left out.
    scalings: Vec<f32>,
}

impl Parts {
    /// # Panics
    ///
    /// Where shapes or dtypes do not fit each other; the caller has checked them.
    pub(super) fn new(
        target: &mut TensorMut<'_>,
        source: Option<&TensorRef<'_>>,
        deltas: &[Delta<'_>],
        scalings: &[f32],
    ) -> Self {
        let mut parts = || {
            let written = Matrix { base: target.as_mut_ptr(), ..Matrix::of(&target.as_ref())? };
            let read = source.map_or(Some(written), Matrix::of)?;
            if (read.rows, read.columns) != (written.rows, written.columns) {
                return None;
            }
            let (factors, scalings) = factors_of(deltas, scalings, [written.rows, written.columns])?;
            Some(Self { source: read, target: written, factors, scalings })
        };
        parts().unwrap_or_else(|| panic!("a merge of unchecked tensors"))
    }
}

/// The factors of deltas of a weight of some shape, and their scalings; those of rank 0 are left out.
pub(super) fn factors_of(
    deltas: &[Delta<'_>],
    scalings: &[f32],
    shape: [usize; 2],
) -> Option<(Vec<Factors>, Vec<f32>)> {
    let mut found = (Vec::new(), Vec::new());
    for (delta, &scaling) in deltas.iter().zip(scalings) {
        let (rows, columns) = (Matrix::of(&delta.lora_b)?, Matrix::of(&delta.lora_a)?);
        if [rows.rows, columns.columns] != shape || rows.columns != columns.rows {
            return None;
        }
        if columns.rows > 0 {
            found.0.push(Factors { rows, columns });
            found.1.push(scaling);
        }
    }
    Some(found)
}

/// Merges deltas with everything that the options ask for. `target` may have another format than `source`.
///
/// # Panics
///
/// Where shapes, dtypes or dimensions do not fit each other; the caller has checked them.
pub(crate) fn merge_slab(
    target: &mut TensorMut<'_>,
    source: Option<&TensorRef<'_>>,
    deltas: &[Delta<'_>],
    scalings: &[f32],
    options: &SlabOptions<'_>,
    settings: &CallSettings,
) -> Outcome {
    let parts = Parts::new(target, source, deltas, scalings);
    // SAFETY: these kernels are those of the processor.
    unsafe { merge_parts(Kernels::of(settings.tier), &parts, options, settings.threads) }
}

/// # Safety
///
/// The processor has the tier of the kernels; the matrices of the parts are readable, the target writable.
pub(super) unsafe fn merge_parts(
    kernels: &'static Kernels,
    parts: &Parts,
    options: &SlabOptions<'_>,
    threads: usize,
) -> Outcome {
    let whole_rows = options.magnitude.is_some();
    let sweep = |touched| Sweep { kernels, touched, factors: &parts.factors, whole_rows, threads };
    let row_factors = options.magnitude.as_ref().map(|magnitude| {
        let squares = Squares { kernels, source: parts.source, scalings: &parts.scalings };
        // SAFETY: the caller vouches for tensors and tier.
        let tasks = unsafe { sweep(parts.source).run(&squares) };
        let norms =
            tasks.into_iter().flat_map(|task| task.rows).map(|(row, parts)| (row, total(parts).sqrt()));
        row_factors(magnitude, parts.source.rows, norms)
    });
    let sink = Finish {
        kernels,
        source: parts.source,
        target: parts.target,
        scalings: &parts.scalings,
        first_row: options.first_row,
        seed: match options.rounding {
            Rounding::Nearest => None,
            Rounding::Stochastic { seed } => Some(seed),
        },
        row_factors: row_factors.as_deref(),
        with_statistics: options.statistics,
        with_residue: options.residue,
    };
    // SAFETY: as above.
    let tasks = unsafe { sweep(parts.source).run(&sink) };
    gather(tasks)
}

fn gather(tasks: Vec<Finished>) -> Outcome {
    let mut all = Outcome { statistics: MergeStatistics::default(), exceptions: Vec::new(), digest: 0 };
    for task in tasks {
        all.statistics += task.statistics;
        all.digest = all.digest.wrapping_add(task.digest);
        all.exceptions.append(&mut task.into_exceptions());
    }
    if !all.exceptions.is_sorted_by_key(|exception| exception.index) {
        all.exceptions.sort_unstable_by_key(|exception| exception.index);
    }
    all
}

/// What each row is multiplied by: its magnitude divided by its norm.
fn row_factors(
    magnitude: &TensorRef<'_>,
    rows: usize,
    norms: impl Iterator<Item = (usize, f32)>,
) -> Vec<f32> {
    let numbers = Matrix::of_vector(magnitude).filter(|matrix| matrix.rows == rows);
    let numbers = numbers.unwrap_or_else(|| panic!("a merge of an unchecked magnitude"));
    let mut factors = vec![0.0; rows];
    for (row, norm) in norms {
        // SAFETY: the tensor is borrowed and has as many elements as the weight has rows.
        let size = unsafe { numbers.format.read(numbers.at(row, 0)) };
        if let Some(factor) = factors.get_mut(row) {
            *factor = size / norm;
        }
    }
    factors
}

/// Undoes a merge and puts the exceptions right. Returns what the rows add to the digest of the merged weight.
///
/// # Panics
///
/// As [`merge_slab`].
pub(crate) fn undo(
    target: &mut TensorMut<'_>,
    source: Option<&TensorRef<'_>>,
    (deltas, scalings): (&[Delta<'_>], &[f32]),
    first_row: usize,
    exceptions: &[Exception],
    settings: &CallSettings,
) -> u64 {
    let parts = Parts::new(target, source, deltas, scalings);
    // SAFETY: these kernels are those of the processor.
    unsafe { undo_parts(Kernels::of(settings.tier), &parts, first_row, exceptions, settings.threads) }
}

/// # Safety
///
/// As [`merge_parts`].
pub(super) unsafe fn undo_parts(
    kernels: &'static Kernels,
    parts: &Parts,
    first_row: usize,
    exceptions: &[Exception],
    threads: usize,
) -> u64 {
    let sink = Undo {
        kernels,
        source: parts.source,
        target: parts.target,
        scalings: &parts.scalings,
        first_row,
        exceptions,
    };
    let sweep = Sweep { kernels, touched: parts.source, factors: &parts.factors, whole_rows: false, threads };
    // SAFETY: the caller vouches for tensors and tier.
    let tasks = unsafe { sweep.run(&sink) };
    tasks.into_iter().fold(0, |sum, task| sum.wrapping_add(task.digest))
}

/// The digest of a matrix of one of the three formats; 0 for anything else, which callers have refused.
pub(crate) fn matrix_digest(tensor: &TensorRef<'_>) -> u64 {
    Matrix::of(tensor).map_or(0, |matrix| {
        let kernels = Kernels::of(simd::tier());
        // SAFETY: the tensor is borrowed for this call; the processor has the tier.
        unsafe { digest::digest(kernels, &matrix, 0, threads::default_threads()) }
    })
}

/// The digest of bytes, as that of a matrix of one row whose segments are as long as those of binary32.
pub(crate) fn bytes_digest(bytes: &[u8]) -> u64 {
    let chunks = bytes.chunks(SEGMENT * size_of::<f32>()).enumerate();
    chunks.fold(mix(bytes.len() as u64), |sum, (index, chunk)| {
        // SAFETY: a chunk is readable and no longer than a segment of binary32.
        let hash = unsafe { digest::hash(chunk.as_ptr(), chunk.len()) };
        sum.wrapping_add(digest::summand(hash, 0, index * SEGMENT))
    })
}

const _: () = assert!(SEGMENT.is_multiple_of(PARTS));
