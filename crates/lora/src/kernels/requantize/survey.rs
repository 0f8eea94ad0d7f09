//! The sweep before codes are written.

use super::super::codes::Extent;
use super::super::sweep::{RowSink, SEGMENT, Segment};
use super::{CodeMerge, Work};
use std::sync::atomic::{AtomicU32, Ordering};

/// An element that cannot be merged.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Fault {
    pub(crate) row: usize,
    pub(crate) column: usize,
    /// What it would become; `None` if its code is no number already.
    pub(crate) value: Option<f32>,
}

/// Finds extents and faults.
struct Survey<'a> {
    merge: &'a CodeMerge<'a>,
    /// The largest magnitudes above zero and below, as bits, which are in the order of the numbers. Empty for blocks that
    /// lie within a segment.
    found: &'a [[AtomicU32; 2]],
}

/// What a task keeps.
struct Surveyed {
    fault: Option<Fault>,
    work: Box<Work>,
}

impl CodeMerge<'_> {
    /// How large the numbers of each block become; nothing for blocks that lie within a segment, which need no survey.
    /// The first element that is not finite, if there is one.
    ///
    /// # Safety
    ///
    /// The processor has the tier; factors, codes and scales are readable; shapes fit.
    pub(crate) unsafe fn survey(&self) -> Result<Vec<Extent>, Fault> {
        let blocks = if self.scales.are_local(SEGMENT) { 0 } else { self.scales.count() };
        let found: Vec<[AtomicU32; 2]> = (0..blocks).map(|_| Default::default()).collect();
        let sink = Survey { merge: self, found: &found };
        // SAFETY: the caller vouches for all of it.
        let tasks = unsafe { self.sweep().run(&sink) };
        let faults = tasks.into_iter().filter_map(|task| task.fault);
        if let Some(fault) = faults.min_by_key(|fault| (fault.row, fault.column)) {
            return Err(fault);
        }
        let number = |bits: AtomicU32| f32::from_bits(bits.into_inner());
        let extent = |[above, below]: [_; 2]| Extent { above: number(above), below: number(below) };
        Ok(found.into_iter().map(extent).collect())
    }
}

impl RowSink for Survey<'_> {
    type State = Surveyed;

    fn begin(&self) -> Surveyed {
        Surveyed { fault: None, work: Work::new() }
    }

    unsafe fn segment(&self, state: &mut Surveyed, segment: &Segment) {
        let &Segment { row, column, count, .. } = segment;
        let work = &mut state.work;
        // SAFETY: the caller vouches for tier and elements; every buffer holds a segment.
        unsafe { self.merge.add(segment, work) };
        let mut is_finite = true;
        let mut look = |first: usize, length: usize| {
            // SAFETY: as above; the stretch lies within the segment.
            let extent = unsafe { self.merge.passes.extent(work.values.as_ptr().add(first), length) };
            is_finite &= extent.is_finite();
            extent
        };
        if self.found.is_empty() {
            look(0, count);
        } else {
            for (stretch, index) in self.merge.scales.stretches(row, column, count) {
                let extent = look(stretch.start, stretch.len());
                if let Some([above, below]) = self.found.get(index) {
                    above.fetch_max(extent.above.to_bits(), Ordering::Relaxed);
                    below.fetch_max(extent.below.to_bits(), Ordering::Relaxed);
                }
            }
        }
        if !is_finite {
            state.note(row, column, count);
        }
    }
}

impl Surveyed {
    /// Keeps the first element of a segment that is not finite, if it comes before the one that is known.
    #[cold]
    fn note(&mut self, row: usize, column: usize, count: usize) {
        let values = self.work.values.iter().zip(&self.work.before).take(count);
        let Some((at, (&value, before))) = values.enumerate().find(|(_, (value, _))| !value.is_finite())
        else {
            return;
        };
        let fault = Fault { row, column: column + at, value: before.is_finite().then_some(value) };
        if self.fault.is_none_or(|known| (fault.row, fault.column) < (known.row, known.column)) {
            self.fault = Some(fault);
        }
    }
}
