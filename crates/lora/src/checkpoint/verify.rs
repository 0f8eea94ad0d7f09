//! Reading back a sample of what was written and computing it again in binary64.
//!
//! Of each block that was merged two rows are read, of each run of bytes that went through one piece. What must not
//! differ is compared byte by byte. A merged element must be within what its arithmetic may lose of the binary64 result:
//! half a step of the output's format, and the roundings of binary32 along the way.

use std::ops::ControlFlow;
use std::path::Path;

use half::{bf16, f16};
use infer_accel_tensor::{DType, TensorMut};

use super::control::{Observer, Progress};
use super::error::CheckpointError;
use super::files::OutputFile;
use super::plan::{Part, Plan, RowWork, Segment, Work};
use super::report::Verification;
use crate::{Error, SlabOptions, merge_slab};

/// Bytes of a piece that is compared.
const PIECE_BYTES: u64 = 64 << 10;

/// Checks a sample of every segment.
pub(super) fn verify(
    plan: &Plan,
    files: &Path,
    observer: &mut Observer<'_>,
) -> Result<Verification, CheckpointError> {
    let mut verification = Verification::default();
    let mut open: Option<(usize, OutputFile)> = None;
    let progress = Progress { done: plan.bytes(), total: plan.bytes() };
    for segment in plan.segments() {
        let Some(shard) = plan.shards.get(segment.shard) else { continue };
        let file = match open.take() {
            Some((number, file)) if number == segment.shard => file,
            _ => OutputFile::reopen(&files.join(&shard.name))?,
        };
        let sample = Sample { plan, segment, file: &file, path: &files.join(&shard.name) };
        sample.check(&mut verification)?;
        open = Some((segment.shard, file));
        if let ControlFlow::Break(()) = observer(progress) {
            return Err(CheckpointError::Interrupted);
        }
    }
    Ok(verification)
}

/// A segment of which a sample is checked.
pub(super) struct Sample<'a> {
    pub(super) plan: &'a Plan,
    pub(super) segment: &'a Segment,
    file: &'a OutputFile,
    path: &'a Path,
}

