//! Merging into codes: they are decoded, deltas are added, and the sums are encoded again.
//!
//! Two sweeps. The first writes nothing: it finds what is not finite, and how large the numbers of each block become. Then
//! the scales are known, and the second one encodes. Blocks that lie within a segment find their scale in the second.

mod call;
mod scales;
mod survey;

use super::Kernels;
use super::codes::{CodePasses, Codes, Extent};
use super::sweep::{Factors, RowSink, SEGMENT, Segment, Sweep};
use crate::quantized::QuantizationReport;
use crate::statistics::MergeStatistics;

pub(crate) use call::{CodeCall, CodeFault};
pub(crate) use scales::{ScaleFormat, Scales};
pub(crate) use survey::Fault;

/// A merge into codes.
pub(crate) struct CodeMerge<'a> {
    pub(crate) kernels: &'static Kernels,
    pub(crate) passes: &'static CodePasses,
    pub(crate) codes: Codes,
    pub(crate) scales: Scales,
    /// What is added; none has rank 0.
    pub(crate) factors: &'a [Factors],
    /// What the inner products of each are multiplied by.
    pub(crate) scalings: &'a [f32],
    /// The most threads to use.
    pub(crate) threads: usize,
}

// SAFETY: holds addresses of memory that the caller has borrowed for as long as the sweeps run; segments are
// disjoint, and each is written by the task that it is handed to, as is the scale of a block within it.
unsafe impl Sync for CodeMerge<'_> {}

/// What the scales of a merge become.
pub(crate) enum NewScales<'a> {
    /// Those of before.
    Kept,
    /// One for each block.
    Given(&'a [f32]),
    /// What [`Scales::grown`] says, found and stored by the sweep: for blocks that lie within a segment.
    Grown,
}

/// Room for a segment, in a few states.
#[repr(align(64))]
struct Work {
    codes: [u8; SEGMENT],
    before: [f32; SEGMENT],
    values: [f32; SEGMENT],
    after: [f32; SEGMENT],
    delta: [f32; SEGMENT],
}

impl Work {
    fn new() -> Box<Self> {
        let zeros = [0.0; SEGMENT];
        Box::new(Self { codes: [0; SEGMENT], before: zeros, values: zeros, after: zeros, delta: zeros })
    }
}

impl CodeMerge<'_> {
    fn sweep(&self) -> Sweep<'_> {
        Sweep {
            kernels: self.kernels,
            touched: self.codes.matrix,
            factors: self.factors,
            whole_rows: false,
            threads: self.threads,
        }
    }

    /// Leaves in `before` what a segment holds, and in `values` what it should hold after the merge.
    ///
    /// # Safety
    ///
    /// As [`RowSink::segment`].
    unsafe fn add(&self, segment: &Segment, work: &mut Work) {
        let &Segment { row, column, count, .. } = segment;
        // SAFETY: the caller vouches for tier and elements; every buffer holds a segment.
        unsafe {
            let codes = self.codes.gather(row, column, count, work.codes.as_mut_ptr());
            for (stretch, index) in self.scales.stretches(row, column, count) {
                let before = work.before.as_mut_ptr().add(stretch.start);
                let codes = codes.add(stretch.start);
                self.passes.decode(self.codes.coding, codes, self.scales.get(index), before, stretch.len());
            }
            work.values.as_mut_ptr().copy_from_nonoverlapping(work.before.as_ptr(), count);
            self.add_deltas(segment, work.values.as_mut_ptr());
        }
    }

    /// # Safety
    ///
    /// As [`RowSink::segment`]; `values` holds a segment.
    unsafe fn add_deltas(&self, segment: &Segment, values: *mut f32) {
        for (part, &scaling) in self.scalings.iter().enumerate() {
            // SAFETY: the caller vouches for tier and numbers.
            unsafe { (self.kernels.passes.add_scaled)(values, segment.sums(part), scaling, segment.count) };
        }
    }

    /// The scale that each block gets, given the extents that a survey found.
    ///
    /// # Safety
    ///
    /// The scales are readable.
    pub(crate) unsafe fn grown(&self, extents: &[Extent]) -> Vec<f32> {
        let grown = |(index, &extent): (usize, &Extent)| {
            // SAFETY: the caller vouches for the scales.
            let old = unsafe { self.scales.get(index) };
            self.scales.grown(self.codes.coding, extent, old)
        };
        extents.iter().enumerate().map(grown).collect()
    }

    /// Stores scales where they differ from those that are there; returns how many do.
    ///
    /// # Safety
    ///
    /// The scales are writable.
    pub(crate) unsafe fn store_scales(&self, new: &[f32]) -> u64 {
        let mut changed = 0;
        for (index, &scale) in new.iter().enumerate() {
            // SAFETY: the caller vouches for the scales.
            unsafe {
                if self.scales.get(index) != scale {
                    self.scales.set(index, scale);
                    changed += 1;
                }
            }
        }
        changed
    }

    /// Writes the codes; of the scales only those that it finds itself. What it measures is left out unless `measures`.
    ///
    /// # Safety
    ///
    /// The processor has the tier; factors are readable, codes and scales writable; shapes fit.
    pub(crate) unsafe fn encode(&self, new: &NewScales<'_>, measures: bool) -> QuantizationReport {
        let sink = Encode { merge: self, new, measures };
        // SAFETY: the caller vouches for all of it.
        let tasks = unsafe { self.sweep().run(&sink) };
        tasks.into_iter().fold(QuantizationReport::default(), |mut all, task| {
            all += task.report;
            all
        })
    }
}

