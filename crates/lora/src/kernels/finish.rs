//! From inner products to stored bits, with everything else that a merge may be asked for: another format, dither,
//! a factor for each row, what the merge changed, and what undoing it would miss.

use super::Kernels;
use super::digest::summand;
use super::matrix::Matrix;
use super::passes::PARTS;
use super::random::RowKey;
use super::storage::Format;
use super::sweep::{RowSink, SEGMENT, Segment};
use crate::residue::Exception;
use crate::statistics::MergeStatistics;

/// A merge whose inner products come from a [`super::sweep::Sweep`].
pub(crate) struct Finish<'a> {
    pub(crate) kernels: &'static Kernels,
    /// What is read.
    pub(crate) source: Matrix,
    /// What is written: the source itself, or memory apart from it, of the same shape.
    pub(crate) target: Matrix,
    /// What the inner products of each pair of factors are multiplied by.
    pub(crate) scalings: &'a [f32],
    /// Where the first row stands in the whole weight.
    pub(crate) first_row: usize,
    /// The seed, if values are rounded by chance.
    pub(crate) seed: Option<u64>,
    /// What each row is multiplied by before it is rounded.
    pub(crate) row_factors: Option<&'a [f32]>,
    /// Whether to measure what changed.
    pub(crate) with_statistics: bool,
    /// Whether to note what undoing would miss.
    pub(crate) with_residue: bool,
}

// SAFETY: holds addresses of memory that the caller has borrowed for as long as the sweep runs; segments are
// disjoint, and each is written by the task that it is handed to.
unsafe impl Sync for Finish<'_> {}

/// What a task of a [`Finish`] keeps.
pub(crate) struct Finished {
    pub(crate) statistics: MergeStatistics,
    pub(crate) exceptions: Vec<Exception>,
    /// What the segments add to the digest of the target.
    pub(crate) digest: u64,
    /// Exceptions of the panel at work, row by row.
    panel: Vec<Vec<Exception>>,
    work: Box<Work>,
}

/// Room for a segment, in a few states.
#[repr(align(64))]
pub(super) struct Work {
    pub(super) gathered: [u8; SEGMENT * 4],
    pub(super) stored: [u8; SEGMENT * 4],
    pub(super) values: [f32; SEGMENT],
    before: [f32; SEGMENT],
    delta: [f32; SEGMENT],
    restored: [u8; SEGMENT * 4],
}

impl Work {
    pub(super) fn new() -> Box<Self> {
        Box::new(Self {
            gathered: [0; SEGMENT * 4],
            stored: [0; SEGMENT * 4],
            values: [0.0; SEGMENT],
            before: [0.0; SEGMENT],
            delta: [0.0; SEGMENT],
            restored: [0; SEGMENT * 4],
        })
    }

    /// The buffers by address, so that a segment may lie in one of them while others are written.
    pub(super) fn buffers(&mut self) -> Buffers {
        Buffers {
            gathered: self.gathered.as_mut_ptr(),
            stored: self.stored.as_mut_ptr(),
            values: self.values.as_mut_ptr(),
            before: self.before.as_mut_ptr(),
            delta: self.delta.as_mut_ptr(),
            restored: self.restored.as_mut_ptr(),
        }
    }
}

/// The buffers of a [`Work`]; each holds a segment of the widest format.
#[derive(Clone, Copy)]
pub(super) struct Buffers {
    pub(super) gathered: *mut u8,
    pub(super) stored: *mut u8,
    pub(super) values: *mut f32,
    before: *mut f32,
    delta: *mut f32,
    restored: *mut u8,
}

impl Finished {
    /// Puts the exceptions of the panel behind those of the panels before it.
    fn close_panel(&mut self) {
        for row in &mut self.panel {
            self.exceptions.append(row);
        }
    }

    /// The exceptions, all of them.
    pub(crate) fn into_exceptions(mut self) -> Vec<Exception> {
        self.close_panel();
        self.exceptions
    }
}

