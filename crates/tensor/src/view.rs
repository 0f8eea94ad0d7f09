//! Strided views of memory that somebody else owns.
//!
//! The memory under a view may be a numpy array or a torch tensor that another thread changes at the same
//! time. So no view ever hands out a `&[T]`: kernels read and write through raw pointers only.
#![allow(unsafe_code)] // views are made of addresses; this file is where their bounds are established

use std::marker::PhantomData;
use std::ops::Range;

use ndarray::{IxDyn, RawArrayView, RawArrayViewMut, ShapeBuilder};

use crate::{DType, Element, Layout, TensorError};

/// A readable strided view.
#[derive(Clone, Copy, Debug)]
pub struct TensorRef<'a> {
    ptr: *const u8,
    dtype: DType,
    layout: Layout,
    memory: PhantomData<&'a u8>,
}

/// A writable strided view. No two of its indices name one element.
#[derive(Debug)]
pub struct TensorMut<'a> {
    ptr: *mut u8,
    dtype: DType,
    layout: Layout,
    memory: PhantomData<&'a mut u8>,
}

// SAFETY: a view is an address with bounds; whoever made it vouched for the memory from every thread.
unsafe impl Send for TensorRef<'_> {}
// SAFETY: as above; all access goes through raw pointers in kernels that are told what they may touch.
unsafe impl Sync for TensorRef<'_> {}
// SAFETY: as above.
unsafe impl Send for TensorMut<'_> {}
// SAFETY: a shared `&TensorMut` only reads the address and the layout.
unsafe impl Sync for TensorMut<'_> {}

fn check_address(ptr: *const u8, layout: &Layout, dtype: DType) -> Result<(), TensorError> {
    if ptr.is_null() && !layout.is_empty() {
        return Err(TensorError::NullAddress { bytes: layout.len() * dtype.size() });
    }
    Ok(())
}

fn check_count(got: usize, shape: &[usize], layout: &Layout) -> Result<(), TensorError> {
    if got == layout.len() {
        Ok(())
    } else {
        Err(TensorError::ElementCount { got, expected: layout.len(), shape: shape.to_vec() })
    }
}

/// The byte at which the element of indices 0 lies, after a check that all elements lie within `bytes`.
fn check_bytes(bytes: usize, dtype: DType, offset: usize, layout: &Layout) -> Result<usize, TensorError> {
    if layout.is_empty() {
        return Ok(0);
    }
    let span = layout.span();
    let fits = isize::try_from(offset).ok().is_some_and(|offset| {
        let end = offset.checked_add(span.end).and_then(|end| end.checked_mul(dtype.size() as isize));
        offset.checked_add(span.start).is_some_and(|start| start >= 0)
            && end.is_some_and(|end| end as usize <= bytes)
    });
    if fits {
        Ok(offset * dtype.size())
    } else {
        Err(TensorError::OutOfBytes { bytes, dtype, offset, shape: layout.shape().to_vec() })
    }
}

macro_rules! common {
    () => {
        /// The number format.
        pub fn dtype(&self) -> DType {
            self.dtype
        }

        /// Shape and strides.
        pub fn layout(&self) -> &Layout {
            &self.layout
        }

        /// Entries of each axis.
        pub fn shape(&self) -> &[usize] {
            self.layout.shape()
        }

        /// Elements (not bytes) from one entry of each axis to the next; may be 0 or negative.
        pub fn strides(&self) -> &[isize] {
            self.layout.strides()
        }

        /// Number of dimensions.
        pub fn ndim(&self) -> usize {
            self.layout.ndim()
        }

        /// Number of elements.
        pub fn len(&self) -> usize {
            self.layout.len()
        }

        /// Whether there are no elements.
        pub fn is_empty(&self) -> bool {
            self.layout.is_empty()
        }

        /// Bytes of all elements (what lies between them not counted).
        pub fn byte_len(&self) -> usize {
            self.layout.len() * self.dtype.size()
        }

        /// Whether the elements lie one behind the other in row-major order.
        pub fn is_contiguous(&self) -> bool {
            self.layout.is_contiguous()
        }

        /// Whether the first element lies at a multiple of the element's size. numpy and torch can hold
        /// tensors for which it does not; kernels that use aligned access refuse or step around those.
        pub fn is_aligned(&self) -> bool {
            self.ptr.addr().is_multiple_of(self.dtype.size())
        }

        /// The addresses from the lowest byte that an index can name to one behind the highest.
        pub fn byte_range(&self) -> Range<usize> {
            let size = self.dtype.size() as isize;
            let span = self.layout.span();
            let at = |offset: isize| self.ptr.addr().wrapping_add_signed(offset * size);
            at(span.start)..at(span.end)
        }

        /// Whether the byte ranges of two views meet. Two interleaved views that share no byte count as meeting.
        pub fn overlaps(&self, other: &TensorRef<'_>) -> bool {
            let (a, b) = (self.byte_range(), other.byte_range());
            !a.is_empty() && !b.is_empty() && a.start < b.end && b.start < a.end
        }
    };
}