impl Sample<'_> {
    fn check(&self, verification: &mut Verification) -> Result<(), CheckpointError> {
        let length = self.segment.output.end - self.segment.output.start;
        match &self.segment.work {
            Work::Bytes(bytes) => self.compare(0, bytes.get(..length as usize).unwrap_or_default()),
            Work::Copy { source, from } => {
                let first = chosen(self.segment.output.start, length.div_ceil(PIECE_BYTES)) * PIECE_BYTES;
                let mut bytes = vec![0; (length - first).min(PIECE_BYTES) as usize];
                self.source(*source, from + first, &mut bytes)?;
                verification.copied_bytes += bytes.len() as u64;
                self.compare(first, &bytes)
            }
            Work::Convert { tensor, to } if tensor.dtype() == *to => {
                let first = chosen(self.segment.output.start, length.div_ceil(PIECE_BYTES)) * PIECE_BYTES;
                let end = (first + PIECE_BYTES).min(length) as usize;
                self.compare(first, tensor.bytes().get(first as usize..end).unwrap_or_default())
            }
            // A row of the matrix is a column of the block: two rows of the block do not tell its norm.
            Work::Rows(work) if work.is_transposed && work.magnitude.is_some() => Ok(()),
            Work::Rows(work) => {
                let some = chosen(self.segment.output.start, work.rows as u64) as usize;
                self.row(work, some, verification)?;
                self.row(work, work.rows.saturating_sub(1), verification)
            }
            Work::Convert { .. } => Ok(()),
            Work::Codes(work) => self.codes(work, verification),
            Work::Scales(work) => self.scales(work),
        }
    }

    fn source(&self, source: usize, offset: u64, bytes: &mut [u8]) -> Result<(), CheckpointError> {
        self.plan.sources.get(source).map_or(Ok(()), |source| source.read(bytes, offset))
    }

    /// Compares bytes of the segment, from its byte `first` on.
    pub(super) fn compare(&self, first: u64, expected: &[u8]) -> Result<(), CheckpointError> {
        let mut found = vec![0; expected.len()];
        self.file.read_at(&mut found, self.segment.output.start + first)?;
        if found == expected {
            return Ok(());
        }
        Err(self.damaged(&format!(
            "bytes from {} on are not those of the base",
            self.segment.output.start + first
        )))
    }

    pub(super) fn damaged(&self, problem: &str) -> CheckpointError {
        CheckpointError::Integrity {
            path: self.path.to_owned(),
            problem: format!(
                "{problem}; the disk or the memory of this machine is faulty: nothing was published"
            ),
        }
    }

    /// Computes one row again.
    fn row(
        &self,
        work: &RowWork,
        row: usize,
        verification: &mut Verification,
    ) -> Result<(), CheckpointError> {
        let mut before = vec![0; work.columns * work.dtype.size()];
        let offset = (row * before.len()) as u64;
        self.source(work.source, work.from + offset, &mut before)?;
        let mut after = vec![0; work.columns * work.output_dtype.size()];
        let offset = (row * after.len()) as u64;
        self.file.read_at(&mut after, self.segment.output.start + offset)?;
        let name = self.segment.tensor.and_then(|tensor| self.plan.tensors.get(tensor));
        let name = name.map_or("", |tensor| tensor.name.as_str());
        let named = |error| CheckpointError::Tensor { name: name.to_owned(), source: Box::new(error) };
        let base = widen(&before, work.dtype);
        let mut sums: Vec<f64> = base.iter().copied().map(f64::from).collect();
        let mut magnitudes: Vec<f64> = sums.iter().map(|value| value.abs()).collect();
        let mut roundings = 2.0;
        for part in &work.parts {
            roundings += part.rank() as f64 + 1.0;
            add(part, row, &mut sums, &mut magnitudes).map_err(named)?;
        }
        if let Some(magnitude) = &work.magnitude {
            let lengths = widen(magnitude.bytes(), magnitude.dtype());
            let norm = sums.iter().map(|value| value * value).sum::<f64>().sqrt();
            let factor = lengths.get(row).map_or(f64::NAN, |length| f64::from(*length)) / norm;
            sums.iter_mut().chain(&mut magnitudes).for_each(|value| *value *= factor);
            roundings += work.columns as f64 / 16.0 + 8.0;
        }
        let found = widen(&after, work.output_dtype);
        for (column, ((&value, &size), &found)) in sums.iter().zip(&magnitudes).zip(&found).enumerate() {
            verification.elements += 1;
            let nearest = round(value, work.output_dtype);
            if nearest.to_bits() == found.to_bits() || (nearest.is_nan() && found.is_nan()) {
                continue;
            }
            verification.off += u64::from(nearest != found);
            let lost = roundings * f64::from(f32::EPSILON) / 2.0 * size.abs();
            let allowed = step(value, work.output_dtype) * 0.5 * (1.0 + 1e-6) + lost;
            let is_near = (f64::from(found) - value).abs() <= allowed
                || (found.is_infinite() && value.abs() + allowed >= largest(work.output_dtype));
            if !is_near {
                let problem = format!(
                    "row {row}, column {column} of {name} is {found}; binary64 gives {value}, and {allowed:e} may be lost"
                );
                return Err(self.damaged(&problem));
            }
        }
        Ok(())
    }
}

/// One of `count` places, chosen by where a segment lies: the same in every run.
pub(super) fn chosen(place: u64, count: u64) -> u64 {
    let mixed = (place ^ (place >> 29)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 16) % count.max(1)
}

/// Adds one row of a delta in binary64.
pub(super) fn add(part: &Part, row: usize, sums: &mut [f64], magnitudes: &mut [f64]) -> Result<(), Error> {
    let delta = part.delta(true, row..row + 1)?;
    let scaling = f64::from(delta.scaling as f32);
    let factors = wide(&delta.lora_b)?;
    let columns = wide(&delta.lora_a)?;
    for (factor, values) in factors.iter().zip(columns.chunks_exact(sums.len().max(1))) {
        let factor = scaling * f64::from(*factor);
        for ((sum, magnitude), &value) in sums.iter_mut().zip(magnitudes.iter_mut()).zip(values) {
            let product = factor * f64::from(value);
            *sum += product;
            *magnitude += product.abs();
        }
    }
    Ok(())
}

