//! Merging into quantized tensors, some rows at a time.
//!
//! A weight and its scales are two tensors of the output that depend on each other, and either may come first in it. So
//! each is computed from the base alone: whoever needs the scales of some rows merges these rows. Nothing has to be
//! remembered in between, whatever the order of tensors and wherever the work is taken up again.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use infer_accel_tensor::{DType, TensorMut, simd};

use super::base::Source;
use super::error::CheckpointError;
use super::plan::{Part, RowWork};
use crate::kernels::{CallSettings, CodeCall, CodeFault, Extent};
use crate::quantized::{QuantizationReport, ScaleRule, Scheme};
use crate::{Delta, Error};

/// A quantized tensor that deltas are added to, and its scales.
#[derive(Debug)]
pub(super) struct CodeWork {
    /// The tensor of the codes.
    pub(super) name: String,
    /// Which source, and where the codes begin in it.
    pub(super) codes: (usize, u64),
    /// The same of the scales.
    pub(super) scales: (usize, u64),
    pub(super) dtype: DType,
    pub(super) scale_dtype: DType,
    pub(super) scheme: Scheme,
    /// What is added, in this order.
    pub(super) parts: Vec<Part>,
    /// Rows of a task: whole blocks, unless one scale is that of all rows.
    pub(super) task_rows: usize,
    /// The new scale, where one is that of more rows than a task has.
    pub(super) whole: Mutex<Option<f32>>,
}

/// Some rows with their scales, merged.
pub(super) struct Merged<'a> {
    pub(super) codes: &'a mut [u8],
    pub(super) scales: &'a mut [u8],
    pub(super) report: QuantizationReport,
}

impl CodeWork {
    /// The rows that a task takes.
    pub(super) fn rows_of_task(scheme: &Scheme) -> usize {
        let [rows, columns] = scheme.shape;
        let some = RowWork::rows_of_task(rows, columns, 1);
        let block = scheme.block[0];
        if block < rows { some.next_multiple_of(block).min(rows) } else { some }
    }

    pub(super) fn tasks(&self) -> u64 {
        self.scheme.shape[0].div_ceil(self.task_rows.max(1)) as u64
    }

    /// Tasks of the scales: one makes the scale of all rows.
    pub(super) fn scale_tasks(&self) -> u64 {
        if self.spans_tasks() { 1 } else { self.tasks() }
    }

    /// Where in the output what a task writes begins: in that of the codes, and in that of the scales.
    pub(super) fn place(&self, index: u64) -> [u64; 2] {
        let rows = self.rows_of(index);
        let scale_bytes = self.scheme.counts[1] * self.scale_dtype.size();
        [rows.start * self.scheme.shape[1], self.scale_rows(&rows).start * scale_bytes].map(|at| at as u64)
    }

    pub(super) fn rows_of(&self, index: u64) -> Range<usize> {
        let first = (index as usize).saturating_mul(self.task_rows).min(self.scheme.shape[0]);
        first..(first + self.task_rows).min(self.scheme.shape[0])
    }

    /// Whether a scale is that of more rows than a task has.
    fn spans_tasks(&self) -> bool {
        self.scheme.block[0] > self.task_rows && self.task_rows < self.scheme.shape[0]
    }

    /// The scheme of some rows.
    fn scheme_of(&self, rows: &Range<usize>) -> Scheme {
        let [down, _] = self.scheme.block;
        let counts = [rows.len().div_ceil(down), self.scheme.counts[1]];
        Scheme { shape: [rows.len(), self.scheme.shape[1]], counts, ..self.scheme }
    }

    /// The rows of scales that belong to some rows.
    fn scale_rows(&self, rows: &Range<usize>) -> Range<usize> {
        rows.start / self.scheme.block[0]..rows.end.div_ceil(self.scheme.block[0])
    }

