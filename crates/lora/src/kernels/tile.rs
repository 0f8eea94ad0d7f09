//! The micro-kernel: a tile of the target is read, its inner products are added, and it is written, once.

use super::storage::Storage;
use super::vector::{Product, Vector};

/// What a micro-kernel works on: some rows by panels of `2 · LANES` columns, left to right.
#[derive(Clone, Copy)]
pub(crate) struct Tile {
    /// How many panels there are; [`TileSet::one_wide`] counts [`ONE_PANELS`] of them as one.
    pub(crate) panels: usize,
    /// Packed columns: panel after panel, for each step `2 · LANES` values.
    pub(crate) columns: *const f32,
    /// Packed rows: for each step, `panel_rows` values, of which the first ones are used.
    pub(crate) rows: *const f32,
    /// Steps of the inner products.
    pub(crate) steps: usize,
    /// The first element that is read.
    pub(crate) source: *const u8,
    /// Bytes from a row of the source to the next.
    pub(crate) source_stride: isize,
    /// The first element that is written.
    pub(crate) target: *mut u8,
    /// Bytes from a row of the target to the next.
    pub(crate) target_stride: isize,
    /// Bytes from a row of a panel to what will be read soon, [`PANELS_AHEAD`] panels to the right.
    pub(crate) ahead: isize,
    /// The same for the last panels, whose successors are below.
    pub(crate) ahead_below: isize,
    /// What inner products are multiplied by.
    pub(crate) scaling: f32,
}

/// Panels from the one at work to the one whose lines are asked for.
pub(crate) const PANELS_AHEAD: usize = 4;

/// A micro-kernel for one tier, product, storage and number of rows.
pub(crate) type TileFn = unsafe fn(&Tile);

/// Micro-kernels for the numbers of rows from which every number is put together.
#[derive(Clone, Copy)]
pub(crate) struct TileSet {
    pub(crate) full: TileFn,
    pub(crate) four: TileFn,
    pub(crate) two: TileFn,
    pub(crate) one: TileFn,
    /// One row of [`ONE_PANELS`] panels side by side: a single panel has too few chains to hide an FMA's latency.
    pub(crate) one_wide: TileFn,
}

/// Panels that [`TileSet::one_wide`] takes.
pub(crate) const ONE_PANELS: usize = 4;

impl TileSet {
    /// The largest kernel for at most `rows` rows, and how many it takes. `rows` is at least one.
    #[inline]
    pub(crate) fn largest(&self, rows: usize, panel_rows: usize) -> (TileFn, usize) {
        match rows {
            rows if rows >= panel_rows => (self.full, panel_rows),
            4.. => (self.four, 4),
            2..4 => (self.two, 2),
            _ => (self.one, 1),
        }
    }
}

/// Adds `scaling · (packed rows × packed columns)` to `COUNT` rows of `PANELS` tiles side by side.
///
/// Each element is one chain: `sum = 0`, then `sum = fma(row, column, sum)` step by step, then
/// `fma(scaling, sum, element)`, rounded to storage. What is not a number becomes the canonical NaN.
///
/// # Safety
///
/// The processor has the tier of `V`; `ROW_STRIDE` is that of the packed rows and at least `COUNT`; the
/// pointers of the tile cover what its fields say.
#[inline(always)]
pub(crate) unsafe fn run<
    V: Vector,
    P: Product<V>,
    S: Storage,
    const ROW_STRIDE: usize,
    const COUNT: usize,
    const PANELS: usize,
>(
    tile: &Tile,
) {
    // SAFETY: the caller vouches for the tier and the pointers; offsets stay inside what the fields describe, and
    // the address that is prefetched is never read.
    unsafe {
        let (mut source, mut target, mut panel) = (tile.source, tile.target, tile.columns);
        let (panel_numbers, panel_bytes) = (tile.steps * 2 * V::LANES, 2 * V::LANES * S::SIZE);
        let scaling = V::splat(tile.scaling);
        for index in 0..tile.panels {
            let is_last = (index + 1) * PANELS + PANELS_AHEAD > tile.panels * PANELS;
            let ahead = if is_last { tile.ahead_below } else { tile.ahead };
            for row in 0..COUNT as isize {
                V::prefetch(source.wrapping_offset(row * tile.source_stride + ahead));
            }
            let mut sums = [[[V::splat(0.0); 2]; PANELS]; COUNT];
            let (mut columns, mut rows) = (panel, tile.rows);
            for _ in 0..tile.steps {
                for side in 0..PANELS {
                    let column = columns.add(side * panel_numbers);
                    let pair = [V::load(column), V::load(column.add(V::LANES))];
                    for (row, sums) in sums.iter_mut().enumerate() {
                        let factor = V::splat(*rows.add(row));
                        let sums = &mut sums[side];
                        sums[0] = P::accumulate(factor, pair[0], sums[0]);
                        sums[1] = P::accumulate(factor, pair[1], sums[1]);
                    }
                }
                columns = columns.add(2 * V::LANES);
                rows = rows.add(ROW_STRIDE);
            }
            // All is read before anything is written: rows that lie pages apart look like one address to a
            // processor that compares the lower bits first, and a load would wait for the store before it.
            for (row, sums) in sums.iter_mut().enumerate() {
                let source = source.wrapping_offset(row as isize * tile.source_stride);
                for (side, sums) in sums.iter_mut().enumerate() {
                    let values = S::load::<V>(source.add(side * panel_bytes));
                    *sums = [scaling.mul_add(sums[0], values[0]), scaling.mul_add(sums[1], values[1])];
                }
            }
            if V::any_nan(sums.as_flattened()) {
                for values in sums.as_flattened_mut().as_flattened_mut() {
                    *values = values.canonical();
                }
            }
            for (row, sums) in sums.iter().enumerate() {
                let target = target.offset(row as isize * tile.target_stride);
                for (side, sums) in sums.iter().enumerate() {
                    S::store::<V>(*sums, target.add(side * panel_bytes));
                }
            }
            source = source.wrapping_add(PANELS * panel_bytes);
            target = target.wrapping_add(PANELS * panel_bytes);
            panel = panel.wrapping_add(PANELS * panel_numbers);
        }
    }
}
