//! Reading back a sample of a quantized tensor.
//!
//! Some rows are merged again, and must be, byte for byte, what was written. One of them is computed in binary64, too: each
//! element must lie within half a step of its codes' grid of it, and within what binary32 may lose.

use super::codes::CodeWork;
use super::error::CheckpointError;
use super::report::Verification;
use super::verify::{Sample, add, chosen, widen};

impl Sample<'_> {
    /// Checks some scales.
    pub(super) fn scales(&self, work: &CodeWork) -> Result<(), CheckpointError> {
        let index = chosen(self.segment.output.start, work.scale_tasks());
        let (mut codes, mut scales) = (Vec::new(), Vec::new());
        let merged = work.merge(index, &self.plan.sources, (&mut codes, &mut scales), false)?;
        self.compare(work.place(index)[1], merged.scales)
    }

    /// Checks some codes.
    pub(super) fn codes(
        &self,
        work: &CodeWork,
        verification: &mut Verification,
    ) -> Result<(), CheckpointError> {
        let index = chosen(self.segment.output.start, work.tasks());
        let (mut codes, mut scales) = (Vec::new(), Vec::new());
        let merged = work.merge(index, &self.plan.sources, (&mut codes, &mut scales), false)?;
        self.compare(work.place(index)[0], merged.codes)?;
        let rows = work.rows_of(index);
        let row = rows.start + chosen(self.segment.output.start, rows.len() as u64) as usize;
        let (mut base_codes, mut base_scales) = (Vec::new(), Vec::new());
        let before = work.read(&rows, &self.plan.sources, (&mut base_codes, &mut base_scales))?;
        let numbers =
            |codes: &[u8], scales: &[u8]| Place { work, first: rows.start, row }.numbers(codes, scales);
        let base = numbers(before.0, before.1);
        let found = numbers(merged.codes, merged.scales);
        let mut sums: Vec<f64> = base.iter().map(|element| element.number * element.scale).collect();
        let mut magnitudes: Vec<f64> = sums.iter().map(|value| value.abs()).collect();
        let mut roundings = 4.0;
        for part in &work.parts {
            roundings += part.rank() as f64 + 1.0;
            add(part, row, &mut sums, &mut magnitudes).map_err(|error| CheckpointError::Tensor {
                name: work.name.clone(),
                source: Box::new(error),
            })?;
        }
        for (column, ((&value, &size), found)) in sums.iter().zip(&magnitudes).zip(&found).enumerate() {
            verification.elements += 1;
            let quotient = value / found.scale;
            let half = work.scheme.coding.step(quotient) / 2.0;
            let distance = (found.number - quotient).abs();
            verification.off += u64::from(distance > half * (1.0 + 1e-12) && half > 0.0);
            let lost = roundings * f64::from(f32::EPSILON) / 2.0 * size / found.scale;
            let is_last = quotient.abs() >= f64::from(work.scheme.coding.largest()) * (1.0 - 1e-6);
            if !(distance <= half * (1.0 + 1e-6) + lost || is_last) {
                let problem = format!(
                    "row {row}, column {column} of {} is {}; binary64 gives {value}, and {:e} may be lost",
                    work.name,
                    found.number * found.scale,
                    (half + lost) * found.scale
                );
                return Err(self.damaged(&problem));
            }
        }
        Ok(())
    }
}

/// A row of a task.
struct Place<'a> {
    work: &'a CodeWork,
    /// The first row of the task.
    first: usize,
    row: usize,
}

/// An element: what its code stands for, and what that is multiplied by.
struct Element {
    number: f64,
    scale: f64,
}

impl Place<'_> {
    fn numbers(&self, codes: &[u8], scales: &[u8]) -> Vec<Element> {
        let (scheme, scale_dtype) = (&self.work.scheme, self.work.scale_dtype);
        let columns = scheme.shape[1];
        let start = (self.row - self.first) * columns;
        let block_row = self.row / scheme.block[0] - self.first / scheme.block[0];
        let scales = widen(scales, scale_dtype);
        let scale_of = |column: usize| {
            let index = block_row * scheme.counts[1] + column / scheme.block[1];
            scales.get(index).copied().map_or(f64::NAN, f64::from)
        };
        let codes = codes.get(start..start + columns).unwrap_or_default();
        let element = |(column, &code): (usize, &u8)| Element {
            number: f64::from(scheme.coding.number(code)),
            scale: scale_of(column),
        };
        codes.iter().enumerate().map(element).collect()
    }
}
