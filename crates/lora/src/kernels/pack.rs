//! Packing: an adapter's matrices are widened, put into the order of accumulation and laid side by side, so that
//! the micro-kernels read one stream.

use super::matrix::Matrix;
use super::storage::{Bf16, F16, F32, Format, Storage};
use super::vector::Vector;

/// The order in which ranks are accumulated, and what a packed value holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Rank by rank.
    Ascending,
    /// Of each pair of ranks the odd one first, as `vdpbf16ps` does; a last rank without partner comes alone.
    OddFirst,
    /// The same order, two bfloat16 ranks to a value, for `vdpbf16ps` itself.
    Pairs,
}

impl Order {
    /// Steps that `rank` ranks take.
    #[inline(always)]
    pub(crate) fn steps(self, rank: usize) -> usize {
        if self == Self::Pairs { rank.div_ceil(2) } else { rank }
    }

    /// The rank of a step where a step takes one rank. Also the step of a rank: the order is its own inverse.
    #[inline(always)]
    pub(crate) fn rank_of(self, step: usize, rank: usize) -> usize {
        if self == Self::OddFirst && step ^ 1 < rank { step ^ 1 } else { step }
    }
}

/// Some columns of a matrix `[rank, columns]`, to be packed into panels of `2 · LANES` columns.
#[derive(Clone, Copy)]
pub(crate) struct ColumnPack {
    /// The matrix; its rows are the ranks.
    pub(crate) matrix: Matrix,
    /// The order of the ranks.
    pub(crate) order: Order,
    /// Whether a panel holds its even columns first.
    pub(crate) is_split: bool,
    /// The first column.
    pub(crate) first: usize,
    /// Columns; the last panel is filled with zeros.
    pub(crate) count: usize,
    /// Where the panels go.
    pub(crate) panels: *mut f32,
}

/// Some rows of a matrix `[rows, rank]`, to be packed into panels of a tile's rows.
#[derive(Clone, Copy)]
pub(crate) struct RowPack {
    /// The matrix; its columns are the ranks.
    pub(crate) matrix: Matrix,
    /// The order of the ranks.
    pub(crate) order: Order,
    /// The first row.
    pub(crate) first: usize,
    /// Rows; the last panel is filled with zeros.
    pub(crate) count: usize,
    /// Where the panels go.
    pub(crate) panels: *mut f32,
}

/// The packed value of a step: an element, or two of them.
///
/// # Safety
///
/// `at(k)` is readable for every rank `k` below `rank`.
#[inline(always)]
pub(super) unsafe fn value(
    format: Format,
    order: Order,
    rank: usize,
    step: usize,
    at: impl Fn(usize) -> *const u8,
) -> f32 {
    // SAFETY: the caller vouches for every rank; steps name ranks below `rank` only.
    unsafe {
        if order != Order::Pairs {
            return format.read(at(order.rank_of(step, rank)));
        }
        let half = |k: usize| if k < rank { u32::from(at(k).cast::<u16>().read_unaligned()) } else { 0 };
        f32::from_bits(half(2 * step) | half(2 * step + 1) << 16)
    }
}

/// Packs columns.
///
/// # Safety
///
/// The processor has the tier of `V`; every element of the matrix is readable; `panels` is writable for
/// `2 · LANES · steps` numbers for each panel; a matrix packed in pairs is of bfloat16.
#[inline(always)]
pub(crate) unsafe fn columns<V: Vector>(job: &ColumnPack) {
    let width = 2 * V::LANES;
    let stride = width * job.order.steps(job.matrix.rows);
    let mut done = 0;
    while done < job.count {
        let columns = width.min(job.count - done);
        let matrix = Matrix { base: job.matrix.at(0, job.first + done), columns, ..job.matrix };
        // SAFETY: the caller vouches for the tier, the elements and as many panels as the columns fill.
        unsafe {
            let panel = job.panels.add(done / width * stride);
            match matrix.format {
                _ if columns < width => scalar::<V>(&matrix, job, panel),
                Format::Bf16 if job.order == Order::Pairs && matrix.has_dense_rows() => {
                    pairs::<V>(&matrix, job, panel);
                }
                Format::F32 if matrix.has_dense_rows() => dense_rows::<V, F32>(&matrix, job, panel),
                Format::F16 if matrix.has_dense_rows() => dense_rows::<V, F16>(&matrix, job, panel),
                Format::Bf16 if matrix.has_dense_rows() => dense_rows::<V, Bf16>(&matrix, job, panel),
                _ if matrix.has_dense_columns() => dense_columns::<V>(&matrix, job, panel),
                _ => scalar::<V>(&matrix, job, panel),
            }
        }
        done += columns;
    }
}