impl<'a> TensorRef<'a> {
    /// A view of memory at `ptr`, which is the address of the element whose indices are all 0.
    ///
    /// # Safety
    /// For all of `'a`, every element that `shape` and `strides` (in elements) name lies in one allocation
    /// that may be read from any thread. It need not be aligned, and other code may change it meanwhile.
    pub unsafe fn from_raw(
        ptr: *const u8,
        dtype: DType,
        shape: &[usize],
        strides: &[isize],
    ) -> Result<Self, TensorError> {
        let layout = Layout::new(shape, strides, dtype.size())?;
        check_address(ptr, &layout, dtype)?;
        Ok(Self { ptr, dtype, layout, memory: PhantomData })
    }

    /// A contiguous view of a slice.
    pub fn from_slice<T: Element>(data: &'a [T], shape: &[usize]) -> Result<Self, TensorError> {
        let layout = Layout::contiguous(shape, size_of::<T>())?;
        check_count(data.len(), shape, &layout)?;
        Ok(Self { ptr: data.as_ptr().cast(), dtype: T::DTYPE, layout, memory: PhantomData })
    }

    /// A view of elements that lie in a slice of bytes, the first of them `offset` elements behind its start.
    /// The bytes need not be aligned for the format; whatever the strides say, the view ends within the slice.
    pub fn from_bytes(
        data: &'a [u8],
        dtype: DType,
        offset: usize,
        shape: &[usize],
        strides: &[isize],
    ) -> Result<Self, TensorError> {
        let layout = Layout::new(shape, strides, dtype.size())?;
        let start = check_bytes(data.len(), dtype, offset, &layout)?;
        Ok(Self { ptr: data.as_ptr().wrapping_add(start), dtype, layout, memory: PhantomData })
    }

    common!();

    /// The address of the element whose indices are all 0.
    pub fn as_ptr(&self) -> *const u8 {
        self.ptr
    }

    /// The view at one entry of an axis, without that axis.
    pub fn index_axis(&self, axis: usize, index: usize) -> Result<Self, TensorError> {
        let (offset, layout) = step_into(&self.layout, axis, index)?;
        let ptr = self.ptr.wrapping_offset(offset * self.dtype.size() as isize);
        Ok(Self { ptr, layout, ..*self })
    }

    /// The view of some entries of an axis.
    pub fn narrow(&self, axis: usize, entries: Range<usize>) -> Result<Self, TensorError> {
        let Some(&len) = self.shape().get(axis) else {
            return Err(TensorError::Axis { axis, ndim: self.ndim() });
        };
        if entries.start > entries.end || entries.end > len {
            return Err(TensorError::Index { index: entries.end.max(entries.start), axis, len });
        }
        let layout = self.layout.with_extent(axis, entries.len());
        // As in `step_into`: an empty view stays at the start.
        let offset = if layout.is_empty() { 0 } else { self.strides()[axis] * entries.start as isize };
        Ok(Self { ptr: self.ptr.wrapping_offset(offset * self.dtype.size() as isize), layout, ..*self })
    }

    /// The same view with its axes in the opposite order.
    #[must_use]
    pub fn transposed(&self) -> Self {
        Self { layout: self.layout.reversed(), ..*self }
    }

    /// The same view in ndarray's words. `None` when `T` is not this view's format, the memory is not aligned
    /// for it, or a stride is negative (which `ndarray` expresses by other means).
    pub fn raw_view<T: Element>(&self) -> Option<RawArrayView<T, IxDyn>> {
        let strides = ndarray_strides(&self.layout)?;
        if T::DTYPE != self.dtype || !self.is_aligned() {
            return None;
        }
        // SAFETY: the layout was checked when the view was made: every offset is non-negative here and in bounds.
        Some(unsafe { RawArrayView::from_shape_ptr(IxDyn(self.shape()).strides(strides), self.ptr.cast()) })
    }
}

impl<'a> TensorMut<'a> {
    /// A writable view of memory at `ptr`, which is the address of the element whose indices are all 0.
    /// Refuses strides by which two indices could name one element.
    ///
    /// # Safety
    /// For all of `'a`, every element that `shape` and `strides` (in elements) name lies in one allocation
    /// that may be read and written from any thread. It need not be aligned.
    pub unsafe fn from_raw(
        ptr: *mut u8,
        dtype: DType,
        shape: &[usize],
        strides: &[isize],
    ) -> Result<Self, TensorError> {
        let layout = Layout::new(shape, strides, dtype.size())?;
        check_address(ptr, &layout, dtype)?;
        if !layout.is_injective() {
            return Err(TensorError::SelfOverlap { shape: shape.to_vec(), strides: strides.to_vec() });
        }
        Ok(Self { ptr, dtype, layout, memory: PhantomData })
    }

