//! The portable tier: the tile logic over arrays. It serves every processor and specifies the other tiers.

use super::Kernels;
use super::lanes::Lanes;
use super::pack::{self, ColumnPack, RowPack};
use super::pack_rows;
use super::passes::passes;
use super::shrink::{self, ShrinkTile};
use super::storage::{Bf16, F16, F32, Storage, Sums};
use super::tile::{self, ONE_PANELS, Tile, TileSet};
use super::vector::Fused;

/// Rows of a tile.
const ROWS: usize = 6;

/// Lanes of a tile: with four-lane registers, 6 × 4 sums of the 32 registers that such processors have.
const LANES: usize = 8;

unsafe fn fused<S: Storage, const COUNT: usize, const PANELS: usize>(tile: &Tile) {
    // SAFETY: plain Rust needs no tier; the caller vouches for the tile.
    unsafe { tile::run::<Lanes<LANES>, Fused, S, ROWS, COUNT, PANELS>(tile) }
}

unsafe fn pack_columns(job: &ColumnPack) {
    // SAFETY: plain Rust needs no tier; the caller vouches for the job.
    unsafe { pack::columns::<Lanes<LANES>>(job) }
}

unsafe fn pack_rows(job: &RowPack) {
    // SAFETY: the caller vouches for the job.
    unsafe { pack_rows::rows::<Lanes<LANES>, ROWS>(job) }
}

unsafe fn shrink<S: Storage>(tile: &ShrinkTile) {
    // SAFETY: plain Rust needs no tier; the caller vouches for the tile.
    unsafe { shrink::run::<Lanes<LANES>, S, 3, 2, 4>(tile) }
}

unsafe fn widen<S: Storage>(source: *const u8, target: *mut f32, count: usize) {
    // SAFETY: plain Rust needs no tier; the caller vouches for the memory.
    unsafe { pack::widen::<Lanes<LANES>, S>(source, target, count) }
}

const fn tiles<S: Storage>() -> TileSet {
    TileSet {
        full: fused::<S, ROWS, 1>,
        four: fused::<S, 4, 1>,
        two: fused::<S, 2, 1>,
        one: fused::<S, 1, 1>,
        one_wide: fused::<S, 1, ONE_PANELS>,
    }
}

/// The kernels of this tier.
pub(crate) static KERNELS: Kernels = Kernels {
    lanes: LANES,
    panel_rows: ROWS,
    fused: [tiles::<F32>(), tiles::<F16>(), tiles::<Bf16>()],
    paired: None,
    sums: fused::<Sums, ROWS, 1>,
    paired_sums: None,
    passes: passes!(Lanes<LANES>),
    pack_columns,
    pack_rows,
    shrink_tokens: 3,
    shrink: [shrink::<F32>, shrink::<F16>, shrink::<Bf16>],
    widen: [widen::<F32>, widen::<F16>, widen::<Bf16>],
};
