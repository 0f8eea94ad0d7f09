//! Tiles that a kernel cannot take where they lie.

use super::matrix::Matrix;
use super::tile::{Tile, TileFn};
use std::ops::Range;

/// Bytes of the largest tile: 12 rows of 32 columns of binary32.
const STAGE_BYTES: usize = 12 * 32 * 4;

#[repr(align(64))]
struct Stage([u8; STAGE_BYTES]);

/// Runs a kernel on a dense copy of a tile that is narrower than a panel, or whose elements lie apart.
///
/// # Safety
///
/// The processor has the tier of the kernel, the packed panels of the tile cover what it takes; the rows and columns
/// are those of both matrices, readable in the source and writable in the target, and no more than a tile has.
#[inline(never)]
pub(super) unsafe fn run(
    kernel: TileFn,
    tile: Tile,
    (source, target): (&Matrix, &Matrix),
    rows: Range<usize>,
    columns: Range<usize>,
    panel_width: usize,
) {
    let mut stage = Stage([0; STAGE_BYTES]);
    let stage = stage.0.as_mut_ptr();
    let stride = panel_width * target.format.size();
    // SAFETY: the elements exist, and the stage holds a full tile; places without an element are zeros.
    unsafe {
        for (place, row) in rows.clone().enumerate() {
            source.gather(row, columns.start, columns.len(), stage.add(place * stride));
        }
        let stride_bytes = stride as isize;
        kernel(&Tile {
            source: stage,
            source_stride: stride_bytes,
            target: stage,
            target_stride: stride_bytes,
            ahead: 0,
            ahead_below: 0,
            ..tile
        });
        for (place, row) in rows.enumerate() {
            target.scatter(row, columns.start, columns.len(), stage.add(place * stride));
        }
    }
}