    /// A contiguous writable view of a slice.
    pub fn from_slice<T: Element>(data: &'a mut [T], shape: &[usize]) -> Result<Self, TensorError> {
        let layout = Layout::contiguous(shape, size_of::<T>())?;
        check_count(data.len(), shape, &layout)?;
        Ok(Self { ptr: data.as_mut_ptr().cast(), dtype: T::DTYPE, layout, memory: PhantomData })
    }

    /// As [`TensorRef::from_bytes`], to write. Refuses strides by which two indices could name one element.
    pub fn from_bytes(
        data: &'a mut [u8],
        dtype: DType,
        offset: usize,
        shape: &[usize],
        strides: &[isize],
    ) -> Result<Self, TensorError> {
        let layout = Layout::new(shape, strides, dtype.size())?;
        let start = check_bytes(data.len(), dtype, offset, &layout)?;
        if !layout.is_injective() {
            return Err(TensorError::SelfOverlap { shape: shape.to_vec(), strides: strides.to_vec() });
        }
        Ok(Self { ptr: data.as_mut_ptr().wrapping_add(start), dtype, layout, memory: PhantomData })
    }

    common!();

    /// The address of the element whose indices are all 0.
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.ptr
    }

    /// The address of the element whose indices are all 0, for reading.
    pub fn as_ptr(&self) -> *const u8 {
        self.ptr
    }

    /// A shorter borrow of the same view.
    pub fn reborrow(&mut self) -> TensorMut<'_> {
        TensorMut { ptr: self.ptr, dtype: self.dtype, layout: self.layout, memory: PhantomData }
    }

    /// The same elements, to read.
    pub fn as_ref(&self) -> TensorRef<'_> {
        TensorRef { ptr: self.ptr, dtype: self.dtype, layout: self.layout, memory: PhantomData }
    }

    /// The writable view at one entry of an axis, without that axis.
    pub fn index_axis_mut(&mut self, axis: usize, index: usize) -> Result<TensorMut<'_>, TensorError> {
        let (offset, layout) = step_into(&self.layout, axis, index)?;
        let ptr = self.ptr.wrapping_offset(offset * self.dtype.size() as isize);
        Ok(TensorMut { ptr, dtype: self.dtype, layout, memory: PhantomData })
    }

    /// The same view in ndarray's words; `None` as for [`TensorRef::raw_view`].
    pub fn raw_view_mut<T: Element>(&mut self) -> Option<RawArrayViewMut<T, IxDyn>> {
        let strides = ndarray_strides(&self.layout)?;
        if T::DTYPE != self.dtype || !self.is_aligned() {
            return None;
        }
        // SAFETY: as in `raw_view`; writing was vouched for when the view was made.
        Some(unsafe {
            RawArrayViewMut::from_shape_ptr(IxDyn(self.shape()).strides(strides), self.ptr.cast())
        })
    }
}

fn step_into(layout: &Layout, axis: usize, index: usize) -> Result<(isize, Layout), TensorError> {
    let Some(&len) = layout.shape().get(axis) else {
        return Err(TensorError::Axis { axis, ndim: layout.ndim() });
    };
    if index >= len {
        return Err(TensorError::Index { index, axis, len });
    }
    let rest = layout.without_axis(axis);
    // In an empty tensor an offset may lead anywhere and is never followed: stay at the start.
    let offset = if rest.is_empty() { 0 } else { layout.strides()[axis] * index as isize };
    Ok((offset, rest))
}

