#![allow(unsafe_code)] // pages are memory that Python can change: bytes are copied by address, never as a slice
//! Pages in memory, one row each: the caller's, or those of the host.

use super::TierError;
use super::buffer::Buffer;
use super::check::Checker;
use crate::host::HostPool;
use crate::kernels::copy::RunKernel;
use crate::kernels::xxh3::Target;
use infer_accel_tensor::simd;
use infer_accel_tensor::{TensorMut, TensorRef};
use std::marker::PhantomData;
use std::ops::Range;

/// From this many bytes on pages are written past the cache, as page copies are: the buffer that they come from then
/// stays in it, and the lines that they go to are not read first.
const MIN_STREAMED_BYTES: usize = 16 << 20;

/// What is streamed to a place that is no multiple of this is copied by a kernel that begins at one.
const LINE_BYTES: usize = 64;

/// How so many pages are copied to the caller.
fn kernel(pages: usize, page_bytes: usize) -> RunKernel {
    RunKernel::new(simd::tier(), pages.saturating_mul(page_bytes) >= MIN_STREAMED_BYTES)
}

/// Bytes from one page to the next, where every page is contiguous and as long as it should be.
fn page_stride(pages: &TensorRef<'_>, count: usize, page_bytes: usize) -> Result<isize, TierError> {
    let shape = pages.shape();
    let refuse = |got| TierError::PageShape { shape: shape.to_vec(), got, expected: page_bytes };
    let Some((&rows, inner)) = shape.split_first() else { return Err(refuse(0)) };
    if rows != count {
        return Err(TierError::PageCount { keys: count, pages: rows });
    }
    let got = inner.iter().product::<usize>() * pages.dtype().size();
    if rows == 0 {
        return Ok(0);
    }
    let contiguous = pages.index_axis(0, 0).is_ok_and(|page| page.is_contiguous());
    if got != page_bytes || !contiguous {
        return Err(refuse(got));
    }
    let stride = pages.strides().first().copied().unwrap_or(0);
    Ok(if rows == 1 { 0 } else { stride * pages.dtype().size() as isize })
}

/// Where rows lie: one every so many bytes, or some of them by their numbers.
#[derive(Clone, Copy)]
struct Places<'a> {
    count: usize,
    stride: isize,
    numbers: Option<&'a [u32]>,
}

impl Places<'_> {
    /// How far behind the first page row `row` begins.
    fn offset(&self, row: usize) -> isize {
        assert!(row < self.count, "a row that is not there");
        let number = self.numbers.map_or(row, |numbers| numbers[row] as usize);
        number as isize * self.stride
    }
}

/// Pages to read.
#[derive(Clone, Copy)]
pub(super) struct SourceRows<'a> {
    first: *const u8,
    places: Places<'a>,
    page_bytes: usize,
    memory: PhantomData<&'a u8>,
}

impl<'a> SourceRows<'a> {
    pub(super) fn new(pages: &'a TensorRef<'_>, count: usize, page_bytes: usize) -> Result<Self, TierError> {
        let places = Places { count, stride: page_stride(pages, count, page_bytes)?, numbers: None };
        Ok(Self { first: pages.as_ptr(), places, page_bytes, memory: PhantomData })
    }

    /// Appends page `row` to `out`.
    pub(super) fn append_to(&self, row: usize, out: &mut Buffer) {
        let from = self.address(row, &(0..self.page_bytes));
        let out = out.room_for(self.page_bytes);
        // SAFETY: the row exists, is contiguous and has those bytes; the reserved bytes behind the vector's end
        // belong to it, and are initialised before the length says so.
        unsafe {
            std::ptr::copy_nonoverlapping(from, out.as_mut_ptr().add(out.len()), self.page_bytes);
            out.set_len(out.len() + self.page_bytes);
        }
    }

    /// Appends some bytes of page `row` to `out`, and has them checked.
    pub(super) fn append_checked(
        &self,
        row: usize,
        part: Range<usize>,
        out: &mut Buffer,
        checker: &mut Checker,
    ) {
        let (from, count) = (self.address(row, &part), part.len());
        let out = out.room_for(count);
        // SAFETY: as above. What is checked is what was copied: a page that changes meanwhile is a miss later, and
        // the copy in our memory cannot change.
        unsafe {
            let to = out.as_mut_ptr().add(out.len());
            match checker {
                Checker::Xxh3(hasher) => hasher.absorb(from, count, Target::Cached(to)),
                Checker::Blake3(hasher) => {
                    std::ptr::copy_nonoverlapping(from, to, count);
                    hasher.update(std::slice::from_raw_parts(to, count));
                }
            }
            out.set_len(out.len() + count);
        }
    }

    fn address(&self, row: usize, part: &Range<usize>) -> *const u8 {
        assert!(part.start <= part.end && part.end <= self.page_bytes, "bytes that are not in the page");
        self.first.wrapping_offset(self.places.offset(row)).wrapping_add(part.start)
    }
}

/// Pages to write. Two threads that write one row at once leave a mix of both, as with any memory that threads share
/// through addresses; the rows of one call are different.
#[derive(Clone, Copy)]
pub(super) struct TargetRows<'a> {
    first: *mut u8,
    places: Places<'a>,
    page_bytes: usize,
    kernel: RunKernel,
    memory: PhantomData<&'a u8>,
}