/// The elements of a matrix in binary32, row by row.
fn wide(matrix: &infer_accel_tensor::TensorRef<'_>) -> Result<Vec<f32>, Error> {
    let mut values = vec![0.0_f32; matrix.len()];
    let mut target = TensorMut::from_slice(&mut values, matrix.shape())?;
    let options = SlabOptions { num_threads: Some(1), ..SlabOptions::default() };
    merge_slab(&mut target, Some(matrix), &[], &options)?;
    Ok(values)
}

/// The numbers of some bytes.
pub(super) fn widen(bytes: &[u8], dtype: DType) -> Vec<f32> {
    let pairs = bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
    match dtype {
        DType::F32 => bytes
            .chunks_exact(4)
            .map(|word| f32::from_le_bytes([word[0], word[1], word[2], word[3]]))
            .collect(),
        DType::F16 => pairs.map(|bits| f16::from_bits(bits).to_f32()).collect(),
        _ => pairs.map(|bits| bf16::from_bits(bits).to_f32()).collect(),
    }
}

/// A number rounded once to a format, as binary32.
fn round(value: f64, dtype: DType) -> f32 {
    match dtype {
        DType::F32 => value as f32,
        DType::F16 => f16::from_f32(to_odd(value)).to_f32(),
        _ => bf16::from_f32(to_odd(value)).to_f32(),
    }
}

/// A number rounded to binary32 so that rounding it again, to fewer bits, is as rounding it once: what is not
/// exact becomes odd.
fn to_odd(value: f64) -> f32 {
    let near = value as f32;
    if f64::from(near) == value || !near.is_finite() {
        return near;
    }
    let cut = if f64::from(near).abs() > value.abs() { near.to_bits() - 1 } else { near.to_bits() };
    f32::from_bits(cut | 1)
}

/// The distance of neighbours on the grid of a format at a number.
fn step(value: f64, dtype: DType) -> f64 {
    let (bits, smallest) = match dtype {
        DType::F32 => (23, -126),
        DType::F16 => (10, -14),
        _ => (7, -126),
    };
    // Up to the next power of two: a value that rounds up to one is judged by the step above it.
    let exponent = if value == 0.0 { smallest } else { (value.abs().log2().floor() as i32).max(smallest) };
    f64::powi(2.0, exponent - bits)
}

/// Beyond this a format has infinity only.
fn largest(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 65504.0,
        DType::F32 => f64::from(f32::MAX),
        _ => f64::from(bf16::MAX.to_f32()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rounding_twice_is_rounding_once() {
        // Just above the middle between two bfloat16: binary32 alone would see the middle and go to the even one.
        let middle = 1.0 + 2.0_f64.powi(-8);
        assert_eq!(round(middle, DType::BF16), 1.0);
        assert_eq!(round(middle + 2.0_f64.powi(-40), DType::BF16), 1.0 + 2.0_f32.powi(-7));
        assert_eq!(round(-middle - 2.0_f64.powi(-40), DType::BF16), -1.0 - 2.0_f32.powi(-7));
        assert_eq!(round(1e300, DType::BF16), f32::INFINITY);
        assert!(round(f64::NAN, DType::F16).is_nan());
    }

    proptest! {
        #[test]
        fn a_rounded_number_is_half_a_step_away_at_most(value in -1e30..1e30_f64, small in any::<bool>()) {
            let value = if small { value * 1e-38 } else { value };
            for dtype in [DType::F32, DType::F16, DType::BF16] {
                let near = round(value, dtype);
                if near.is_finite() {
                    let distance = (f64::from(near) - value).abs();
                    prop_assert!(distance <= 0.5 * step(value, dtype), "{value} {dtype} {near}");
                } else {
                    prop_assert!(value.abs() + step(value, dtype) >= largest(dtype));
                }
            }
        }
    }
}