    /// Reads the rows of a task and merges them.
    pub(super) fn merge<'a>(
        &self,
        index: u64,
        sources: &[Source],
        (codes, scales): (&'a mut Vec<u8>, &'a mut Vec<u8>),
        measures: bool,
    ) -> Result<Merged<'a>, CheckpointError> {
        let rows = self.rows_of(index);
        let (codes, scales) = self.read(&rows, sources, (codes, scales))?;
        let mut report = if self.spans_tasks() {
            let new = self.whole_scale(sources)?;
            let report = self.with_call(&rows, codes, scales, |call| {
                call.check_scales()?;
                let report = call.encode(&[new], measures);
                Ok(QuantizationReport { scales_changed: call.store_scales(&[new]), scales: 1, ..report })
            })?;
            // One scale, however many tasks it has.
            if index == 0 { report } else { QuantizationReport { scales: 0, scales_changed: 0, ..report } }
        } else {
            self.with_call(&rows, codes, scales, |call| call.run(ScaleRule::Grow, measures))?
        };
        report.statistics.elements = (rows.len() * self.scheme.shape[1]) as u64;
        Ok(Merged { codes, scales, report })
    }

    /// Reads some rows and their scales.
    pub(super) fn read<'a>(
        &self,
        rows: &Range<usize>,
        sources: &[Source],
        (codes, scales): (&'a mut Vec<u8>, &'a mut Vec<u8>),
    ) -> Result<(&'a mut [u8], &'a mut [u8]), CheckpointError> {
        let of = |(source, from): (usize, u64), rows: &Range<usize>, row_bytes: usize| {
            let found = sources
                .get(source)
                .ok_or_else(|| CheckpointError::Argument(format!("the plan has no source {source}")))?;
            Ok::<_, CheckpointError>((found, from + (rows.start * row_bytes) as u64, rows.len() * row_bytes))
        };
        let (source, from, length) = of(self.codes, rows, self.scheme.shape[1])?;
        codes.resize(length, 0);
        source.read(codes, from)?;
        let row_bytes = self.scheme.counts[1] * self.scale_dtype.size();
        let (source, from, length) = of(self.scales, &self.scale_rows(rows), row_bytes)?;
        scales.resize(length, 0);
        source.read(scales, from)?;
        Ok((codes, scales))
    }

    /// The new scale of all rows. Whoever comes first computes it, and the others wait.
    fn whole_scale(&self, sources: &[Source]) -> Result<f32, CheckpointError> {
        let mut known = self.whole.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(scale) = *known {
            return Ok(scale);
        }
        let (mut codes, mut scales) = (Vec::new(), Vec::new());
        let mut all = Extent::default();
        let mut scale = 0.0;
        for index in 0..self.tasks() {
            let rows = self.rows_of(index);
            let (codes, scales) = self.read(&rows, sources, (&mut codes, &mut scales))?;
            scale = self.with_call(&rows, codes, scales, |call| {
                call.check_scales()?;
                for extent in call.survey()? {
                    all = all.joined(extent);
                }
                Ok(call.grown(&[all]).first().copied().unwrap_or(0.0))
            })?;
        }
        *known = Some(scale);
        Ok(scale)
    }

    fn with_call<R>(
        &self,
        rows: &Range<usize>,
        codes: &mut [u8],
        scales: &mut [u8],
        work: impl FnOnce(&CodeCall<'_>) -> Result<R, CodeFault>,
    ) -> Result<R, CheckpointError> {
        let named =
            |error: Error| CheckpointError::Tensor { name: self.name.clone(), source: Box::new(error) };
        let scheme = self.scheme_of(rows);
        let (deltas, scalings, mut weight, mut scale) = self.views(rows, codes, scales).map_err(named)?;
        let settings = CallSettings { scaling: 1.0, tier: simd::tier(), threads: 1 };
        let call = CodeCall::new(&mut weight, &mut scale, &scheme, &deltas, &scalings, &settings);
        let first = [rows.start, self.scale_rows(rows).start];
        work(&call).map_err(|fault| named(scheme.refusal(fault.below(first, scheme.counts[1]))))
    }
    /// What is added to some rows, the rows, and their scales.
    fn views<'a>(
        &'a self,
        rows: &Range<usize>,
        codes: &'a mut [u8],
        scales: &'a mut [u8],
    ) -> Result<(Vec<Delta<'a>>, Vec<f32>, TensorMut<'a>, TensorMut<'a>), Error> {
        let deltas = self.parts.iter().map(|part| part.delta(true, rows.clone()));
        let deltas = deltas.collect::<Result<Vec<_>, _>>()?;
        let scalings = deltas.iter().map(Delta::checked_scaling).collect::<Result<Vec<_>, _>>()?;
        let Scheme { shape, counts, .. } = self.scheme_of(rows);
        let dense = |[_, across]: [usize; 2]| [across as isize, 1];
        let weight = TensorMut::from_bytes(codes, self.dtype, 0, &shape, &dense(shape))?;
        let scale = TensorMut::from_bytes(scales, self.scale_dtype, 0, &counts, &dense(counts))?;
        Ok((deltas, scalings, weight, scale))
    }
}
