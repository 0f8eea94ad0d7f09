//! An adapter's two matrices as the grouped kernels read them.

use super::super::matrix::Matrix;
use super::super::storage::Format;
use super::lines::Lines;
use super::{LINE_BYTES, PANEL};
use infer_accel_tensor::TensorRef;

/// Outputs are filled up to whole pairs of panels, which the widest tile takes at once.
const OUTPUT_STEP: usize = 2 * PANEL;

/// `lora_a` and `lora_b` of one layer, packed.
///
/// `lora_a` lies in pairs of ranks: sixteen features of one, sixteen of the other, run after run. `lora_b` lies in
/// panels of sixteen outputs: sixteen numbers of a rank, rank after rank. What is left over is filled with zeros.
pub(crate) struct PackedPair {
    lines: Lines,
    rank: usize,
    in_features: usize,
    out_features: usize,
    a_format: Format,
    b_format: Format,
}

/// What a pair of matrices measures.
#[derive(Clone, Copy)]
pub(crate) struct PairShape {
    pub(crate) rank: usize,
    pub(crate) in_features: usize,
    pub(crate) out_features: usize,
    pub(crate) a_format: Format,
    pub(crate) b_format: Format,
}

impl PairShape {
    /// Bytes of the packed `lora_a` and of both matrices; `None` where an address could not name them.
    fn byte_lens(&self) -> Option<(usize, usize)> {
        let runs = self.in_features.div_ceil(PANEL);
        let a = self.rank.div_ceil(2).checked_mul(2 * PANEL)?.checked_mul(runs)?;
        let a = a.checked_mul(self.a_format.size())?.checked_next_multiple_of(LINE_BYTES)?;
        let outputs = self.out_features.checked_next_multiple_of(OUTPUT_STEP)?;
        let b = outputs.checked_mul(self.rank)?.checked_mul(self.b_format.size())?;
        let whole = a.checked_add(b.checked_next_multiple_of(LINE_BYTES)?)?;
        isize::try_from(whole).is_ok().then_some((a, whole))
    }
}

impl PackedPair {
    /// Bytes that a packed pair of this shape takes, if an address can name them.
    pub(crate) fn byte_len_of(lora_a: &TensorRef<'_>, lora_b: &TensorRef<'_>) -> Option<usize> {
        let (a, b) = (Matrix::of(lora_a)?, Matrix::of(lora_b)?);
        shape_of(&a, &b).byte_lens().map(|(_, whole)| whole)
    }

    /// Packs the matrices `[rank, in_features]` and `[out_features, rank]`; `None` where they are no such matrices, or
    /// too large.
    pub(crate) fn pack(lora_a: &TensorRef<'_>, lora_b: &TensorRef<'_>) -> Option<Self> {
        let (a, b) = (Matrix::of(lora_a)?, Matrix::of(lora_b)?);
        if a.rows != b.columns {
            return None;
        }
        let shape = shape_of(&a, &b);
        let (_, whole) = shape.byte_lens()?;
        let mut packed = Self {
            lines: Lines::zeroed(whole)?,
            rank: shape.rank,
            in_features: shape.in_features,
            out_features: shape.out_features,
            a_format: shape.a_format,
            b_format: shape.b_format,
        };
        let (a_target, b_target) = (packed.lines.as_mut_ptr(), packed.panels().cast_mut());
        // SAFETY: the tensors are borrowed, so that their elements are readable; the memory is as long as the shape
        // says, and was borrowed mutably for both addresses.
        unsafe {
            pack_pairs(&a, a_target);
            pack_panels(&b, b_target);
        }
        Some(packed)
    }

    /// Ranks.
    pub(crate) fn rank(&self) -> usize {
        self.rank
    }

    /// Features of a token.
    pub(crate) fn in_features(&self) -> usize {
        self.in_features
    }

    /// Outputs of a token.
    pub(crate) fn out_features(&self) -> usize {
        self.out_features
    }

    /// Bytes of memory.
    pub(crate) fn byte_len(&self) -> usize {
        self.lines.len()
    }

    /// Whether there is nothing to add.
    pub(super) fn is_empty(&self) -> bool {
        self.rank == 0 || self.in_features == 0 || self.out_features == 0
    }

    /// The format of `lora_a`.
    pub(super) fn a_format(&self) -> Format {
        self.a_format
    }

    /// The format of `lora_b`.
    pub(super) fn b_format(&self) -> Format {
        self.b_format
    }

    /// Pairs of ranks.
    pub(super) fn pair_count(&self) -> usize {
        self.rank.div_ceil(2)
    }

    /// The first pair.
    pub(super) fn pairs(&self) -> *const u8 {
        self.lines.as_ptr()
    }

