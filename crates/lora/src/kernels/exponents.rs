//! When an instruction that flushes subnormal numbers gives the bits of one that does not.

use super::matrix::Matrix;

/// Whether `vdpbf16ps`, which takes subnormal numbers for zero, gives the bits that FMA gives.
///
/// It does if no subnormal number can come up. Let `a` and `b` be the smallest exponents of nonzero elements of
/// the two matrices, none of them subnormal. A bfloat16 number has eight bits, so elements are multiples of
/// `2^(a-7)` and `2^(b-7)`, products are multiples of `q = 2^(a+b-14)`, and so are their sums, before rounding and
/// after: rounding to binary32 goes to a multiple of a larger power of two, or changes nothing. A nonzero sum is at
/// least `q`, which is a normal number if `a + b - 14 >= -126`.
///
/// # Safety
///
/// Every element of both matrices is readable and a bfloat16 number.
pub(super) unsafe fn pairs_are_exact(rows: &Matrix, columns: &Matrix) -> bool {
    const BIAS: u32 = 127;
    // SAFETY: the caller vouches for the elements.
    let [a, b] = [rows, columns].map(|matrix| unsafe { smallest_exponent(matrix) });
    a > 0 && b > 0 && a + b + 126 >= 2 * BIAS + 14
}

/// The smallest biased exponent of a nonzero element: 0 if one is subnormal, 255 if there is none.
///
/// # Safety
///
/// Every element of the matrix is readable and a bfloat16 number.
unsafe fn smallest_exponent(matrix: &Matrix) -> u32 {
    let matrix = if matrix.has_dense_rows() { *matrix } else { matrix.transposed() };
    let mut smallest = u16::MAX;
    for row in 0..matrix.rows {
        for column in 0..matrix.columns {
            // SAFETY: the caller vouches for every element.
            let bits = unsafe { matrix.at(row, column).cast::<u16>().read_unaligned() };
            // Zero, whatever its sign, wraps around to the largest number.
            smallest = smallest.min((bits << 1).wrapping_sub(1));
        }
    }
    u32::from(smallest.saturating_add(1) >> 8)
}