/// The second sweep.
struct Encode<'a> {
    merge: &'a CodeMerge<'a>,
    new: &'a NewScales<'a>,
    measures: bool,
}

/// What a task of it keeps.
struct Encoded {
    report: QuantizationReport,
    work: Box<Work>,
}

impl RowSink for Encode<'_> {
    type State = Encoded;

    fn begin(&self) -> Encoded {
        Encoded { report: QuantizationReport::default(), work: Work::new() }
    }

    unsafe fn segment(&self, state: &mut Encoded, segment: &Segment) {
        let &Segment { row, column, count, .. } = segment;
        let Encoded { report, work } = state;
        let CodeMerge { passes, codes, scales, .. } = self.merge;
        // SAFETY: the caller vouches for tier and elements; every buffer holds a segment.
        unsafe {
            self.merge.add(segment, work);
            for (stretch, index) in scales.stretches(row, column, count) {
                let (first, length) = (stretch.start, stretch.len());
                let values = work.values.as_ptr().add(first);
                let scale = match self.new {
                    NewScales::Kept => scales.get(index),
                    NewScales::Given(new) => new.get(index).copied().unwrap_or(1.0),
                    NewScales::Grown => {
                        let old = scales.get(index);
                        let new = scales.grown(codes.coding, passes.extent(values, length), old);
                        if new != old {
                            scales.set(index, new);
                            report.scales_changed += 1;
                        }
                        new
                    }
                };
                let target = work.codes.as_mut_ptr().add(first);
                report.saturated += u64::from(passes.encode(codes.coding, values, scale, target, length));
                if self.measures {
                    passes.decode(codes.coding, target, scale, work.after.as_mut_ptr().add(first), length);
                }
            }
            codes.scatter(row, column, count, work.codes.as_ptr());
            if self.measures {
                *report += self.measure(segment, work);
            }
        }
    }
}

impl Encode<'_> {
    /// What the segment changed, and what encoding it lost.
    ///
    /// # Safety
    ///
    /// As [`RowSink::segment`]; the buffers hold the numbers before, after, and as they should be.
    unsafe fn measure(&self, segment: &Segment, work: &mut Work) -> QuantizationReport {
        let count = segment.count;
        work.delta[..count].fill(0.0);
        // SAFETY: the caller vouches for the tier; every buffer holds a segment.
        let (measured, loss) = unsafe {
            self.merge.add_deltas(segment, work.delta.as_mut_ptr());
            let (before, after, delta) = (work.before.as_ptr(), work.after.as_ptr(), work.delta.as_ptr());
            let measured = (self.merge.kernels.passes.measure)(before, after, delta, count);
            (measured, self.merge.passes.loss(after, work.values.as_ptr(), count))
        };
        QuantizationReport {
            statistics: MergeStatistics {
                elements: count as u64,
                changed: measured.changed,
                delta_squares: measured.squares,
                kept: measured.kept,
                largest_delta: f64::from(measured.largest),
            },
            error_squares: loss.squares,
            largest_error: f64::from(loss.largest),
            ..QuantizationReport::default()
        }
    }
}
