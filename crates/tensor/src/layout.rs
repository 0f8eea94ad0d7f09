//! Shapes and strides, held in place: making a view allocates nothing.

use std::fmt;
use std::ops::Range;

use crate::TensorError;

/// The most dimensions that a view can have. KV caches use up to six.
pub const MAX_DIMS: usize = 8;

/// A shape and its strides, both counted in elements.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    ndim: u8,
    shape: [usize; MAX_DIMS],
    strides: [isize; MAX_DIMS],
}

impl Layout {
    /// A layout of any strides, checked: every offset it names, in bytes of `element_size`, fits an `isize`.
    pub fn new(shape: &[usize], strides: &[isize], element_size: usize) -> Result<Self, TensorError> {
        if shape.len() != strides.len() {
            return Err(TensorError::StrideCount { shape: shape.len(), strides: strides.len() });
        }
        if shape.len() > MAX_DIMS {
            return Err(TensorError::TooManyDimensions { got: shape.len(), max: MAX_DIMS });
        }
        let mut layout = Self { ndim: shape.len() as u8, shape: [0; MAX_DIMS], strides: [0; MAX_DIMS] };
        layout.shape[..shape.len()].copy_from_slice(shape);
        layout.strides[..shape.len()].copy_from_slice(strides);
        if layout.fits(element_size) {
            Ok(layout)
        } else {
            Err(TensorError::TooLarge { shape: shape.to_vec() })
        }
    }

    /// The row-major layout of a shape.
    pub fn contiguous(shape: &[usize], element_size: usize) -> Result<Self, TensorError> {
        if shape.len() > MAX_DIMS {
            return Err(TensorError::TooManyDimensions { got: shape.len(), max: MAX_DIMS });
        }
        let mut strides = [0; MAX_DIMS];
        let mut next: isize = 1;
        for (stride, &extent) in strides[..shape.len()].iter_mut().zip(shape).rev() {
            *stride = next;
            next = isize::try_from(extent.max(1))
                .ok()
                .and_then(|extent| next.checked_mul(extent))
                .ok_or_else(|| TensorError::TooLarge { shape: shape.to_vec() })?;
        }
        Self::new(shape, &strides[..shape.len()], element_size)
    }

    /// Whether the element count and every byte offset fit an `isize`.
    fn fits(&self, element_size: usize) -> bool {
        let limit = isize::MAX as u128;
        let mut elements: u128 = 1;
        let (mut below, mut above) = (0_u128, 0_u128);
        for (&extent, &stride) in self.shape().iter().zip(self.strides()) {
            // An empty axis makes the tensor empty, whatever the others say; those still must not overflow.
            elements = elements.saturating_mul(extent.max(1) as u128);
            let reach = (extent.saturating_sub(1) as u128).saturating_mul(stride.unsigned_abs() as u128);
            if stride < 0 {
                below = below.saturating_add(reach);
            } else {
                above = above.saturating_add(reach);
            }
        }
        let bytes = |count: u128| count.saturating_mul(element_size as u128);
        bytes(elements) <= limit && bytes(below.saturating_add(above).saturating_add(1)) <= limit
    }

    /// Number of dimensions.
    pub fn ndim(&self) -> usize {
        usize::from(self.ndim)
    }

    /// Entries of each axis.
    pub fn shape(&self) -> &[usize] {
        &self.shape[..self.ndim()]
    }

    /// Elements from one entry of each axis to the next.
    pub fn strides(&self) -> &[isize] {
        &self.strides[..self.ndim()]
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape().iter().product()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.shape().contains(&0)
    }

    /// Whether the elements lie one behind the other in row-major order.
    pub fn is_contiguous(&self) -> bool {
        if self.is_empty() {
            return true;
        }
        let mut expected: isize = 1;
        for (&extent, &stride) in self.shape().iter().zip(self.strides()).rev() {
            if extent != 1 && stride != expected {
                return false;
            }
            expected *= extent as isize;
        }
        true
    }

    /// Element offsets from the first element: the lowest one, and one behind the highest. Empty if there is none.
    pub fn span(&self) -> Range<isize> {
        if self.is_empty() {
            return 0..0;
        }
        let (mut low, mut high) = (0, 1);
        for (&extent, &stride) in self.shape().iter().zip(self.strides()) {
            let reach = (extent as isize - 1) * stride;
            if reach < 0 {
                low += reach;
            } else {
                high += reach;
            }
        }
        low..high
    }

