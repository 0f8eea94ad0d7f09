//! Panels of outputs, multiplied with what tokens were shrunk to and added to the target.

use super::super::storage::{Format, Storage};
use super::super::vector::Vector;
use super::shrink::is_split;
use super::{PANEL, ROWS};

/// Bytes from the panels at work to those that are asked for: what a core takes in during a miss of all caches.
const BYTES_AHEAD: usize = 8 << 10;

/// Some rows of the target by a run of whole tiles of `2 · LANES` outputs.
#[derive(Clone, Copy)]
pub(crate) struct ExpandJob {
    /// The first panel: [`PANEL`] outputs for each rank.
    pub(crate) panels: *const u8,
    /// Bytes of a panel.
    pub(crate) panel_bytes: usize,
    /// Ranks.
    pub(crate) rank: usize,
    /// What the tokens were shrunk to: `[rank][ROWS]`.
    pub(crate) hidden: *const f32,
    /// Rows, at most [`ROWS`].
    pub(crate) rows: usize,
    /// The first output of each row; adjacent ones follow.
    pub(crate) targets: [*mut u8; ROWS],
    /// Tiles.
    pub(crate) tiles: usize,
    /// What inner products are multiplied by.
    pub(crate) scaling: f32,
}

/// Runs a job. A few rows take several tiles at once, to have chains enough to hide the latency of an FMA.
///
/// There is a kernel for `EVERY` number of rows, or only for six and for one.
///
/// # Safety
///
/// The processor has the tier of `V`, and the pointers of the job cover what its fields say.
#[inline(always)]
pub(crate) unsafe fn run<V: Vector, B: Storage, S: Storage, const EVERY: bool>(job: &ExpandJob) {
    // SAFETY: the caller vouches for tier and pointers.
    unsafe {
        match job.rows {
            ROWS => span::<V, B, S, 6, 1>(job, 0),
            5 if EVERY => span::<V, B, S, 5, 1>(job, 0),
            4 if EVERY => span::<V, B, S, 4, 1>(job, 0),
            3 if EVERY => span::<V, B, S, 3, 2>(job, 0),
            2 if EVERY => span::<V, B, S, 2, 2>(job, 0),
            rows => (0..rows).for_each(|row| span::<V, B, S, 1, 4>(job, row)),
        }
    }
}

/// Walks over the tiles of `COUNT` rows from `first` on, `SIDES` at a time.
///
/// # Safety
///
/// As [`run`]; the job has the rows.
#[inline(always)]
unsafe fn span<V: Vector, B: Storage, S: Storage, const COUNT: usize, const SIDES: usize>(
    job: &ExpandJob,
    first: usize,
) {
    let mut tile = 0;
    let step_bytes = SIDES * 2 * V::LANES / PANEL * job.panel_bytes;
    let ahead = BYTES_AHEAD.div_ceil(step_bytes.max(1)) * step_bytes;
    // SAFETY: the caller vouches for tier and pointers; tiles stay below the job's.
    unsafe {
        while job.tiles - tile >= SIDES {
            block::<V, B, S, COUNT, SIDES>(job, first, tile, ahead);
            tile += SIDES;
        }
        while SIDES > 1 && tile < job.tiles {
            block::<V, B, S, COUNT, 1>(job, first, tile, ahead);
            tile += 1;
        }
    }
}

/// One rank's outputs of a tile: a panel of two registers, or two panels of one.
///
/// # Safety
///
/// The processor has the tier of `V`; the panels are readable.
#[inline(always)]
unsafe fn load<V: Vector, B: Storage>(panel: *const u8, panel_bytes: usize) -> [V; 2] {
    // SAFETY: the caller vouches for tier and panels.
    unsafe {
        if is_split::<V, B>() {
            B::load_split(panel)
        } else if V::LANES == PANEL {
            [B::widen(panel), B::widen(panel.add(panel_bytes))]
        } else {
            [B::widen(panel), B::widen(panel.add(V::LANES * B::SIZE))]
        }
    }
}

/// Adds to `COUNT` rows from `first` on of `SIDES` tiles side by side.
///
/// Each element is one chain: `sum = 0`, then `sum = fma(hidden, panel, sum)` rank by rank, then
/// `fma(scaling, sum, element)`, rounded to storage. What is not a number becomes the canonical NaN.
///
/// # Safety
///
/// As [`run`]; the job has the rows and the tiles.
#[inline(always)]
unsafe fn block<V: Vector, B: Storage, S: Storage, const COUNT: usize, const SIDES: usize>(
    job: &ExpandJob,
    first: usize,
    tile: usize,
    ahead: usize,
) {
    let panels_a_tile = 2 * V::LANES / PANEL;
    let tile_bytes = panels_a_tile * job.panel_bytes;
    // SAFETY: the caller vouches for the tier and the pointers; offsets stay inside what the fields describe.
    unsafe {
        let mut sums = [[[V::splat(0.0); 2]; SIDES]; COUNT];
        let mut panels = job.panels.add(tile * tile_bytes);
        let mut hidden = job.hidden.add(first);
        for _ in 0..job.rank {
            for side in 0..SIDES {
                V::prefetch(panels.wrapping_add(side * tile_bytes + ahead));
                let pair = load::<V, B>(panels.add(side * tile_bytes), job.panel_bytes);
                for (row, sums) in sums.iter_mut().enumerate() {
                    let factor = V::splat(*hidden.add(row));
                    let sums = &mut sums[side];
                    sums[0] = factor.mul_add(pair[0], sums[0]);
                    sums[1] = factor.mul_add(pair[1], sums[1]);
                }
            }
            panels = panels.add(PANEL * B::SIZE);
            hidden = hidden.add(ROWS);
        }
        let scaling = V::splat(job.scaling);
        for side in 0..SIDES {
            let offset = (tile + side) * 2 * V::LANES * S::SIZE;
            // A sum of all of them is a number, unless one of them is none or two infinities met.
            let mut witness = [V::splat(0.0); 2];
            for (row, sums) in sums.iter_mut().enumerate() {
                let sums = &mut sums[side];
                *sums = match (is_split::<V, B>(), S::FORMAT.is_split()) {
                    (true, false) => V::join(*sums),
                    (false, true) => V::split(*sums),
                    _ => *sums,
                };
                let before = S::load::<V>(job.targets[first + row].add(offset));
                for half in 0..2 {
                    sums[half] = scaling.mul_add(sums[half], before[half]);
                    witness[half] = witness[half].add(sums[half]);
                }
            }
            let is_number = !V::any_nan(&[witness]);
            for (row, sums) in sums.iter().enumerate() {
                let mut merged = sums[side];
                if !is_number {
                    merged = merged.map(|values| values.canonical());
                }
                S::store::<V>(merged, job.targets[first + row].add(offset));
            }
        }
    }
}

/// The formats that a tile of the target may have are those of the panels.
const _: () = assert!(Format::F32 as usize == 0 && Format::F16 as usize == 1 && Format::Bf16 as usize == 2);
