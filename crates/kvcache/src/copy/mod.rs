//! Page copies: blocks of a paged KV cache, moved between tensors of any layout.
//!
//! A layer is a tensor of which one axis counts pages. A copy reads source pages and writes target pages that a
//! mapping names, in every layer alike. Sources are a snapshot: a call in which one page would be read and
//! written, or written twice, is refused before the first byte moves, so the order of the copies cannot matter.

mod error;
mod execute;
mod mapping;
mod overlap;
mod plan;

pub use error::PageError;

use crate::error::KvCacheError;
use infer_accel_tensor::simd::{self, Tier};
use infer_accel_tensor::{TensorMut, TensorRef, threads};

/// How a copy is done.
#[derive(Clone, Copy)]
pub struct CopyOptions<'a> {
    /// Which axis of every layer counts pages.
    pub axis: usize,
    /// Threads to use; `None` for the default.
    pub num_threads: Option<usize>,
    /// Asked now and then by long copies on the calling thread; true ends the copy with an error.
    pub stop: &'a dyn Fn() -> bool,
}

impl Default for CopyOptions<'_> {
    fn default() -> Self {
        Self { axis: 0, num_threads: None, stop: &|| false }
    }
}

/// Copies, in every layer, page `row[0]` of the source to page `row[1]` of the target, for each row of `mapping`.
///
/// Source and target of a layer agree in dtype and in every axis but the page axis; strides are free, and layers
/// may differ from each other. Everything is checked first; after that only [`KvCacheError::Interrupted`] can
/// come, which leaves some target pages written. Time is linear in the bytes and the mapping; besides a private
/// copy of the mapping, a bit per target page is allocated.
pub fn copy_pages(
    sources: &[TensorRef<'_>],
    targets: &mut [TensorMut<'_>],
    mapping: &[[i64; 2]],
    options: &CopyOptions<'_>,
) -> Result<(), KvCacheError> {
    copy_pages_with(simd::tier(), sources, targets, mapping, options)
}

/// Copies, in every layer, page `ids[i]` of the source to page `i` of the target, which has as many pages as ids.
pub fn gather_pages(
    sources: &[TensorRef<'_>],
    ids: &[i64],
    targets: &mut [TensorMut<'_>],
    options: &CopyOptions<'_>,
) -> Result<(), KvCacheError> {
    check_packed("target", targets.iter().map(TensorMut::shape), ids.len(), options.axis)?;
    let mapping: Vec<_> = ids.iter().zip(0..).map(|(&id, packed)| [id, packed]).collect();
    copy_pages(sources, targets, &mapping, options)
}

/// Copies, in every layer, page `i` of the source, which has as many pages as ids, to page `ids[i]` of the target.
pub fn scatter_pages(
    sources: &[TensorRef<'_>],
    targets: &mut [TensorMut<'_>],
    ids: &[i64],
    options: &CopyOptions<'_>,
) -> Result<(), KvCacheError> {
    check_packed("source", sources.iter().map(TensorRef::shape), ids.len(), options.axis)?;
    let mapping: Vec<_> = ids.iter().zip(0..).map(|(&id, packed)| [packed, id]).collect();
    copy_pages(sources, targets, &mapping, options)
}

/// Whether every layer of the packed side has one page for each id; a missing axis is reported later.
fn check_packed<'a>(
    side: &'static str,
    shapes: impl Iterator<Item = &'a [usize]>,
    ids: usize,
    axis: usize,
) -> Result<(), KvCacheError> {
    for (layer, shape) in shapes.enumerate() {
        match shape.get(axis) {
            Some(&pages) if pages != ids => {
                return Err(PageError::PackedPages { layer, side, pages, ids }.into());
            }
            _ => {}
        }
    }
    Ok(())
}

fn copy_pages_with(
    tier: Tier,
    sources: &[TensorRef<'_>],
    targets: &mut [TensorMut<'_>],
    mapping: &[[i64; 2]],
    options: &CopyOptions<'_>,
) -> Result<(), KvCacheError> {
    let threads = threads::resolve(options.num_threads)?;
    let layers = plan::plan_layers(sources, targets, options.axis)?;
    let pages = |count: fn(&plan::LayerPlan) -> usize| layers.iter().map(count).min().unwrap_or(0);
    let rows = mapping::checked_rows(mapping, pages(|l| l.source_pages), pages(|l| l.target_pages))?;
    overlap::check(sources, targets, &layers, &rows)?;
    execute::run(tier, &layers, &rows, threads, options.stop)
}

#[cfg(test)]
mod tests;
