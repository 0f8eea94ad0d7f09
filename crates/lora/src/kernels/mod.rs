//! The arithmetic: raw memory in, exact results out.
//!
//! One set of micro-kernels is written over [`vector::Vector`] and compiled for each tier; [`mod@update`] and
//! [`mod@apply`] cut the work into tiles and tasks. Everything in here works on addresses, because the memory belongs
//! to somebody else who may change it at any time; everything outside is safe code.
#![allow(unsafe_code)]

mod apply;
mod calls;
mod codes;
mod control;
mod digest;
mod exponents;
mod finish;
mod grouped;
mod lanes;
mod matrix;
mod pack;
mod pack_rows;
mod passes;
mod portable;
mod random;
mod requantize;
mod scratch;
mod shrink;
mod staged;
mod storage;
mod sweep;
mod tile;
mod undo;
mod update;
mod vector;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;

#[cfg(test)]
mod tests;

use infer_accel_tensor::simd::{Tier, detected};
use pack::{ColumnPack, RowPack};
use passes::Passes;
use shrink::ShrinkTile;
use tile::{TileFn, TileSet};

pub(crate) use apply::apply;
pub(crate) use calls::{Outcome, bytes_digest, matrix_digest, merge_slab, undo};
pub(crate) use codes::{Coding, Extent};
pub(crate) use grouped::{PackedPair, Part, Segment, apply_segments, is_finite};
pub(crate) use random::mix;
pub(crate) use requantize::{CodeCall, CodeFault, ScaleFormat};
pub(crate) use update::{merge, merge_all};

/// What a result that is not a number is stored as, whatever NaN the processor made: the positive quiet NaN
/// without payload.
const CANONICAL_NAN: f32 = f32::from_bits(0x7fc0_0000);

/// How a call runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CallSettings {
    /// What the product of the adapter's matrices is multiplied by.
    pub(crate) scaling: f32,
    /// The highest tier that may be used.
    pub(crate) tier: Tier,
    /// The most threads that may be used.
    pub(crate) threads: usize,
}

/// The kernels of a tier. An array is indexed by [`storage::Format`].
struct Kernels {
    /// Lanes of a register; a panel of columns is two registers wide.
    lanes: usize,
    /// Rows of a full tile.
    panel_rows: usize,
    /// Micro-kernels over binary32 panels.
    fused: [TileSet; 3],
    /// Micro-kernels over pairs of bfloat16, where the tier has the instruction.
    paired: Option<[TileSet; 3]>,
    /// A full tile over binary32 panels that leaves bare inner products.
    sums: TileFn,
    /// The same over pairs of bfloat16.
    paired_sums: Option<TileFn>,
    /// What happens between inner products and storage.
    passes: Passes,
    /// Packs columns.
    pack_columns: unsafe fn(&ColumnPack),
    /// Packs rows.
    pack_rows: unsafe fn(&RowPack),
    /// Tokens of a full shrink tile.
    shrink_tokens: usize,
    /// Inner products of tokens and ranks, by the format of the ranks.
    shrink: [unsafe fn(&ShrinkTile); 3],
    /// Widens dense elements.
    widen: [unsafe fn(*const u8, *mut f32, usize); 3],
}

impl Kernels {
    /// The kernels of the best tier that is at most `tier` and that the processor has.
    fn of(tier: Tier) -> &'static Self {
        match tier.min(detected()) {
            #[cfg(target_arch = "x86_64")]
            Tier::Avx512Bf16 => &avx512::KERNELS_BF16,
            #[cfg(target_arch = "x86_64")]
            Tier::Avx512 => &avx512::KERNELS,
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2 => &avx2::KERNELS,
            _ => &portable::KERNELS,
        }
    }
}
