//! `page_copy`, `page_gather`, `page_scatter`.

use infer_accel_kvcache::KvCacheError;
use infer_accel_kvcache::copy::{self as core, CopyOptions};
use infer_accel_tensor::{ErrorKind, TensorMut, TensorRef};
use pyo3::prelude::*;

use crate::errors::NativeError;
use crate::numbers::{Axis, Count};
use crate::run::{interrupted, run};
use crate::tensor::{IntTable, TensorArg};

/// Copies, in every layer, page ``mapping[i, 0]`` of the source to page ``mapping[i, 1]`` of the target.
#[pyfunction]
#[pyo3(signature = (sources, targets, mapping, *, axis = Axis(0), num_threads = None))]
pub(super) fn page_copy(
    py: Python<'_>,
    sources: Vec<TensorArg<'_>>,
    targets: Vec<TensorArg<'_>>,
    mapping: IntTable,
    axis: Axis,
    num_threads: Option<Count>,
) -> PyResult<()> {
    if mapping.shape() != [0] && !matches!(mapping.shape(), [_, 2]) {
        return Err(NativeError::new(
            ErrorKind::Shape,
            "shape.mapping",
            format!(
                "a mapping of shape {:?} came; pass one row of source page and target page each",
                mapping.shape()
            ),
        )
        .into());
    }
    let rows = mapping.values().as_chunks().0;
    copy(py, &sources, &targets, axis, num_threads, rows.len(), |sources, targets, options| {
        core::copy_pages(sources, targets, rows, options)
    })
}

/// Copies, in every layer, page ``ids[i]`` of the source to page ``i`` of the target.
#[pyfunction]
#[pyo3(signature = (sources, ids, targets, *, axis = Axis(0), num_threads = None))]
pub(super) fn page_gather(
    py: Python<'_>,
    sources: Vec<TensorArg<'_>>,
    ids: IntTable,
    targets: Vec<TensorArg<'_>>,
    axis: Axis,
    num_threads: Option<Count>,
) -> PyResult<()> {
    let ids = flat(&ids)?;
    copy(py, &sources, &targets, axis, num_threads, ids.len(), |sources, targets, options| {
        core::gather_pages(sources, ids, targets, options)
    })
}

/// Copies, in every layer, page ``i`` of the source to page ``ids[i]`` of the target.
#[pyfunction]
#[pyo3(signature = (sources, targets, ids, *, axis = Axis(0), num_threads = None))]
pub(super) fn page_scatter(
    py: Python<'_>,
    sources: Vec<TensorArg<'_>>,
    targets: Vec<TensorArg<'_>>,
    ids: IntTable,
    axis: Axis,
    num_threads: Option<Count>,
) -> PyResult<()> {
    let ids = flat(&ids)?;
    copy(py, &sources, &targets, axis, num_threads, ids.len(), |sources, targets, options| {
        core::scatter_pages(sources, targets, ids, options)
    })
}

fn copy(
    py: Python<'_>,
    sources: &[TensorArg<'_>],
    targets: &[TensorArg<'_>],
    axis: Axis,
    num_threads: Option<Count>,
    rows: usize,
    core: impl FnOnce(&[TensorRef<'_>], &mut [TensorMut<'_>], &CopyOptions<'_>) -> Result<(), KvCacheError> + Send,
) -> PyResult<()> {
    let sources: Vec<_> =
        sources.iter().map(TensorArg::view).collect::<Result<_, _>>().map_err(NativeError::from)?;
    let mut targets: Vec<_> = targets.iter().map(TensorArg::view_mut).collect::<Result<_, _>>()?;
    let axis = from_front(axis.0, sources.first().map_or(0, TensorRef::ndim));
    let page_bytes = |view: &TensorRef<'_>| view.byte_len() / view.shape().get(axis).map_or(1, |&n| n.max(1));
    let work = 2 * rows * sources.iter().map(page_bytes).sum::<usize>();
    let num_threads = num_threads.map(|count| count.0);
    run(py, work, || {
        let options = CopyOptions { axis, num_threads, stop: &interrupted };
        core(&sources, &mut targets, &options)
    })
}

/// An axis counted from the front; one before the first stays out of range.
pub(super) fn from_front(axis: isize, ndim: usize) -> usize {
    if axis < 0 { ndim.wrapping_add_signed(axis) } else { axis.unsigned_abs() }
}

pub(super) fn flat(ids: &IntTable) -> Result<&[i64], NativeError> {
    if ids.shape().len() == 1 {
        return Ok(ids.values());
    }
    Err(NativeError::new(
        ErrorKind::Shape,
        "shape.ids",
        format!("page ids of shape {:?} came; pass them in one dimension", ids.shape()),
    ))
}
