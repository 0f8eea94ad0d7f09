#![allow(unsafe_code)] // pages are memory that Python can change: bytes are copied by address, never as a slice
//! The caller's pages, one row each.

use super::TierError;
use infer_accel_tensor::{TensorMut, TensorRef};

/// Pages to read.
#[derive(Clone, Copy)]
pub(super) struct SourceRows<'a> {
    pages: &'a TensorRef<'a>,
    page_bytes: usize,
    stride: isize,
}

/// Pages to write. Each row may be written by one thread at a time.
#[derive(Clone, Copy)]
pub(super) struct TargetRows<'a> {
    first: *mut u8,
    count: usize,
    page_bytes: usize,
    stride: isize,
    memory: std::marker::PhantomData<&'a u8>,
}

// SAFETY: an address with bounds, from a view that may be written from any thread.
unsafe impl Send for TargetRows<'_> {}
// SAFETY: as above; who writes which row is what `copy_in` asks its caller for.
unsafe impl Sync for TargetRows<'_> {}

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

impl<'a> SourceRows<'a> {
    pub(super) fn new(pages: &'a TensorRef<'a>, count: usize, page_bytes: usize) -> Result<Self, TierError> {
        let stride = page_stride(pages, count, page_bytes)?;
        Ok(Self { pages, page_bytes, stride })
    }

    /// Appends page `row` to `out`.
    pub(super) fn append_to(&self, row: usize, out: &mut Vec<u8>) {
        assert!(row < self.pages.shape()[0], "a row that is not there");
        let from = self.pages.as_ptr().wrapping_offset(row as isize * self.stride);
        out.reserve(self.page_bytes);
        // SAFETY: the row exists and is `page_bytes` long and contiguous; the reserved bytes behind the vector's end
        // belong to it, and are initialised before the length says so.
        unsafe {
            std::ptr::copy_nonoverlapping(from, out.as_mut_ptr().add(out.len()), self.page_bytes);
            out.set_len(out.len() + self.page_bytes);
        }
    }
}

impl<'a> TargetRows<'a> {
    pub(super) fn new(
        pages: &'a mut TensorMut<'_>,
        count: usize,
        page_bytes: usize,
    ) -> Result<Self, TierError> {
        let stride = page_stride(&pages.as_ref(), count, page_bytes)?;
        Ok(Self { first: pages.as_mut_ptr(), count, page_bytes, stride, memory: std::marker::PhantomData })
    }

    /// Writes page `row`. Two threads that write one row at once leave a mix of both, as with any memory that
    /// threads share through addresses; rows of one call are different.
    pub(super) fn copy_in(&self, row: usize, page: &[u8]) {
        assert!(row < self.count && page.len() == self.page_bytes, "a page that has no place");
        let to = self.first.wrapping_offset(row as isize * self.stride);
        // SAFETY: the row exists, is contiguous and as long as the page, as was checked when the view was taken; its
        // memory may be written from any thread. The source is a buffer of ours, which no view of the caller's shows.
        unsafe { std::ptr::copy_nonoverlapping(page.as_ptr(), to, page.len()) };
    }
}