/// The column of a panel that a place holds.
#[inline(always)]
fn column_of(place: usize, lanes: usize, is_split: bool) -> usize {
    if is_split { place % lanes * 2 + place / lanes } else { place }
}

/// Packs one panel element by element; places without a column get zeros.
///
/// # Safety
///
/// As [`columns`], for one panel.
#[inline(always)]
unsafe fn scalar<V: Vector>(matrix: &Matrix, job: &ColumnPack, panel: *mut f32) {
    let width = 2 * V::LANES;
    for step in 0..job.order.steps(matrix.rows) {
        for place in 0..width {
            let column = column_of(place, V::LANES, job.is_split);
            // SAFETY: the caller vouches for the elements of existing columns, and for the panel.
            unsafe {
                let packed = if column < matrix.columns {
                    value(matrix.format, job.order, matrix.rows, step, |k| matrix.at(k, column))
                } else {
                    0.0
                };
                panel.add(step * width + place).write(packed);
            }
        }
    }
}

/// Packs one whole panel whose rows are dense: a row's elements are widened register by register.
///
/// # Safety
///
/// As [`columns`], for one panel of elements of `S`, one rank a step.
#[inline(always)]
unsafe fn dense_rows<V: Vector, S: Storage>(matrix: &Matrix, job: &ColumnPack, panel: *mut f32) {
    for step in 0..matrix.rows {
        let row = matrix.at(job.order.rank_of(step, matrix.rows), 0);
        // SAFETY: the caller vouches for a whole panel of columns in each row, and for the panel.
        unsafe {
            let pair = if job.is_split {
                S::load_split::<V>(row)
            } else {
                [S::widen::<V>(row), S::widen::<V>(row.add(V::LANES * S::SIZE))]
            };
            let target = panel.add(step * 2 * V::LANES);
            pair[0].store(target);
            pair[1].store(target.add(V::LANES));
        }
    }
}

/// Packs one whole panel of bfloat16 pairs whose rows are dense.
///
/// # Safety
///
/// As [`columns`], for one panel packed in pairs.
#[inline(always)]
unsafe fn pairs<V: Vector>(matrix: &Matrix, job: &ColumnPack, panel: *mut f32) {
    let zeros = [0_u16; 128];
    for step in 0..matrix.rows.div_ceil(2) {
        let even = matrix.at(2 * step, 0);
        let odd = if 2 * step + 1 < matrix.rows { matrix.at(2 * step + 1, 0) } else { zeros.as_ptr().cast() };
        let target = panel.wrapping_add(step * 2 * V::LANES).cast::<u32>();
        for lane in 0..V::LANES {
            // SAFETY: the caller vouches for a whole panel of columns in each row, and for the panel; the zeros are
            // as long as the widest panel.
            unsafe {
                let [first, second] = if job.is_split {
                    let word = |row: *const u8| row.cast::<u32>().add(lane).read_unaligned();
                    let (low, high) = (word(even), word(odd));
                    [low & 0xffff | high << 16, low >> 16 | high & 0xffff_0000]
                } else {
                    let half =
                        |row: *const u8, at: usize| u32::from(row.cast::<u16>().add(at).read_unaligned());
                    [0, V::LANES].map(|at| half(even, at + lane) | half(odd, at + lane) << 16)
                };
                target.add(lane).write(first);
                target.add(V::LANES + lane).write(second);
            }
        }
    }
}