impl RowSink for Finish<'_> {
    type State = Finished;

    fn wants_split(&self) -> bool {
        self.plain_scaling().is_some() && self.source.format.is_split()
    }

    fn begin(&self) -> Finished {
        Finished {
            statistics: MergeStatistics::default(),
            exceptions: Vec::new(),
            digest: 0,
            panel: (0..self.kernels.panel_rows).map(|_| Vec::new()).collect(),
            work: Work::new(),
        }
    }

    unsafe fn segment(&self, state: &mut Finished, segment: &Segment) {
        let &Segment { row, column, count, .. } = segment;
        let (kernels, passes) = (self.kernels, &self.kernels.passes);
        if self.with_residue && segment.is_first_of_panel {
            state.close_panel();
        }
        let buffers = state.work.buffers();
        let Buffers { stored, values, .. } = buffers;
        // SAFETY: the caller vouches for tier and elements; every buffer holds a segment of the widest format.
        unsafe {
            let source = self.source.dense(row, column, count, buffers.gathered);
            if let Some(scaling) = self.plain_scaling() {
                let add = if self.wants_split() { &passes.add_tiles } else { &passes.add_stored };
                add[self.source.format as usize](source, segment.sums(0), scaling, stored, count);
                if self.with_residue {
                    self.note(buffers, segment, source, state);
                }
                return self.target.scatter(row, column, count, stored);
            }
            (kernels.widen[self.source.format as usize])(source, values, count);
            if self.with_statistics {
                buffers.before.copy_from_nonoverlapping(values, count);
            }
            for (part, &scaling) in self.scalings.iter().enumerate() {
                (passes.add_scaled)(values, segment.sums(part), scaling, count);
            }
            if let Some(factor) = self.row_factors.and_then(|factors| factors.get(row)) {
                (passes.multiply)(values, *factor, count);
            }
            if let Some(seed) = self.seed {
                let key = RowKey::new(seed, (self.first_row + row) as u64);
                (passes.dither[self.target.format as usize])(values, key, column as u32, count);
            }
            if self.keeps_bits() {
                stored.copy_from_nonoverlapping(source, count * self.source.format.size());
            } else {
                (passes.narrow[self.target.format as usize])(values, stored, count);
            }
            if self.with_statistics {
                state.statistics += self.measure(buffers, segment);
            }
            if self.with_residue {
                self.note(buffers, segment, source, state);
            }
            self.target.scatter(row, column, count, stored);
        }
    }
}

impl Finish<'_> {
    /// Whether there is nothing to add and nothing to convert: then bits stay, whatever they are.
    fn keeps_bits(&self) -> bool {
        self.scalings.is_empty() && self.row_factors.is_none() && self.source.format == self.target.format
    }

    /// The scaling of a merge of one product, from a format to the same, of which at most a residue is wanted.
    fn plain_scaling(&self) -> Option<f32> {
        let is_plain = self.source.format == self.target.format
            && self.seed.is_none()
            && self.row_factors.is_none()
            && !self.with_statistics;
        if let (&[scaling], true) = (self.scalings, is_plain) { Some(scaling) } else { None }
    }

    /// What the segment changed.
    ///
    /// # Safety
    ///
    /// As [`RowSink::segment`]; the buffers hold the values before and the stored bits.
    unsafe fn measure(&self, buffers: Buffers, segment: &Segment) -> MergeStatistics {
        let Buffers { stored, values, before, delta, .. } = buffers;
        let (count, passes) = (segment.count, &self.kernels.passes);
        // SAFETY: the caller vouches for the tier; every buffer holds a segment.
        let measured = unsafe {
            (self.kernels.widen[self.target.format as usize])(stored, values, count);
            delta.write_bytes(0, count);
            for (part, &scaling) in self.scalings.iter().enumerate() {
                (passes.add_scaled)(delta, segment.sums(part), scaling, count);
            }
            (passes.measure)(before, values, delta, count)
        };
        MergeStatistics {
            elements: count as u64,
            changed: measured.changed,
            delta_squares: measured.squares,
            kept: measured.kept,
            largest_delta: f64::from(measured.largest),
        }
    }

    /// Undoes the segment and notes the elements that do not come back, and its part of the digest.
    ///
    /// # Safety
    ///
    /// As [`RowSink::segment`]; `source` holds the old bits, the buffers the stored ones.
    unsafe fn note(&self, buffers: Buffers, segment: &Segment, source: *const u8, state: &mut Finished) {
        let Buffers { stored, values, restored, .. } = buffers;
        let &Segment { row, column, count, .. } = segment;
        let (kernels, row) = (self.kernels, (self.first_row + row) as u64);
        let formats = (self.source.format, self.target.format);
        // SAFETY: the caller vouches for the tier and the old bits; every buffer holds a segment.
        unsafe {
            restore(kernels, formats, stored, (segment, self.wants_split()), self.scalings, values, restored);
            let hash = (kernels.passes.hash)(stored, count * formats.1.size());
            state.digest = state.digest.wrapping_add(summand(hash, row, column));
            let first = row * self.source.columns as u64 + column as u64;
            let Some(found) = state.panel.get_mut(segment.within_panel) else { return };
            match formats.0 {
                Format::F32 => differences::<u32>(source, restored, count, first, found),
                Format::F16 | Format::Bf16 => differences::<u16>(source, restored, count, first, found),
            }
        }
    }
}

