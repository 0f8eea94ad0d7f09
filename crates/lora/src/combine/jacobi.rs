//! The singular value decomposition of a small matrix, by rotations of its columns (Hestenes, 1958).

use super::householder::{Columns, dot};

/// Sweeps after which rotating ends whatever is left; six to ten are usual.
const MOST_SWEEPS: usize = 60;

/// Columns whose cosine is below this are orthogonal: a few units of binary64's precision, for rounding alone makes
/// cosines of that size.
const ORTHOGONAL: f64 = 1e-15;

/// `matrix = scaled_left · rightᵀ`: `right` is orthogonal, the columns of `scaled_left` are orthogonal to each other, and
/// their norms are the singular values, the largest first.
pub(super) struct Decomposition {
    /// `U · S`.
    pub(super) scaled_left: Columns,
    /// `V`.
    pub(super) right: Columns,
}

impl Decomposition {
    /// Decomposes a matrix; about `60 · rows · columns²` operations.
    pub(super) fn of(mut matrix: Columns) -> Self {
        let count = matrix.count;
        let mut right = Columns::zeros(count, count);
        for index in 0..count {
            right.column_mut(index)[index] = 1.0;
        }
        for _ in 0..MOST_SWEEPS {
            let mut is_done = true;
            for first in 0..count {
                for second in first + 1..count {
                    if let Some(rotation) = Rotation::between(&matrix, first, second) {
                        rotation.turn(&mut matrix, first, second);
                        rotation.turn(&mut right, first, second);
                        is_done = false;
                    }
                }
            }
            if is_done {
                break;
            }
        }
        Self::sorted(&matrix, &right)
    }

    fn sorted(matrix: &Columns, right: &Columns) -> Self {
        let norms: Vec<f64> =
            (0..matrix.count).map(|index| dot(matrix.column(index), matrix.column(index))).collect();
        let mut order: Vec<usize> = (0..matrix.count).collect();
        order.sort_by(|&left, &right| norms[right].total_cmp(&norms[left]));
        let pick = |source: &Columns| Columns {
            rows: source.rows,
            count: source.count,
            values: order.iter().flat_map(|&index| source.column(index)).copied().collect(),
        };
        Self { scaled_left: pick(matrix), right: pick(right) }
    }
}

/// A rotation of two columns that makes them orthogonal.
#[derive(Clone, Copy)]
struct Rotation {
    cosine: f64,
    sine: f64,
}

impl Rotation {
    /// The rotation that two columns need, if they need one.
    fn between(matrix: &Columns, first: usize, second: usize) -> Option<Self> {
        let (left, right) = (matrix.column(first), matrix.column(second));
        let (left_square, right_square, product) = (dot(left, left), dot(right, right), dot(left, right));
        if product.abs() <= ORTHOGONAL * (left_square * right_square).sqrt() {
            return None;
        }
        let zeta = (right_square - left_square) / (2.0 * product);
        // The smaller of the two angles. An infinite zeta gives a tangent of zero: nothing to turn.
        let tangent = zeta.signum() / (zeta.abs() + zeta.hypot(1.0));
        let cosine = 1.0 / tangent.hypot(1.0);
        let sine = cosine * tangent;
        (sine != 0.0).then_some(Self { cosine, sine })
    }

    fn turn(self, matrix: &mut Columns, first: usize, second: usize) {
        let rows = matrix.rows;
        let (before, after) = matrix.values.split_at_mut(second * rows);
        let (left, right) = (&mut before[first * rows..][..rows], &mut after[..rows]);
        for (x, y) in left.iter_mut().zip(right) {
            (*x, *y) = (self.cosine * *x - self.sine * *y, self.sine * *x + self.cosine * *y);
        }
    }
}