/// Packs one whole panel whose columns are dense, as those of a transposed view are: blocks of words are
/// transposed in registers, then widened.
///
/// # Safety
///
/// As [`columns`], for one panel.
#[inline(always)]
unsafe fn dense_columns<V: Vector>(matrix: &Matrix, job: &ColumnPack, panel: *mut f32) {
    let width = 2 * V::LANES;
    let in_word = 4 / matrix.format.size();
    let whole = matrix.rows / (8 * in_word) * (8 * in_word);
    let mut words = [[0_u32; 32]; 8];
    for first in (0..whole).step_by(8 * in_word) {
        for group in 0..width / 8 {
            let rows: [*const u8; 8] = std::array::from_fn(|index| {
                matrix.at(first, column_of(8 * group + index, V::LANES, job.is_split))
            });
            // SAFETY: 32 bytes of a dense column are eight words, all within `whole`; `words` is as wide as the
            // widest panel.
            unsafe { V::transpose_words(&rows, words.as_mut_ptr().cast::<u32>().add(8 * group), 32) };
        }
        for (index, words) in words.iter().enumerate() {
            for side in [0, V::LANES] {
                let source = words.as_ptr().wrapping_add(side);
                let target = |part: usize| {
                    let step = job.order.rank_of(first + index * in_word + part, matrix.rows);
                    panel.wrapping_add(step * width + side)
                };
                // SAFETY: `words` holds `LANES` words from `source`; the caller vouches for the panel.
                unsafe {
                    match matrix.format {
                        Format::F32 => V::load(source.cast()).store(target(0)),
                        Format::Bf16 if job.order == Order::Pairs => {
                            V::load(source.cast()).store(panel.add((first / 2 + index) * width + side));
                        }
                        Format::Bf16 => {
                            let [even, odd] = V::load_bf16_split(source.cast());
                            even.store(target(0));
                            odd.store(target(1));
                        }
                        Format::F16 => {
                            let halves = |shift: u32| -> [u16; 16] {
                                std::array::from_fn(|lane| (words[(side + lane) % 32] >> shift) as u16)
                            };
                            V::load_f16(halves(0).as_ptr()).store(target(0));
                            V::load_f16(halves(16).as_ptr()).store(target(1));
                        }
                    }
                }
            }
        }
    }
    // SAFETY: as this function; only the steps of the ranks that are left over are written.
    unsafe { rest::<V>(matrix, job, panel, whole) }
}

/// Packs the ranks from `first` on, element by element.
///
/// # Safety
///
/// As [`columns`], for one whole panel; `first` is even.
#[inline(always)]
unsafe fn rest<V: Vector>(matrix: &Matrix, job: &ColumnPack, panel: *mut f32, first: usize) {
    let width = 2 * V::LANES;
    for step in job.order.steps(first)..job.order.steps(matrix.rows) {
        for place in 0..width {
            let column = column_of(place, V::LANES, job.is_split);
            // SAFETY: the caller vouches for the elements and the panel.
            unsafe {
                let packed = value(matrix.format, job.order, matrix.rows, step, |k| matrix.at(k, column));
                panel.add(step * width + place).write(packed);
            }
        }
    }
}

/// Widens `count` dense elements.
///
/// # Safety
///
/// The processor has the tier of `V`; `source` is readable and `target` writable for `count` elements.
#[inline(always)]
pub(crate) unsafe fn widen<V: Vector, S: Storage>(source: *const u8, target: *mut f32, count: usize) {
    let whole = count / V::LANES * V::LANES;
    // SAFETY: the caller vouches for tier and memory; offsets stay below `count`.
    unsafe {
        for at in (0..whole).step_by(V::LANES) {
            S::widen::<V>(source.add(at * S::SIZE)).store(target.add(at));
        }
        for at in whole..count {
            target.add(at).write(S::FORMAT.read(source.add(at * S::SIZE)));
        }
    }
}