/// Computes what a segment held before a merge, from what it holds after it; the bits go to `restored`.
///
/// # Safety
///
/// The processor has the tier of the kernels; `merged`, `values` and `restored` hold a segment, of the formats
/// (before, after); the inner products are split only where there is one pair of factors and one format.
#[inline(always)]
pub(super) unsafe fn restore(
    kernels: &Kernels,
    (before, after): (Format, Format),
    merged: *const u8,
    (segment, is_split): (&Segment, bool),
    scalings: &[f32],
    values: *mut f32,
    restored: *mut u8,
) {
    // SAFETY: the caller vouches for tier and buffers.
    unsafe {
        if scalings.is_empty() && before == after {
            // Nothing was added, and bits stayed.
            return restored.copy_from_nonoverlapping(merged, segment.count * before.size());
        }
        if let (&[scaling], true) = (scalings, before == after) {
            let add = if is_split { &kernels.passes.add_tiles } else { &kernels.passes.add_stored };
            return add[before as usize](merged, segment.sums(0), -scaling, restored, segment.count);
        }
        (kernels.widen[after as usize])(merged, values, segment.count);
        for (part, &scaling) in scalings.iter().enumerate().rev() {
            (kernels.passes.add_scaled)(values, segment.sums(part), -scaling, segment.count);
        }
        (kernels.passes.narrow[before as usize])(values, restored, segment.count);
    }
}

/// An element's bits.
trait Bits: Copy + PartialEq {
    /// What must be added to `other` to get `self`, wrapped around.
    fn minus(self, other: Self) -> u32;
}

impl Bits for u16 {
    fn minus(self, other: Self) -> u32 {
        u32::from(self.wrapping_sub(other))
    }
}

impl Bits for u32 {
    fn minus(self, other: Self) -> u32 {
        self.wrapping_sub(other)
    }
}

/// Notes where `wanted` differs from `got`.
///
/// # Safety
///
/// Both are readable for `count` elements.
#[inline(always)]
unsafe fn differences<B: Bits>(
    wanted: *const u8,
    got: *const u8,
    count: usize,
    first: u64,
    found: &mut Vec<Exception>,
) {
    // Differences are rare: chunks are compared first, then words, whose bits tell the elements.
    type Chunk = [u64; 4];
    let (size, chunks) = (size_of::<B>(), count * size_of::<B>() / size_of::<Chunk>());
    let (in_chunk, in_word) = (size_of::<Chunk>() / size, size_of::<u64>() / size);
    let mut note = |at: usize| {
        // SAFETY: the caller vouches for `count` elements.
        let [wanted, got] =
            [wanted, got].map(|bits| unsafe { bits.add(at * size).cast::<B>().read_unaligned() });
        if wanted != got {
            found.push(Exception { index: first + at as u64, difference: wanted.minus(got) });
        }
    };
    for chunk in 0..chunks {
        // SAFETY: as above.
        let [left, right] =
            [wanted, got].map(|bits| unsafe { bits.cast::<Chunk>().add(chunk).read_unaligned() });
        let words: Chunk = std::array::from_fn(|word| u64::from_le(left[word] ^ right[word]));
        if words[0] | words[1] | words[2] | words[3] == 0 {
            continue;
        }
        for (word, mut bits) in words.into_iter().enumerate() {
            while bits != 0 {
                let lane = bits.trailing_zeros() as usize / (8 * size);
                note(chunk * in_chunk + word * in_word + lane);
                bits &= !(u64::MAX >> (64 - 8 * size) << (8 * size * lane));
            }
        }
    }
    (chunks * in_chunk..count).for_each(note);
}

/// A pass that adds up the squares of what a merge would give, row by row.
pub(crate) struct Squares<'a> {
    pub(crate) kernels: &'static Kernels,
    /// What is read.
    pub(crate) source: Matrix,
    /// What the inner products of each pair of factors are multiplied by.
    pub(crate) scalings: &'a [f32],
}

// SAFETY: holds addresses of memory that the caller has borrowed for as long as the sweep runs, and only reads.
unsafe impl Sync for Squares<'_> {}

/// What a task of [`Squares`] keeps: sixteen partial sums for each of its rows.
pub(crate) struct RowSquares {
    pub(crate) rows: Vec<(usize, [f32; PARTS])>,
    work: Box<Work>,
    first_row: Option<usize>,
}

impl RowSink for Squares<'_> {
    type State = RowSquares;

    fn begin(&self) -> RowSquares {
        RowSquares { rows: Vec::new(), work: Work::new(), first_row: None }
    }

    unsafe fn segment(&self, state: &mut RowSquares, segment: &Segment) {
        let &Segment { row, column, count, .. } = segment;
        let place = row - *state.first_row.get_or_insert(row);
        if place >= state.rows.len() {
            state.rows.push((row, [0.0; PARTS]));
        }
        let Some((_, parts)) = state.rows.get_mut(place) else { return };
        let padded = count.next_multiple_of(PARTS);
        let Buffers { gathered, values, .. } = state.work.buffers();
        // SAFETY: the caller vouches for tier and elements; every buffer holds a segment.
        unsafe {
            let source = self.source.dense(row, column, count, gathered);
            (self.kernels.widen[self.source.format as usize])(source, values, count);
            for (part, &scaling) in self.scalings.iter().enumerate() {
                (self.kernels.passes.add_scaled)(values, segment.sums(part), scaling, count);
            }
            // Zeros add nothing to a sum of squares.
            values.add(count).write_bytes(0, padded - count);
            (self.kernels.passes.squares)(values, parts, padded);
        }
    }
}
