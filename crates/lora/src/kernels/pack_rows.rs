//! Packing rows: those of `lora_b`, whose ranks usually lie side by side, become columns of short panels.

use super::matrix::Matrix;
use super::pack::{Order, RowPack, value};
use super::storage::Format;
use super::vector::Vector;

/// Packs rows into panels of `PANEL` rows.
///
/// # Safety
///
/// The processor has the tier of `V`; every element of the matrix is readable; `panels` is writable for
/// `PANEL · steps` numbers for each panel; a matrix packed in pairs is of bfloat16.
#[inline(always)]
pub(crate) unsafe fn rows<V: Vector, const PANEL: usize>(job: &RowPack) {
    let stride = PANEL * job.order.steps(job.matrix.columns);
    for first in (0..job.count).step_by(PANEL) {
        let panel = job.panels.wrapping_add(first / PANEL * stride);
        // SAFETY: the caller vouches for the tier, the elements and the panels.
        unsafe {
            if first + PANEL <= job.count && job.matrix.has_dense_rows() {
                whole_rows::<V, PANEL>(job, first, panel);
            } else {
                some_rows::<PANEL>(job, first, panel);
            }
        }
    }
}

/// Packs one panel of rows element by element; places without a row get zeros.
///
/// # Safety
///
/// As [`rows`], for the panel that begins with the job's row `first`.
#[inline(always)]
unsafe fn some_rows<const PANEL: usize>(job: &RowPack, first: usize, panel: *mut f32) {
    let rank = job.matrix.columns;
    for place in 0..PANEL {
        let row = first + place;
        for step in 0..job.order.steps(rank) {
            // SAFETY: the caller vouches for the elements of the rows, and for the panel.
            unsafe {
                let packed = if row < job.count {
                    value(job.matrix.format, job.order, rank, step, |k| job.matrix.at(job.first + row, k))
                } else {
                    0.0
                };
                panel.add(step * PANEL + place).write(packed);
            }
        }
    }
}

/// Packs one whole panel of rows whose ranks lie side by side: blocks of words are transposed in registers.
///
/// # Safety
///
/// As [`some_rows`]; the panel has all its rows.
#[inline(always)]
unsafe fn whole_rows<V: Vector, const PANEL: usize>(job: &RowPack, first: usize, panel: *mut f32) {
    /// Bytes of a row that are transposed at once.
    const BYTES: usize = 32;
    /// Rows of the highest panel, filled up to whole blocks.
    const ROWS: usize = 16;
    let Matrix { format, columns: rank, .. } = job.matrix;
    let in_block = BYTES / format.size();
    for block in (0..rank).step_by(in_block) {
        let count = in_block.min(rank - block);
        let mut staged = [[0_u8; BYTES]; ROWS];
        let mut words = [[0_u32; ROWS]; 8];
        // SAFETY: the rows exist and their ranks are dense; what is left over of a row is staged together with
        // zeros; a block of words is eight by eight, and there is room for two of them side by side.
        unsafe {
            for group in (0..PANEL).step_by(8) {
                let mut sources = [staged[0].as_ptr(); 8];
                for (index, source) in sources.iter_mut().enumerate() {
                    let place = (group + index).min(PANEL - 1);
                    *source = job.matrix.at(job.first + first + place, block);
                    if count < in_block {
                        let target = staged[place].as_mut_ptr();
                        target.copy_from_nonoverlapping(*source, count * format.size());
                        *source = target;
                    }
                }
                V::transpose_words(&sources, words.as_mut_ptr().cast::<u32>().add(group), ROWS);
            }
            for (word, words) in words.iter().enumerate() {
                emit::<V, PANEL>(job, block + word * in_block / 8, words, panel);
            }
        }
    }
}

/// Widens the words of a panel's rows, each with one rank of them or two, and puts them where they belong.
///
/// # Safety
///
/// As [`some_rows`]; ranks from `rank` on that do not exist are skipped.
#[inline(always)]
unsafe fn emit<V: Vector, const PANEL: usize>(
    job: &RowPack,
    first_rank: usize,
    words: &[u32; 16],
    panel: *mut f32,
) {
    let rank = job.matrix.columns;
    let put = |step: usize, numbers: &[u32; 16]| {
        // SAFETY: the caller vouches for the panel, which has a place for each step.
        unsafe { panel.add(step * PANEL).cast::<u32>().copy_from_nonoverlapping(numbers.as_ptr(), PANEL) };
    };
    if first_rank >= rank {
        return;
    }
    match job.matrix.format {
        Format::F32 => put(first_rank, words),
        Format::Bf16 if job.order == Order::Pairs => put(first_rank / 2, words),
        Format::Bf16 | Format::F16 => {
            let (mut even, mut odd) = ([0_u32; 16], [0_u32; 16]);
            for ((even, odd), word) in even.iter_mut().zip(&mut odd).zip(words) {
                *even = word & 0xffff;
                *odd = word >> 16;
            }
            for (numbers, k) in [(&mut even, first_rank), (&mut odd, first_rank + 1)] {
                if k >= rank {
                    continue;
                }
                if job.matrix.format == Format::Bf16 {
                    for number in numbers.iter_mut() {
                        *number <<= 16;
                    }
                } else {
                    let halves: [u16; 16] = std::array::from_fn(|at| numbers[at] as u16);
                    for at in (0..PANEL).step_by(V::LANES) {
                        // SAFETY: both arrays hold sixteen numbers, a multiple of the lanes.
                        unsafe {
                            V::load_f16(halves.as_ptr().add(at))
                                .store(numbers.as_mut_ptr().cast::<f32>().add(at));
                        }
                    }
                }
                put(job.order.rank_of(k, rank), numbers);
            }
        }
    }
}