    /// Whether no two indices can name one element. Sufficient, not necessary: axes sorted by stride must each
    /// step over everything that the smaller ones reach, which holds for every slice of a dense array.
    pub fn is_injective(&self) -> bool {
        let mut axes = [(0_usize, 0_usize); MAX_DIMS];
        let mut count = 0;
        for (&extent, &stride) in self.shape().iter().zip(self.strides()) {
            if extent == 0 {
                return true;
            }
            if extent > 1 {
                axes[count] = (stride.unsigned_abs(), extent);
                count += 1;
            }
        }
        axes[..count].sort_unstable();
        let mut reached = 0;
        for &(stride, extent) in &axes[..count] {
            if stride <= reached {
                return false;
            }
            reached += stride * (extent - 1);
        }
        true
    }

    /// This layout with `extent` entries of one axis.
    pub(crate) fn with_extent(&self, axis: usize, extent: usize) -> Self {
        let mut rest = *self;
        rest.shape[axis] = extent;
        rest
    }

    /// This layout with its axes in the opposite order.
    pub(crate) fn reversed(&self) -> Self {
        let mut reversed = *self;
        let ndim = self.ndim();
        reversed.shape[..ndim].reverse();
        reversed.strides[..ndim].reverse();
        reversed
    }

    /// This layout without one axis.
    pub(crate) fn without_axis(&self, axis: usize) -> Self {
        let mut rest = *self;
        rest.shape.copy_within(axis + 1.., axis);
        rest.strides.copy_within(axis + 1.., axis);
        rest.ndim -= 1;
        rest
    }
}

impl fmt::Debug for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} by {:?}", self.shape(), self.strides())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    fn offsets(layout: &Layout) -> Vec<isize> {
        let mut all = vec![0];
        for (&extent, &stride) in layout.shape().iter().zip(layout.strides()) {
            all = all.iter().flat_map(|&at| (0..extent as isize).map(move |i| at + i * stride)).collect();
        }
        all
    }

    #[test]
    fn refuses_what_does_not_fit() {
        assert!(matches!(
            Layout::new(&[1; 9], &[1; 9], 1),
            Err(TensorError::TooManyDimensions { got: 9, .. })
        ));
        assert!(matches!(Layout::new(&[1], &[], 1), Err(TensorError::StrideCount { .. })));
        assert!(matches!(Layout::contiguous(&[usize::MAX], 1), Err(TensorError::TooLarge { .. })));
        assert!(matches!(Layout::contiguous(&[1 << 40, 1 << 40], 1), Err(TensorError::TooLarge { .. })));
        assert!(matches!(Layout::new(&[2], &[isize::MIN], 1), Err(TensorError::TooLarge { .. })));
        assert!(matches!(
            Layout::new(&[2, 2], &[isize::MAX, isize::MIN], 2),
            Err(TensorError::TooLarge { .. })
        ));
        assert!(matches!(Layout::new(&[0, usize::MAX], &[1, 1], 1), Err(TensorError::TooLarge { .. })));
    }

    #[test]
    fn scalar_has_one_element() {
        let scalar = Layout::contiguous(&[], 4).unwrap();
        assert_eq!((scalar.len(), scalar.span(), scalar.is_contiguous()), (1, 0..1, true));
    }

    proptest! {
        #[test]
        fn agrees_with_enumeration(
            axes in proptest::collection::vec((0_usize..5, -12_isize..13), 0..5),
        ) {
            let (shape, strides): (Vec<_>, Vec<_>) = axes.into_iter().unzip();
            let layout = Layout::new(&shape, &strides, 2).unwrap();
            let all = offsets(&layout);
            prop_assert_eq!(layout.len(), all.len());
            prop_assert_eq!(layout.is_empty(), all.is_empty());
            if let (Some(&low), Some(&high)) = (all.iter().min(), all.iter().max()) {
                prop_assert_eq!(layout.span(), low..high + 1);
            }
            let distinct: HashSet<_> = all.iter().copied().collect();
            if layout.is_injective() {
                prop_assert_eq!(distinct.len(), all.len());
            }
            let sequential = all.iter().copied().eq(0..all.len() as isize);
            prop_assert_eq!(layout.is_contiguous(), sequential);
        }

        #[test]
        fn dense_arrays_are_contiguous_and_injective(shape in proptest::collection::vec(0_usize..6, 0..6)) {
            let layout = Layout::contiguous(&shape, 4).unwrap();
            prop_assert!(layout.is_contiguous());
            prop_assert!(layout.is_injective());
        }
    }
}