    /// Bytes of two ranks over [`PANEL`] features.
    pub(super) fn run_bytes(&self) -> usize {
        2 * PANEL * self.a_format.size()
    }

    /// Bytes from a pair to the next.
    pub(super) fn pair_stride(&self) -> usize {
        self.in_features.div_ceil(PANEL) * self.run_bytes()
    }

    /// The first panel.
    pub(super) fn panels(&self) -> *const u8 {
        let a = (self.pair_count() * self.pair_stride()).next_multiple_of(LINE_BYTES);
        self.pairs().wrapping_add(a)
    }

    /// Bytes of a panel.
    pub(super) fn panel_bytes(&self) -> usize {
        PANEL * self.rank * self.b_format.size()
    }
}

fn shape_of(a: &Matrix, b: &Matrix) -> PairShape {
    PairShape {
        rank: a.rows,
        in_features: a.columns,
        out_features: b.rows,
        a_format: a.format,
        b_format: b.format,
    }
}

/// Moves `count` adjacent elements of a row.
///
/// # Safety
///
/// The elements are readable, `target` is writable for them, and they lie apart.
#[inline(always)]
unsafe fn move_row(matrix: &Matrix, row: usize, first: usize, count: usize, target: *mut u8) {
    let size = matrix.format.size();
    // SAFETY: the caller vouches for the elements and the target.
    unsafe {
        if matrix.has_dense_rows() {
            target.copy_from_nonoverlapping(matrix.at(row, first), count * size);
        } else {
            for index in 0..count {
                target.add(index * size).copy_from_nonoverlapping(matrix.at(row, first + index), size);
            }
        }
    }
}

/// Packs `[rank, in_features]` into pairs.
///
/// # Safety
///
/// The elements are readable; `target` is writable for all pairs, holds zeros and lies apart.
unsafe fn pack_pairs(a: &Matrix, target: *mut u8) {
    let run_bytes = PANEL * a.format.size();
    let runs = a.columns.div_ceil(PANEL);
    for rank in 0..a.rows {
        let first = target.wrapping_add((rank / 2 * runs * 2 + rank % 2) * run_bytes);
        for run in 0..runs {
            let count = PANEL.min(a.columns - run * PANEL);
            // SAFETY: the caller vouches for the elements and the pairs.
            unsafe { move_row(a, rank, run * PANEL, count, first.add(2 * run * run_bytes)) };
        }
    }
}

/// Packs `[out_features, rank]` into panels.
///
/// # Safety
///
/// The elements are readable; `target` is writable for all panels, holds zeros and lies apart.
unsafe fn pack_panels(b: &Matrix, target: *mut u8) {
    let outputs = b.transposed();
    let size = b.format.size();
    let panel_bytes = PANEL * b.columns * size;
    for panel in 0..b.rows.div_ceil(PANEL) {
        let count = PANEL.min(b.rows - panel * PANEL);
        let first = target.wrapping_add(panel * panel_bytes);
        // SAFETY: the caller vouches for the elements and the panels; two bytes or four are moved, at any alignment.
        unsafe {
            if outputs.has_dense_rows() {
                for rank in 0..b.columns {
                    move_row(&outputs, rank, panel * PANEL, count, first.add(rank * PANEL * size));
                }
            } else if size == size_of::<u16>() {
                transpose::<u16>(b, panel * PANEL, count, first);
            } else {
                transpose::<u32>(b, panel * PANEL, count, first);
            }
        }
    }
}

/// Moves the elements of `count` rows into one panel.
///
/// # Safety
///
/// As [`pack_panels`], for elements of the size of `T`.
#[inline(always)]
unsafe fn transpose<T: Copy>(b: &Matrix, first: usize, count: usize, panel: *mut u8) {
    for index in 0..count {
        let (row, target) = (b.at(first + index, 0), panel.wrapping_add(index * size_of::<T>()));
        for rank in 0..b.columns {
            // SAFETY: the caller vouches for the elements and the panel.
            unsafe {
                let value = row.wrapping_offset(rank as isize * b.column_stride).cast::<T>().read_unaligned();
                target.add(rank * PANEL * size_of::<T>()).cast::<T>().write_unaligned(value);
            }
        }
    }
}

/// Whether all numbers of a matrix are finite.
pub(crate) fn is_finite(tensor: &TensorRef<'_>) -> bool {
    let Some(matrix) = Matrix::of(tensor) else { return false };
    (0..matrix.rows).all(|row| {
        // SAFETY: the tensor is borrowed, so that its elements are readable.
        let bits = |column: usize| unsafe { matrix.format.read(matrix.at(row, column)) };
        // No early end within a row: so the compiler makes vectors of it.
        (0..matrix.columns).fold(true, |all, column| all & bits(column).is_finite())
    })
}
