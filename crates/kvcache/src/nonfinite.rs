#![allow(unsafe_code)] // follows the addresses of checked views
//! Pages that hold a NaN or an infinity, and pages made blank.
//!
//! Attention multiplies what it must not see by zero, and NaN times zero is NaN: one such number in a page that is
//! used again poisons the next request, though its token is masked. So pages are looked through before they are
//! shared, or made blank when they are given back.

use crate::KvCacheError;
use crate::copy::PageError;
use crate::kernels::nonfinite::has_nonfinite;
use infer_accel_tensor::simd::{self, Tier};
use infer_accel_tensor::{DType, Layout, MAX_DIMS, TensorMut, TensorRef, threads};
use std::sync::atomic::{AtomicBool, Ordering};

/// A task is about this long, so that handing it out costs nothing beside it.
const TASK_BYTES: usize = 256 << 10;

/// Which pages (entries of the first axis) hold a number that is not finite.
///
/// `dtype` says what bytes mean: pages of `uint8` may hold numbers of any format, if a page is contiguous and whole.
/// Linear in the bytes; a page is left at its first find.
pub fn scan_nonfinite(
    pages: &TensorRef<'_>,
    dtype: Option<DType>,
    num_threads: Option<usize>,
    stop: &dyn Fn() -> bool,
) -> Result<Vec<bool>, KvCacheError> {
    scan_nonfinite_with(simd::tier(), pages, dtype, num_threads, stop)
}

fn scan_nonfinite_with(
    tier: Tier,
    pages: &TensorRef<'_>,
    dtype: Option<DType>,
    num_threads: Option<usize>,
    stop: &dyn Fn() -> bool,
) -> Result<Vec<bool>, KvCacheError> {
    let threads = threads::resolve(num_threads)?;
    let dtype = dtype.unwrap_or(pages.dtype());
    if !dtype.is_float() || (dtype != pages.dtype() && pages.dtype() != DType::U8) {
        return Err(PageError::NonFiniteDType { got: pages.dtype(), meant: dtype }.into());
    }
    let Some(&count) = pages.shape().first() else {
        return Err(PageError::PageAxis { layer: 0, axis: 0, ndim: 0 }.into());
    };
    if count == 0 || pages.is_empty() {
        return Ok(vec![false; count]);
    }
    let first = pages.index_axis(0, 0)?;
    let page_bytes = first.byte_len();
    if dtype != pages.dtype() && !(first.is_contiguous() && page_bytes.is_multiple_of(dtype.size())) {
        return Err(PageError::NonFiniteBytes { bytes: page_bytes, dtype }.into());
    }
    let scale = dtype.size() / pages.dtype().size();
    let runs = Runs::of(first.layout());
    let stride = pages.strides().first().copied().unwrap_or(0) * pages.dtype().size() as isize;
    let found: Vec<AtomicBool> = (0..count).map(|_| AtomicBool::new(false)).collect();
    let per_task = (TASK_BYTES / page_bytes.max(1)).max(1);
    let view = *pages;
    let work = |task: usize| {
        let mine = found.iter().enumerate().skip(task * per_task).take(per_task);
        for (page, found) in mine {
            let at = view.as_ptr().wrapping_offset(page as isize * stride);
            let has = runs.any(at, view.dtype().size(), |run, length| {
                // SAFETY: the run lies within the view, whose memory may be read from any thread.
                unsafe { has_nonfinite(tier, dtype, run, length / scale) }
            });
            found.store(has, Ordering::Relaxed);
        }
    };
    threads::parallel_for_interruptible(threads, count.div_ceil(per_task), stop, work)?;
    Ok(found.into_iter().map(AtomicBool::into_inner).collect())
}

