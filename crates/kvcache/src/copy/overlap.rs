//! Proof that no byte is written twice, or read and written, by one copy.

use super::error::PageError;
use super::mapping::{PageSet, Row};
use super::plan::{Axis, LayerPlan};
use crate::error::KvCacheError;
use infer_accel_tensor::{TensorMut, TensorRef};

/// The exact check lists every run. Copies of more runs between tensors that interleave in memory are refused
/// rather than given more than 100 MB for it.
const MAX_INTERVALS: usize = 1 << 22;

/// Bytes that a run covers; `layer` is the target layer that writes them, or `None` where they are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Interval {
    start: usize,
    end: usize,
    layer: Option<usize>,
}

pub(super) fn check(
    sources: &[TensorRef<'_>],
    targets: &[TensorMut<'_>],
    layers: &[LayerPlan],
    rows: &[Row],
) -> Result<(), KvCacheError> {
    if rows.is_empty() {
        return Ok(());
    }
    let mut hulls = Vec::with_capacity(2 * layers.len());
    for (layer, (source, target)) in sources.iter().zip(targets).enumerate() {
        let same = source.as_ptr() == target.as_ptr() && source.layout() == target.layout();
        if same && !source.is_empty() {
            check_one_array(rows)?;
        } else {
            hulls.push(interval(source.byte_range(), None));
        }
        hulls.push(interval(target.byte_range(), Some(layer)));
    }
    if first_clash(&mut hulls).is_none() {
        return Ok(());
    }
    check_every_run(layers, rows)
}

/// Source and target are the same view, so pages are the same bytes exactly if they have the same id.
fn check_one_array(rows: &[Row]) -> Result<(), KvCacheError> {
    let last = rows.iter().map(|row| row.target).max().unwrap_or(0);
    let mut written = PageSet::new(last + 1);
    for row in rows {
        written.insert(row.target);
    }
    for (source_row, read) in rows.iter().enumerate().filter(|(_, read)| written.contains(read.source)) {
        if let Some(row) = rows.iter().position(|write| write.target == read.source) {
            return Err(PageError::SourceIsTarget { row, source_row, id: read.source }.into());
        }
    }
    Ok(())
}

fn interval(range: std::ops::Range<usize>, layer: Option<usize>) -> Interval {
    Interval { start: range.start, end: range.end, layer }
}

/// The first layer that writes bytes which another interval reads or writes.
fn first_clash(intervals: &mut Vec<Interval>) -> Option<usize> {
    intervals.retain(|interval| interval.start < interval.end);
    intervals.sort_unstable();
    // The ends of everything read, and of everything written, among the intervals passed.
    let (mut read_end, mut write_end, mut writer) = (0, 0, None);
    for interval in intervals {
        if interval.start < write_end {
            return interval.layer.or(writer);
        }
        if interval.layer.is_some() {
            if interval.start < read_end {
                return interval.layer;
            }
            (write_end, writer) = (interval.end, interval.layer);
        } else {
            read_end = read_end.max(interval.end);
        }
    }
    None
}

fn check_every_run(layers: &[LayerPlan], rows: &[Row]) -> Result<(), KvCacheError> {
    let runs = |layer: &LayerPlan| rows.len().saturating_mul(layer.runs()).saturating_mul(2);
    let total = layers.iter().map(runs).fold(0, usize::saturating_add);
    if total > MAX_INTERVALS {
        return Err(PageError::PageOverlap { layer: 0 }.into());
    }
    let mut intervals = Vec::with_capacity(total);
    for (index, layer) in layers.iter().enumerate() {
        for row in rows {
            let at = |base: usize, stride: isize, page: usize| {
                base.wrapping_add_signed(stride.wrapping_mul(page as isize))
            };
            let source = at(layer.source.addr(), layer.source_stride, row.source);
            let target = at(layer.target.addr(), layer.target_stride, row.target);
            let mut push = |start: usize, layer_index| {
                let end = start.wrapping_add(layer.run_bytes);
                intervals.push(Interval { start, end, layer: layer_index });
            };
            walk(layer.axes(), &|axis| axis.source_stride, source, &mut |start| push(start, None));
            walk(layer.axes(), &|axis| axis.target_stride, target, &mut |start| push(start, Some(index)));
        }
    }
    match first_clash(&mut intervals) {
        None => Ok(()),
        Some(layer) => Err(PageError::PageOverlap { layer }.into()),
    }
}

fn walk(axes: &[Axis], stride: &impl Fn(&Axis) -> isize, start: usize, visit: &mut impl FnMut(usize)) {
    let Some((axis, inner)) = axes.split_first() else { return visit(start) };
    for index in 0..axis.extent {
        walk(inner, stride, start.wrapping_add_signed(stride(axis) * index as isize), visit);
    }
}
