//! From checked tensors to sweeps over codes.

use super::super::calls::factors_of;
use super::super::codes::{CodePasses, Codes, Extent};
use super::super::sweep::{Factors, SEGMENT};
use super::super::{CallSettings, Kernels};
use super::{CodeMerge, Fault, NewScales, Scales};
use crate::quantized::{QuantizationReport, ScaleRule, Scheme};
use crate::slab::Delta;
use infer_accel_tensor::TensorMut;

/// Why codes were not merged. Nothing was written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum CodeFault {
    /// A scale that is none.
    Scale {
        index: usize,
        scale: f32,
    },
    Element(Fault),
}

impl CodeFault {
    /// The same in a larger weight, of which the codes begin at some row, and the scales at some row of theirs. `across` is the
    /// number of scales in a row.
    pub(crate) fn below(self, [row, scale_row]: [usize; 2], across: usize) -> Self {
        match self {
            Self::Scale { index, scale } => Self::Scale { index: index + scale_row * across, scale },
            Self::Element(fault) => Self::Element(Fault { row: fault.row + row, ..fault }),
        }
    }
}

/// A quantized weight and what is added to it.
pub(crate) struct CodeCall<'a> {
    codes: Codes,
    scales: Scales,
    factors: Vec<Factors>,
    scalings: Vec<f32>,
    settings: &'a CallSettings,
}

impl<'a> CodeCall<'a> {
    /// The caller keeps the tensors borrowed for as long as this is used.
    ///
    /// # Panics
    ///
    /// Where shapes or formats do not fit each other; the caller has checked them.
    pub(crate) fn new(
        weight: &'a mut TensorMut<'_>,
        scale: &'a mut TensorMut<'_>,
        scheme: &Scheme,
        deltas: &'a [Delta<'_>],
        scalings: &[f32],
        settings: &'a CallSettings,
    ) -> Self {
        let parts = || {
            let mut codes = Codes::of(&weight.as_ref(), scheme.coding)?;
            codes.matrix.base = weight.as_mut_ptr();
            let base = scale.as_mut_ptr();
            let scales =
                Scales::of(&scale.as_ref(), base, scheme.coding, scheme.counts, scheme.block, scheme.factor)?;
            let (rows, columns) = (codes.matrix.rows, codes.matrix.columns);
            let [down, across] = scheme.block;
            let covers = [rows.div_ceil(down), columns.div_ceil(across)] == scales.counts;
            let is_whole = across.is_multiple_of(scheme.coding.in_byte());
            if !(covers && is_whole) {
                return None;
            }
            let (factors, scalings) = factors_of(deltas, scalings, [rows, columns])?;
            Some(Self { codes, scales, factors, scalings, settings })
        };
        let mut parts = parts;
        parts().unwrap_or_else(|| panic!("a merge of unchecked codes"))
    }

    fn merge(&self) -> CodeMerge<'_> {
        CodeMerge {
            kernels: Kernels::of(self.settings.tier),
            passes: CodePasses::of(self.settings.tier),
            codes: self.codes,
            scales: self.scales,
            factors: &self.factors,
            scalings: &self.scalings,
            threads: self.settings.threads,
        }
    }

    /// The first scale that is none.
    pub(crate) fn check_scales(&self) -> Result<(), CodeFault> {
        // SAFETY: the scales are borrowed for as long as `self`.
        match unsafe { self.scales.first_fault() } {
            Some((index, scale)) => Err(CodeFault::Scale { index, scale }),
            None => Ok(()),
        }
    }

    /// How large the numbers of each block become, where blocks reach beyond a segment; nothing where they do not.
    pub(crate) fn survey(&self) -> Result<Vec<Extent>, CodeFault> {
        // SAFETY: the tensors are borrowed for as long as `self` and fit together; the processor has the tier.
        unsafe { self.merge().survey() }.map_err(CodeFault::Element)
    }

    /// The scales that blocks get which have some extents.
    pub(crate) fn grown(&self, extents: &[Extent]) -> Vec<f32> {
        // SAFETY: as above.
        unsafe { self.merge().grown(extents) }
    }

    /// Writes the codes as some scales ask, which are not written.
    pub(crate) fn encode(&self, scales: &[f32], measures: bool) -> QuantizationReport {
        // SAFETY: as above; the weight is borrowed mutably.
        unsafe { self.merge().encode(&NewScales::Given(scales), measures) }
    }

    /// Stores scales; returns how many are others than before.
    pub(crate) fn store_scales(&self, scales: &[f32]) -> u64 {
        // SAFETY: as above; the scales are borrowed mutably.
        unsafe { self.merge().store_scales(scales) }
    }

    /// Merges: codes and scales are written.
    pub(crate) fn run(&self, rule: ScaleRule, measures: bool) -> Result<QuantizationReport, CodeFault> {
        self.check_scales()?;
        let extents = self.survey()?;
        let merge = self.merge();
        // SAFETY: as above; both tensors are borrowed mutably.
        let mut report = unsafe {
            match rule {
                ScaleRule::Keep => merge.encode(&NewScales::Kept, measures),
                ScaleRule::Grow if self.scales.are_local(SEGMENT) => {
                    merge.encode(&NewScales::Grown, measures)
                }
                ScaleRule::Grow => {
                    let scales = merge.grown(&extents);
                    let report = merge.encode(&NewScales::Given(&scales), measures);
                    QuantizationReport { scales_changed: merge.store_scales(&scales), ..report }
                }
            }
        };
        report.scales = self.scales.count() as u64;
        Ok(report)
    }

    /// Whether there is nothing to add, so that every bit stays.
    pub(crate) fn is_nothing(&self) -> bool {
        self.factors.is_empty()
    }

    /// Elements of the weight.
    pub(crate) fn elements(&self) -> u64 {
        (self.codes.matrix.rows * self.codes.matrix.columns) as u64
    }

    /// Scales of the weight.
    pub(crate) fn scale_count(&self) -> u64 {
        self.scales.count() as u64
    }
}
