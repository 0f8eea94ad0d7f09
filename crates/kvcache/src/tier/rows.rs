#![allow(unsafe_code)] // pages are memory that Python can change: bytes are copied by address, never as a slice
//! Pages in memory, one row each: the caller's, or those of the host.

use super::TierError;
use super::buffer::Buffer;
use super::check::Checker;
use crate::host::HostPool;
use crate::kernels::copy::RunKernel;
use crate::kernels::xxh3::{Hasher, Target};
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

/// Where rows lie.
#[derive(Clone, Copy)]
enum Places<'a> {
    /// One every so many bytes.
    Strided { first: *mut u8, count: usize, stride: isize },
    /// Some of those, by their numbers.
    Numbered { first: *mut u8, numbers: &'a [u32], stride: isize },
    /// Each by itself.
    Apart(&'a [*mut u8]),
}

impl Places<'_> {
    /// Where row `row` begins.
    fn address(&self, row: usize) -> *mut u8 {
        match *self {
            Self::Strided { first, count, stride } => {
                assert!(row < count, "a row that is not there");
                first.wrapping_offset(row as isize * stride)
            }
            Self::Numbered { first, numbers, stride } => {
                first.wrapping_offset(numbers[row] as isize * stride)
            }
            Self::Apart(addresses) => addresses[row],
        }
    }
}

/// Pages that lie apart, each contiguous: where they begin, for as long as their memory is lent to read or to write.
pub(super) struct Apart<'a, const WRITE: bool> {
    addresses: Vec<*mut u8>,
    page_bytes: usize,
    memory: PhantomData<&'a u8>,
}

impl<'a> Apart<'a, false> {
    pub(super) fn new(
        pages: &'a [TensorRef<'_>],
        count: usize,
        page_bytes: usize,
    ) -> Result<Self, TierError> {
        let addresses = pages.iter().map(|page| page_address(page, page_bytes)).collect::<Result<_, _>>()?;
        Self { addresses, page_bytes, memory: PhantomData }.counted(count)
    }
}

impl<'a> Apart<'a, true> {
    pub(super) fn new_mut(
        pages: &'a mut [TensorMut<'_>],
        count: usize,
        page_bytes: usize,
    ) -> Result<Self, TierError> {
        let address =
            |page: &'_ mut TensorMut<'_>| page_address(&page.as_ref(), page_bytes).map(|_| page.as_mut_ptr());
        let addresses = pages.iter_mut().map(address).collect::<Result<_, _>>()?;
        Self { addresses, page_bytes, memory: PhantomData }.counted(count)?.distinct()
    }

    /// Refuses pages that share memory: threads would leave a mix of two there, and call both delivered.
    fn distinct(self) -> Result<Self, TierError> {
        let mut order: Vec<_> =
            self.addresses.iter().enumerate().map(|(page, at)| (at.addr(), page)).collect();
        order.sort_unstable();
        for pair in order.windows(2) {
            if pair[1].0 - pair[0].0 < self.page_bytes {
                let (first, second) = (pair[0].1.min(pair[1].1), pair[0].1.max(pair[1].1));
                return Err(TierError::PagesOverlap { first, second });
            }
        }
        Ok(self)
    }
}

impl<const WRITE: bool> Apart<'_, WRITE> {
    fn counted(self, count: usize) -> Result<Self, TierError> {
        if self.addresses.len() == count {
            return Ok(self);
        }
        Err(TierError::PageCount { keys: count, pages: self.addresses.len() })
    }
}

/// Where a page begins that is contiguous and as long as it should be. Only read through, unless it came from a view
/// that may be written.
fn page_address(page: &TensorRef<'_>, page_bytes: usize) -> Result<*mut u8, TierError> {
    let (shape, got) = (page.shape(), page.byte_len());
    if got == page_bytes && page.is_contiguous() {
        return Ok(page.as_ptr().cast_mut());
    }
    Err(TierError::PageShape { shape: shape.to_vec(), got, expected: page_bytes })
}

/// Pages to read.
#[derive(Clone, Copy)]
pub(super) struct SourceRows<'a> {
    places: Places<'a>,
    page_bytes: usize,
    memory: PhantomData<&'a u8>,
}

impl<'a> SourceRows<'a> {
    pub(super) fn new(pages: &'a TensorRef<'_>, count: usize, page_bytes: usize) -> Result<Self, TierError> {
        let stride = page_stride(pages, count, page_bytes)?;
        let places = Places::Strided { first: pages.as_ptr().cast_mut(), count, stride };
        Ok(Self { places, page_bytes, memory: PhantomData })
    }

    pub(super) fn apart(pages: &'a Apart<'_, false>) -> Self {
        let Apart { addresses, page_bytes, .. } = pages;
        Self { places: Places::Apart(addresses), page_bytes: *page_bytes, memory: PhantomData }
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
        self.places.address(row).cast_const().wrapping_add(part.start)
    }
}

