//! From two strided layers to the fewest, longest runs that copy a page.

use super::error::PageError;
use crate::error::KvCacheError;
use infer_accel_tensor::{MAX_DIMS, TensorMut, TensorRef};

/// An axis of a page, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Axis {
    pub(super) extent: usize,
    pub(super) source_stride: isize,
    pub(super) target_stride: isize,
}

/// How a page of one layer is copied: `axes` are walked, outermost first, and at each point `run_bytes` are
/// contiguous on both sides.
#[derive(Clone, Debug)]
pub(super) struct LayerPlan {
    pub(super) source: *const u8,
    pub(super) target: *mut u8,
    pub(super) source_pages: usize,
    pub(super) target_pages: usize,
    pub(super) source_stride: isize,
    pub(super) target_stride: isize,
    pub(super) run_bytes: usize,
    axes: [Axis; MAX_DIMS],
    num_axes: usize,
}

impl LayerPlan {
    pub(super) fn axes(&self) -> &[Axis] {
        &self.axes[..self.num_axes]
    }

    /// Runs of a page.
    pub(super) fn runs(&self) -> usize {
        self.axes().iter().map(|axis| axis.extent).product()
    }

    /// Bytes of a page, gaps not counted.
    pub(super) fn page_bytes(&self) -> usize {
        self.run_bytes * self.runs()
    }

    /// Whether page `i + 1` begins where the run of page `i` ends, on both sides: then runs of neighbours join.
    pub(super) fn pages_join(&self) -> bool {
        let run = self.run_bytes as isize;
        self.source_stride == run && self.target_stride == run
    }
}

/// Plans every layer, or says which one cannot be copied.
pub(super) fn plan_layers(
    sources: &[TensorRef<'_>],
    targets: &mut [TensorMut<'_>],
    axis: usize,
) -> Result<Vec<LayerPlan>, KvCacheError> {
    if sources.len() != targets.len() {
        return Err(PageError::LayerCount { sources: sources.len(), targets: targets.len() }.into());
    }
    let layers = sources.iter().zip(targets).enumerate();
    layers.map(|(layer, (source, target))| plan_layer(layer, source, target, axis)).collect()
}

fn plan_layer(
    layer: usize,
    source: &TensorRef<'_>,
    target: &mut TensorMut<'_>,
    axis: usize,
) -> Result<LayerPlan, KvCacheError> {
    for ndim in [source.ndim(), target.ndim()] {
        if axis >= ndim {
            return Err(PageError::PageAxis { layer, axis, ndim }.into());
        }
    }
    if source.dtype() != target.dtype() {
        let (source_dtype, target_dtype) = (source.dtype(), target.dtype());
        return Err(PageError::PageDType { layer, source_dtype, target_dtype }.into());
    }
    let others = |shape: &[usize]| [&shape[..axis], &shape[axis + 1..]].concat();
    if source.ndim() != target.ndim() || others(source.shape()) != others(target.shape()) {
        let (source_shape, target_shape) = (source.shape().to_vec(), target.shape().to_vec());
        return Err(PageError::PageShape { layer, axis, source_shape, target_shape }.into());
    }
    let element = source.dtype().size();
    // An axis of one entry may have any stride; it is never followed.
    let stride = |strides: &[isize], axis: usize| strides[axis].wrapping_mul(element as isize);
    let mut plan = LayerPlan {
        source: source.as_ptr(),
        target: target.as_mut_ptr(),
        source_pages: source.shape()[axis],
        target_pages: target.shape()[axis],
        source_stride: stride(source.strides(), axis),
        target_stride: stride(target.strides(), axis),
        run_bytes: element,
        axes: [Axis::default(); MAX_DIMS],
        num_axes: 0,
    };
    for other in (0..source.ndim()).filter(|&other| other != axis && source.shape()[other] != 1) {
        plan.push_axis(Axis {
            extent: source.shape()[other],
            source_stride: stride(source.strides(), other),
            target_stride: stride(target.strides(), other),
        });
    }
    plan.simplify();
    Ok(plan)
}

impl LayerPlan {
    /// Adds an axis; one that runs backwards in the target is turned around on both sides.
    fn push_axis(&mut self, mut axis: Axis) {
        if axis.target_stride < 0 && axis.extent > 0 {
            let last = axis.extent as isize - 1;
            self.source = self.source.wrapping_offset(last * axis.source_stride);
            self.target = self.target.wrapping_offset(last * axis.target_stride);
            axis.source_stride = -axis.source_stride;
            axis.target_stride = -axis.target_stride;
        }
        self.axes[self.num_axes] = axis;
        self.num_axes += 1;
    }

    /// Orders the axes by the target's memory, joins those that are one in memory on both sides, and makes the
    /// innermost one a run if it is contiguous.
    fn simplify(&mut self) {
        let axes = &mut self.axes[..self.num_axes];
        axes.sort_by_key(|axis| std::cmp::Reverse(axis.target_stride));
        let mut joined: usize = 0;
        for index in 0..axes.len() {
            let inner = axes[index];
            let extent = inner.extent as isize;
            let outer = joined.checked_sub(1).map(|last| axes[last]);
            match outer {
                Some(outer)
                    if inner.source_stride.checked_mul(extent) == Some(outer.source_stride)
                        && inner.target_stride.checked_mul(extent) == Some(outer.target_stride) =>
                {
                    axes[joined - 1] = Axis { extent: outer.extent * inner.extent, ..inner };
                }
                _ => {
                    axes[joined] = inner;
                    joined += 1;
                }
            }
        }
        self.num_axes = joined;
        if let Some(inner) = self.axes().last().copied() {
            let element = self.run_bytes as isize;
            if inner.source_stride == element && inner.target_stride == element {
                self.run_bytes *= inner.extent;
                self.num_axes -= 1;
            }
        }
    }
}