// SAFETY: an address with bounds, from a view or a pool that may be written from any thread.
unsafe impl Send for TargetRows<'_> {}
// SAFETY: as above.
unsafe impl Sync for TargetRows<'_> {}

impl<'a> TargetRows<'a> {
    pub(super) fn new(
        pages: &'a mut TensorMut<'_>,
        count: usize,
        page_bytes: usize,
    ) -> Result<Self, TierError> {
        let places =
            Places { count, stride: page_stride(&pages.as_ref(), count, page_bytes)?, numbers: None };
        let kernel = kernel(count, page_bytes);
        Ok(Self { first: pages.as_mut_ptr(), places, page_bytes, kernel, memory: PhantomData })
    }

    /// Writes page `row`.
    pub(super) fn copy_in(&self, row: usize, page: &[u8]) {
        assert!(page.len() == self.page_bytes, "a page of another length");
        let to = self.first.wrapping_offset(self.places.offset(row));
        // SAFETY: the row exists, is contiguous and as long as the page, as was checked when the view was taken; its
        // memory may be written from any thread. The source is a buffer of ours, which no view of the caller's shows.
        unsafe { self.kernel.copy(page.as_ptr(), to, page.len(), page.as_ptr()) };
        self.kernel.finish();
    }

    /// Writes some bytes of page `row`, and has them checked.
    pub(super) fn copy_checked(&self, row: usize, at: usize, bytes: &[u8], checker: &mut Checker) {
        assert!(
            at <= self.page_bytes && bytes.len() <= self.page_bytes - at,
            "bytes that are not in the page"
        );
        let to = self.first.wrapping_offset(self.places.offset(row)).wrapping_add(at);
        let fused = self.kernel == RunKernel::Cached || to.addr().is_multiple_of(LINE_BYTES);
        match checker {
            Checker::Xxh3(hasher) if fused => {
                let target =
                    if self.kernel == RunKernel::Cached { Target::Cached(to) } else { Target::Streamed(to) };
                // SAFETY: the row exists, is contiguous and has room for those bytes, as was checked when the view was
                // taken; its memory may be written from any thread. The source is a buffer of ours.
                unsafe { hasher.absorb(bytes.as_ptr(), bytes.len(), target) };
                return;
            }
            // SAFETY: the slice can be read.
            Checker::Xxh3(hasher) => unsafe {
                hasher.absorb(bytes.as_ptr(), bytes.len(), Target::Nothing);
            },
            Checker::Blake3(hasher) => drop(hasher.update(bytes)),
        }
        // SAFETY: as above.
        unsafe { self.kernel.copy(bytes.as_ptr(), to, bytes.len(), bytes.as_ptr()) };
        self.kernel.finish();
    }

    /// Makes page `row` zeros.
    pub(super) fn blank(&self, row: usize) {
        let to = self.first.wrapping_offset(self.places.offset(row));
        // SAFETY: as above.
        unsafe { std::ptr::write_bytes(to, 0, self.page_bytes) };
    }
}

/// The host's pages. Who holds a slot (see `Slots`) may read it; who fills one has it alone.
#[derive(Debug)]
pub(super) struct HostRows(HostPool);

impl HostRows {
    pub(super) fn new(pool: HostPool) -> Self {
        Self(pool)
    }

    fn places<'a>(&self, slots: &'a [u32]) -> Places<'a> {
        assert!(slots.iter().all(|&slot| (slot as usize) < self.0.num_pages()), "a slot that is not there");
        Places { count: slots.len(), stride: self.0.page_bytes() as isize, numbers: Some(slots) }
    }

    /// The pages of some slots, to read.
    pub(super) fn source<'a>(&'a self, slots: &'a [u32]) -> SourceRows<'a> {
        let (first, page_bytes) = (self.0.as_ptr().cast_const(), self.0.page_bytes());
        SourceRows { first, places: self.places(slots), page_bytes, memory: PhantomData }
    }

    /// The pages of some slots, to write.
    pub(super) fn target<'a>(&'a self, slots: &'a [u32]) -> TargetRows<'a> {
        let (first, page_bytes) = (self.0.as_ptr(), self.0.page_bytes());
        // What is brought to the host is read next.
        let kernel = kernel(0, page_bytes);
        TargetRows { first, places: self.places(slots), page_bytes, kernel, memory: PhantomData }
    }

    /// Copies row `row` of `source` to a slot.
    pub(super) fn fill(&self, slot: u32, source: &SourceRows<'_>, row: usize) {
        assert!(source.page_bytes == self.0.page_bytes(), "a page of another length");
        let from = source.first.wrapping_offset(source.places.offset(row));
        let to = self.0.as_ptr().wrapping_offset(self.places(&[slot]).offset(0));
        // SAFETY: both are pages of that length; the pool's memory is known to nobody outside.
        unsafe { std::ptr::copy_nonoverlapping(from, to, self.0.page_bytes()) };
    }

    /// Copies a slot to row `row` of `target`.
    pub(super) fn deliver(&self, slot: u32, target: &TargetRows<'_>, row: usize) {
        assert!(target.page_bytes == self.0.page_bytes(), "a page of another length");
        let from = self.0.as_ptr().wrapping_offset(self.places(&[slot]).offset(0));
        let to = target.first.wrapping_offset(target.places.offset(row));
        // SAFETY: as above.
        unsafe { target.kernel.copy(from.cast_const(), to, self.0.page_bytes(), from.cast_const()) };
        target.kernel.finish();
    }
}
