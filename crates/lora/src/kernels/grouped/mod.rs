//! Many adapters for one batch: matrices that were packed once, tokens grouped by adapter, two micro-kernels.
//!
//! A tile is up to [`ROWS`] tokens of one adapter. Their features are widened block by block and *shrunk*: inner
//! products with pairs of ranks, in sixteen partial sums each, as [`super::shrink`] defines. What comes out, `rank`
//! numbers a token, is *expanded*: panels of sixteen outputs are multiplied and added to the target, rounded once.
//!
//! The packed layout is the same for all tiers: bits of the adapter's own format, moved, never converted.

mod expand;
mod lines;
mod pack;
pub(super) mod run;
mod shrink;
pub(super) mod tiers;

use expand::ExpandJob;
use infer_accel_tensor::simd::{Tier, detected};
use shrink::ShrinkJob;

pub(crate) use pack::{PackedPair, is_finite};
pub(crate) use run::{Part, Segment, apply_segments};

/// Tokens of a full tile: 6 × 2 sums leave room for a panel and a factor among sixteen registers.
pub(crate) const ROWS: usize = 6;

/// Outputs of a packed panel, and features of a run: as many as an inner product has partial sums.
pub(crate) const PANEL: usize = super::shrink::PARTS;

/// Bytes of a cache line.
const LINE_BYTES: usize = 64;

/// Widens whole runs: from, to, how many.
type WidenFn = unsafe fn(*const u8, *mut f32, usize);

/// The kernels of a tier. Arrays of three are indexed by [`super::storage::Format`].
pub(super) struct GroupedKernels {
    /// Lanes of a register.
    lanes: usize,
    /// Inner products of tokens and pairs of ranks, by the format of the ranks.
    shrink: [unsafe fn(&ShrinkJob); 3],
    /// Expansion, by the format of the panels, then by that of the target.
    expand: [[unsafe fn(&ExpandJob); 3]; 3],
    /// Widening of whole runs by the format of the tokens: in order, and even features before odd ones.
    widen: [[WidenFn; 3]; 2],
}

impl GroupedKernels {
    /// The kernels of the best tier that is at most `tier` and that the processor has.
    pub(super) fn of(tier: Tier) -> &'static Self {
        match tier.min(detected()) {
            #[cfg(target_arch = "x86_64")]
            Tier::Avx512 | Tier::Avx512Bf16 => &tiers::AVX512,
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2 => &tiers::AVX2,
            _ => &tiers::PORTABLE,
        }
    }

    /// Whether runs of bfloat16 pass through the registers of this tier with even places apart from odd ones, which
    /// costs one shift and one mask a run.
    fn splits(&self) -> bool {
        2 * self.lanes == PANEL
    }
}