/// Pages to write. Two threads that write one row at once leave a mix of both, as with any memory that threads share
/// through addresses; the rows of one call are different.
#[derive(Clone, Copy)]
pub(super) struct TargetRows<'a> {
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
        let stride = page_stride(&pages.as_ref(), count, page_bytes)?;
        let places = Places::Strided { first: pages.as_mut_ptr(), count, stride };
        Ok(Self { places, page_bytes, kernel: kernel(count, page_bytes), memory: PhantomData })
    }

    pub(super) fn apart(pages: &'a Apart<'_, true>) -> Self {
        let Apart { addresses, page_bytes, .. } = pages;
        let kernel = kernel(addresses.len(), *page_bytes);
        Self { places: Places::Apart(addresses), page_bytes: *page_bytes, kernel, memory: PhantomData }
    }

    /// Whether row `row` begins where the system copies fast to, and the vectors of `kernels` may be streamed to.
    pub(super) fn is_aligned(&self, row: usize) -> bool {
        self.places.address(row).addr().is_multiple_of(LINE_BYTES)
    }

    /// Some bytes of page `row`, for the system to write.
    pub(super) fn room(&self, row: usize, part: Range<usize>) -> Room<'a> {
        assert!(part.start <= part.end && part.end <= self.page_bytes, "bytes that are not in the page");
        Room {
            first: self.places.address(row).wrapping_add(part.start),
            bytes: part.len(),
            memory: PhantomData,
        }
    }

    /// Writes page `row`.
    pub(super) fn copy_in(&self, row: usize, page: &[u8]) {
        assert!(page.len() == self.page_bytes, "a page of another length");
        let to = self.places.address(row);
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
        let to = self.places.address(row).wrapping_add(at);
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
        let to = self.places.address(row);
        // SAFETY: as above.
        unsafe { std::ptr::write_bytes(to, 0, self.page_bytes) };
    }
}

/// A part of a page to write, by address: what the system is to fill, and what is checked there.
pub(super) struct Room<'a> {
    first: *mut u8,
    bytes: usize,
    memory: PhantomData<&'a u8>,
}

impl Room<'_> {
    /// Where it begins; as many bytes as [`len`](Self::len) says may be written there.
    pub(super) fn as_mut_ptr(&self) -> *mut u8 {
        self.first
    }

    pub(super) fn len(&self) -> usize {
        self.bytes
    }

    /// What is left behind its first `bytes` bytes.
    pub(super) fn rest(&self, bytes: usize) -> Self {
        let bytes = bytes.min(self.bytes);
        Self { first: self.first.wrapping_add(bytes), bytes: self.bytes - bytes, memory: PhantomData }
    }

    /// Has all of it checked, where it lies.
    pub(super) fn check(&self, hasher: &mut Hasher) {
        // SAFETY: the bytes lie in a page that may be read; they are read by address, and copied nowhere.
        unsafe { hasher.absorb(self.first, self.bytes, Target::Nothing) };
    }

    /// Copies bytes to its front, as far as there is room.
    pub(super) fn put(&self, bytes: &[u8]) {
        // SAFETY: as many bytes of the page may be written; the source is memory of ours.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.first, self.bytes.min(bytes.len())) };
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
        Places::Numbered { first: self.0.as_ptr(), numbers: slots, stride: self.0.page_bytes() as isize }
    }

    /// The pages of some slots, to read.
    pub(super) fn source<'a>(&'a self, slots: &'a [u32]) -> SourceRows<'a> {
        SourceRows { places: self.places(slots), page_bytes: self.0.page_bytes(), memory: PhantomData }
    }

    /// The pages of some slots, to write.
    pub(super) fn target<'a>(&'a self, slots: &'a [u32]) -> TargetRows<'a> {
        let page_bytes = self.0.page_bytes();
        // What is brought to the host is read next.
        let kernel = kernel(0, page_bytes);
        TargetRows { places: self.places(slots), page_bytes, kernel, memory: PhantomData }
    }

    /// Copies row `row` of `source` to a slot.
    pub(super) fn fill(&self, slot: u32, source: &SourceRows<'_>, row: usize) {
        assert!(source.page_bytes == self.0.page_bytes(), "a page of another length");
        let from = source.places.address(row).cast_const();
        let to = self.places(&[slot]).address(0);
        // SAFETY: both are pages of that length; the pool's memory is known to nobody outside.
        unsafe { std::ptr::copy_nonoverlapping(from, to, self.0.page_bytes()) };
    }

    /// Copies a slot to row `row` of `target`.
    pub(super) fn deliver(&self, slot: u32, target: &TargetRows<'_>, row: usize) {
        assert!(target.page_bytes == self.0.page_bytes(), "a page of another length");
        let from = self.places(&[slot]).address(0).cast_const();
        let to = target.places.address(row);
        // SAFETY: as above.
        unsafe { target.kernel.copy(from, to, self.0.page_bytes(), from) };
        target.kernel.finish();
    }
}