fn ndarray_strides(layout: &Layout) -> Option<IxDyn> {
    let strides: Option<Vec<usize>> = layout.strides().iter().map(|&s| usize::try_from(s).ok()).collect();
    strides.map(|strides| IxDyn(&strides))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_become_views() {
        let data = [1_i32, 2, 3, 4, 5, 6];
        let view = TensorRef::from_slice(&data, &[2, 3]).unwrap();
        assert_eq!((view.dtype(), view.len(), view.byte_len()), (DType::I32, 6, 24));
        assert!(view.is_contiguous() && view.is_aligned());
        let row = view.index_axis(0, 1).unwrap();
        assert_eq!(row.shape(), [3]);
        assert_eq!(row.as_ptr().addr(), data.as_ptr().addr() + 12);
        assert!(matches!(view.index_axis(0, 2), Err(TensorError::Index { index: 2, axis: 0, len: 2 })));
        assert!(matches!(view.index_axis(2, 0), Err(TensorError::Axis { axis: 2, ndim: 2 })));
        assert!(matches!(TensorRef::from_slice(&data, &[7]), Err(TensorError::ElementCount { got: 6, .. })));
    }

    #[test]
    fn ndarray_sees_the_same_elements() {
        let data = [1_f32, 2.0, 3.0, 4.0];
        let view = TensorRef::from_slice(&data, &[2, 2]).unwrap();
        let raw = view.raw_view::<f32>().unwrap();
        // SAFETY: `data` outlives the view and nobody writes to it.
        let array = unsafe { raw.deref_into_view() };
        assert!((array.sum() - 10.0).abs() < f32::EPSILON);
        assert!(view.raw_view::<i32>().is_none());
    }

    #[test]
    fn overlap_is_seen() {
        let data = [0_u8; 16];
        let whole = TensorRef::from_slice(&data, &[4, 4]).unwrap();
        let (top, bottom) = (whole.index_axis(0, 0).unwrap(), whole.index_axis(0, 3).unwrap());
        assert!(whole.overlaps(&top) && top.overlaps(&whole));
        assert!(!top.overlaps(&bottom));
        let empty = TensorRef::from_slice(&data[..0], &[0, 4]).unwrap();
        assert!(!whole.overlaps(&empty));
    }

    #[test]
    fn negative_strides_reach_below() {
        let data = [1_u16, 2, 3];
        // SAFETY: three elements, walked from the last to the first.
        let view =
            unsafe { TensorRef::from_raw(data[2..].as_ptr().cast(), DType::U16, &[3], &[-1]) }.unwrap();
        assert_eq!(view.byte_range(), data.as_ptr().addr()..data.as_ptr().addr() + 6);
        assert!(!view.is_contiguous());
        assert!(view.raw_view::<u16>().is_none());
    }

    #[test]
    fn bytes_become_views_that_stay_inside() {
        let mut data: Vec<u8> = (0..16).collect();
        let view = TensorRef::from_bytes(&data, DType::U16, 1, &[2, 3], &[3, 1]).unwrap();
        assert_eq!(view.byte_range(), data.as_ptr().addr() + 2..data.as_ptr().addr() + 14);
        let backwards = TensorRef::from_bytes(&data, DType::U32, 3, &[4], &[-1]).unwrap();
        assert_eq!(backwards.byte_range().start, data.as_ptr().addr());
        for (offset, shape, strides) in
            [(3, [2, 3], [3, 1]), (0, [2, 3], [-3, 1]), (0, [9, 1], [1, 1]), (usize::MAX, [1, 1], [1, 1])]
        {
            let refused = TensorRef::from_bytes(&data, DType::U16, offset, &shape, &strides);
            assert!(matches!(refused, Err(TensorError::OutOfBytes { .. })), "{offset} {shape:?} {strides:?}");
        }
        assert!(TensorRef::from_bytes(&[], DType::U64, 9, &[0, 4], &[4, 1]).is_ok());
        let twice = TensorMut::from_bytes(&mut data, DType::U8, 0, &[2, 2], &[0, 1]);
        assert!(matches!(twice, Err(TensorError::SelfOverlap { .. })));
    }

    #[test]
    fn views_are_narrowed_and_transposed() {
        let data = [1_i32, 2, 3, 4, 5, 6];
        let view = TensorRef::from_slice(&data, &[3, 2]).unwrap();
        let turned = view.transposed();
        assert_eq!((turned.shape(), turned.strides()), (&[2, 3][..], &[1, 2][..]));
        let part = turned.narrow(1, 1..3).unwrap();
        assert_eq!((part.shape(), part.as_ptr().addr()), (&[2, 2][..], data.as_ptr().addr() + 8));
        assert_eq!(view.narrow(0, 3..3).unwrap().as_ptr(), view.as_ptr());
        assert!(matches!(view.narrow(0, 2..4), Err(TensorError::Index { index: 4, axis: 0, len: 3 })));
        assert!(matches!(view.narrow(2, 0..1), Err(TensorError::Axis { axis: 2, ndim: 2 })));
        #[expect(clippy::reversed_empty_ranges, reason = "what a caller may pass by mistake")]
        let backwards = view.narrow(0, 2..1);
        assert!(matches!(backwards, Err(TensorError::Index { .. })));
    }

    #[test]
    fn targets_must_not_alias_themselves() {
        let mut data = [0_u8; 4];
        // SAFETY: all offsets stay within the four bytes.
        let broadcast = unsafe { TensorMut::from_raw(data.as_mut_ptr(), DType::U8, &[4, 4], &[0, 1]) };
        assert!(matches!(broadcast, Err(TensorError::SelfOverlap { .. })));
        // SAFETY: no memory is touched through a null address.
        let null = unsafe { TensorMut::from_raw(std::ptr::null_mut(), DType::U8, &[4], &[1]) };
        assert!(matches!(null, Err(TensorError::NullAddress { bytes: 4 })));
    }
}
