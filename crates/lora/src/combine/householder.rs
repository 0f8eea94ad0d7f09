//! QR by reflections (Householder, 1958), of matrices that have many rows and few columns.

/// A matrix of binary64, column by column.
#[derive(Clone, Debug)]
pub(super) struct Columns {
    /// Rows.
    pub(super) rows: usize,
    /// Columns.
    pub(super) count: usize,
    /// `rows · count` numbers.
    pub(super) values: Vec<f64>,
}

impl Columns {
    pub(super) fn zeros(rows: usize, count: usize) -> Self {
        Self { rows, count, values: vec![0.0; rows * count] }
    }

    pub(super) fn column(&self, index: usize) -> &[f64] {
        &self.values[index * self.rows..][..self.rows]
    }

    pub(super) fn column_mut(&mut self, index: usize) -> &mut [f64] {
        &mut self.values[index * self.rows..][..self.rows]
    }
}

/// `matrix = Q · R`, with `Q` kept as the reflections that make it.
pub(super) struct Reflections {
    /// Below and on the diagonal: the vectors of the reflections. Above it: `R`.
    packed: Columns,
    /// The diagonal of `R`.
    diagonal: Vec<f64>,
    /// `2 / ‖vector‖²` of each reflection; 0 where there is nothing to reflect.
    scales: Vec<f64>,
}

impl Reflections {
    /// Factors a matrix; `4/2 · rows · columns²` operations.
    pub(super) fn of(mut matrix: Columns) -> Self {
        let steps = matrix.rows.min(matrix.count);
        let (mut diagonal, mut scales) = (Vec::with_capacity(steps), Vec::with_capacity(steps));
        for step in 0..steps {
            let (done, rest) = matrix.values.split_at_mut((step + 1) * matrix.rows);
            let vector = &mut done[step * matrix.rows + step..];
            let norm = dot(vector, vector).sqrt();
            // Away from the first element's own sign: nothing cancels.
            let target = if vector[0] > 0.0 { -norm } else { norm };
            vector[0] -= target;
            let squared = dot(vector, vector);
            let scale = if squared > 0.0 { 2.0 / squared } else { 0.0 };
            for column in rest.chunks_exact_mut(matrix.rows) {
                reflect(vector, scale, &mut column[step..]);
            }
            diagonal.push(target);
            scales.push(scale);
        }
        Self { packed: matrix, diagonal, scales }
    }

    /// Columns of the matrix.
    pub(super) fn ranks(&self) -> usize {
        self.packed.count
    }

    /// Rows of `R`.
    pub(super) fn rank(&self) -> usize {
        self.diagonal.len()
    }

    /// An element of `R`.
    pub(super) fn upper(&self, row: usize, column: usize) -> f64 {
        match row.cmp(&column) {
            std::cmp::Ordering::Less => self.packed.column(column)[row],
            std::cmp::Ordering::Equal => self.diagonal[row],
            std::cmp::Ordering::Greater => 0.0,
        }
    }

    /// `Q · small`, where `small` has as many rows as `R`.
    pub(super) fn expand(&self, small: &Columns) -> Columns {
        let mut result = Columns::zeros(self.packed.rows, small.count);
        for index in 0..small.count {
            let column = result.column_mut(index);
            column[..small.rows].copy_from_slice(small.column(index));
            for step in (0..self.rank()).rev() {
                reflect(&self.packed.column(step)[step..], self.scales[step], &mut column[step..]);
            }
        }
        result
    }
}

/// `column −= scale · (vector · column) · vector`
fn reflect(vector: &[f64], scale: f64, column: &mut [f64]) {
    let amount = scale * dot(vector, column);
    for (target, &value) in column.iter_mut().zip(vector) {
        *target -= amount * value;
    }
}

/// The inner product, in eight partial sums that a compiler can keep in registers.
pub(super) fn dot(left: &[f64], right: &[f64]) -> f64 {
    const PARTS: usize = 8;
    let mut parts = [0.0; PARTS];
    let (left_chunks, right_chunks) = (left.chunks_exact(PARTS), right.chunks_exact(PARTS));
    let tail: f64 = left_chunks.remainder().iter().zip(right_chunks.remainder()).map(|(x, y)| x * y).sum();
    for (x, y) in left_chunks.zip(right_chunks) {
        for (part, (x, y)) in parts.iter_mut().zip(x.iter().zip(y)) {
            *part += x * y;
        }
    }
    parts.iter().sum::<f64>() + tail
}