/// Makes pages blank: writes zeros to the pages `ids` of every layer, along `axis`.
///
/// Everything is checked first. An id may come twice.
pub fn scrub_pages(targets: &mut [TensorMut<'_>], ids: &[i64], axis: usize) -> Result<(), KvCacheError> {
    for (layer, target) in targets.iter().enumerate() {
        let Some(&pages) = target.shape().get(axis) else {
            return Err(PageError::PageAxis { layer, axis, ndim: target.ndim() }.into());
        };
        for (row, &id) in ids.iter().enumerate() {
            if usize::try_from(id).map_or(true, |id| id >= pages) {
                return Err(PageError::PageId { row, side: "target", id, pages }.into());
            }
        }
    }
    for target in targets {
        for &id in ids {
            let mut page = target.index_axis_mut(axis, id as usize)?;
            if page.is_empty() {
                continue;
            }
            let size = page.dtype().size();
            let at = page.as_mut_ptr();
            Runs::of(page.layout()).any(at.cast_const(), size, |run, length| {
                // SAFETY: the run lies within the page, which may be written.
                unsafe { run.cast_mut().write_bytes(0, length * size) };
                false
            });
        }
    }
    Ok(())
}

/// A layout as contiguous runs: the axes outside of them, and the elements of each.
struct Runs {
    axes: [(usize, isize); MAX_DIMS],
    count: usize,
    length: usize,
}

impl Runs {
    fn of(layout: &Layout) -> Self {
        let mut axes = [(0, 0); MAX_DIMS];
        let (mut count, mut length) = (0, 1);
        let mut all: Vec<(usize, isize)> =
            layout.shape().iter().copied().zip(layout.strides().iter().copied()).collect();
        all.retain(|&(extent, _)| extent != 1);
        // A run may be read in any order, so what matters is only which axis steps over which.
        all.sort_by_key(|&(_, stride)| stride.unsigned_abs());
        for (extent, stride) in all {
            if count == 0 && stride == length as isize {
                length *= extent;
            } else if count < MAX_DIMS {
                axes[count] = (extent, stride);
                count += 1;
            }
        }
        Self { axes, count, length }
    }

    /// Asks `test` about each run (its address and its elements) until it says yes.
    fn any(&self, at: *const u8, size: usize, mut test: impl FnMut(*const u8, usize) -> bool) -> bool {
        self.any_below(self.count, at, size, &mut test)
    }

    fn any_below(
        &self,
        depth: usize,
        at: *const u8,
        size: usize,
        test: &mut dyn FnMut(*const u8, usize) -> bool,
    ) -> bool {
        let Some(outer) = depth.checked_sub(1) else { return test(at, self.length) };
        let (extent, stride) = self.axes[outer];
        (0..extent).any(|index| {
            let offset = index as isize * stride * size as isize;
            self.any_below(outer, at.wrapping_offset(offset), size, test)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use infer_accel_tensor::float::f16_to_f32;
    use proptest::prelude::*;

    const FORMATS: [DType; 6] =
        [DType::F64, DType::F32, DType::F16, DType::BF16, DType::F8E4M3, DType::F8E5M2];

    /// Whether the number in these bytes is finite, by what the format says.
    fn is_finite(dtype: DType, bytes: &[u8]) -> bool {
        let word = |from: usize| u16::from_le_bytes([bytes[from], bytes[from + 1]]);
        match dtype {
            DType::F64 => f64::from_le_bytes(bytes.try_into().unwrap()).is_finite(),
            DType::F32 => f32::from_le_bytes(bytes.try_into().unwrap()).is_finite(),
            DType::F16 => f16_to_f32(word(0)).is_finite(),
            DType::BF16 => f32::from_bits(u32::from(word(0)) << 16).is_finite(),
            DType::F8E5M2 => f16_to_f32(u16::from(bytes[0]) << 8).is_finite(),
            DType::F8E4M3 => bytes[0] != 0x7f && bytes[0] != 0xff,
            other => panic!("{other} is no float"),
        }
    }

    fn scan(tier: Tier, bytes: &[u8], pages: usize, dtype: DType) -> Vec<bool> {
        let view = TensorRef::from_slice(bytes, &[pages, bytes.len() / pages]).unwrap();
        scan_nonfinite_with(tier, &view, Some(dtype), None, &|| false).unwrap()
    }

    #[test]
    fn every_number_of_two_bytes_and_one() {
        for dtype in [DType::F16, DType::BF16, DType::F8E4M3, DType::F8E5M2] {
            let size = dtype.size();
            for bits in 0..1_u32 << (8 * size) {
                let bytes = &bits.to_le_bytes()[..size];
                // SAFETY: one number of the format's size.
                let found = unsafe { has_nonfinite(simd::tier(), dtype, bytes.as_ptr(), 1) };
                assert_eq!(found, !is_finite(dtype, bytes), "{dtype} {bits:#x}");
            }
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_formats(
            format in 0..6_usize,
            pages in 1..5_usize,
            numbers in 1..3000_usize,
            offset in 0..8_usize,
            bad in proptest::collection::vec((any::<prop::sample::Index>(), any::<u64>()), 0..4),
        ) {
            let dtype = FORMATS[format];
            let size = dtype.size();
            let mut store = vec![0x11_u8; offset + pages * numbers * size];
            let bytes = &mut store[offset..];
            for (place, bits) in bad {
                let at = place.index(pages * numbers) * size;
                bytes[at..at + size].copy_from_slice(&bits.to_le_bytes()[..size]);
                // The exponent, and half the time everything else: as NaNs and infinities have it.
                if bits & 2 == 0 {
                    bytes[at + size - 1] |= 0x7f;
                    if size > 1 { bytes[at + size - 2] |= 0xf0; }
                }
            }
            let expected: Vec<bool> = bytes
                .chunks(numbers * size)
                .map(|page| page.chunks(size).any(|number| !is_finite(dtype, number)))
                .collect();
            for &tier in simd::available() {
                prop_assert_eq!(scan(tier, bytes, pages, dtype), &expected[..], "{} {}", tier, dtype);
            }
        }
    }

    #[test]
    fn pages_of_any_stride() {
        let mut numbers = vec![1.0_f32; 4 * 6 * 10];
        numbers[10 * 6 + 13] = f32::NAN;
        let whole = TensorRef::from_slice(&numbers, &[4, 6, 10]).unwrap();
        let found = |view: &TensorRef<'_>| scan_nonfinite(view, None, None, &|| false).unwrap();
        assert_eq!(found(&whole), [false, true, false, false]);
        // SAFETY: strides of the same memory.
        let turned =
            unsafe { TensorRef::from_raw(whole.as_ptr(), DType::F32, &[10, 6, 4], &[1, 10, 60]) }.unwrap();
        assert_eq!(found(&turned).iter().position(|&bad| bad), Some(3));
        // SAFETY: every second row of the first three pages.
        let some =
            unsafe { TensorRef::from_raw(whole.as_ptr(), DType::F32, &[3, 3, 10], &[60, 20, 1]) }.unwrap();
        assert_eq!(found(&some), [false; 3], "the row that holds it is not among them");
        let empty = TensorRef::from_slice::<f32>(&[], &[3, 0]).unwrap();
        assert_eq!(found(&empty), [false; 3]);
    }

    #[test]
    fn what_is_no_float_is_refused() {
        let view = TensorRef::from_slice(&[1_i32, 2], &[2]).unwrap();
        let code =
            |view: &TensorRef<'_>, dtype| scan_nonfinite(view, dtype, None, &|| false).unwrap_err().code();
        assert_eq!(code(&view, None), "dtype.nonfinite");
        assert_eq!(code(&view, Some(DType::F32)), "dtype.nonfinite");
        let bytes = TensorRef::from_slice(&[1_u8, 2, 3], &[1, 3]).unwrap();
        assert_eq!(code(&bytes, None), "dtype.nonfinite");
        assert_eq!(code(&bytes, Some(DType::BF16)), "shape.nonfinite");
        let scalar = TensorRef::from_slice(&[1.0_f32], &[]).unwrap();
        assert_eq!(code(&scalar, None), "argument.axis");
    }

    #[test]
    fn scrubbed_pages_are_blank_and_others_are_not() {
        let mut numbers = vec![f32::NAN; 3 * 4 * 5];
        let mut view = TensorMut::from_slice(&mut numbers, &[3, 4, 5]).unwrap();
        let error = scrub_pages(&mut [view.reborrow()], &[0, 4], 1).unwrap_err();
        assert_eq!(error.code(), "id.page");
        scrub_pages(&mut [view.reborrow()], &[1, 3, 1], 1).unwrap();
        for (index, number) in numbers.iter().enumerate() {
            assert_eq!(number.is_nan(), index / 5 % 2 == 0, "{index}");
        }
    }
}
