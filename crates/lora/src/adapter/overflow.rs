//! Deltas that the base's number format cannot hold, found before anything is merged.

use infer_accel_tensor::DType;

use super::ledger::{Ledger, Update};
use super::{Adapter, BaseIndex, Matrix};
use crate::problem::{Problem, ProblemCode};

/// Adds a problem for each update with an element beyond the largest number of its weight's format.
pub(super) fn check(adapter: &Adapter, base: &BaseIndex, ledger: &mut Ledger) {
    let mut found = Vec::new();
    for update in &ledger.updates {
        let dtype = base.get(&update.source).and_then(|tensor| tensor.dtype.dtype());
        let Some((largest, name)) = dtype.and_then(largest_of) else { continue };
        if update.magnitude.is_some() {
            continue; // DoRA gives every row a length of its own
        }
        let delta = if bound(update) <= largest { 0.0 } else { largest_delta(update, largest) };
        if delta > largest {
            let path = adapter.layers().get(update.layer).map_or("", |layer| layer.path.as_str());
            let message = format!("its delta reaches {delta:.4e}, but {name} of the base ends at {largest}");
            found.push(Problem::new(ProblemCode::Overflow, path, message));
        }
    }
    ledger.problems.append(&mut found);
}

fn largest_of(dtype: DType) -> Option<(f64, &'static str)> {
    let largest = match dtype {
        DType::F32 => f64::from(f32::MAX),
        DType::F16 => half::f16::MAX.to_f64(),
        DType::BF16 => half::bf16::MAX.to_f64(),
        _ => return None, // quantized, with scales that follow the weight
    };
    Some((largest, dtype.name()))
}

/// No element of the delta is larger than this. What the loader saw of the matrices is enough for it.
fn bound(update: &Update) -> f64 {
    let of = |matrix: &Matrix| matrix.tensor().seen().bound(matrix.tensor().dtype());
    let rank = update.a.shape()[0] as f64;
    of(&update.a) * of(&update.b) * rank * update.scaling.abs()
}

/// The largest element of the delta that matters: from the largest element of each row of `a` and column of `b` a closer
/// bound, and only if that is not enough, element by element.
fn largest_delta(update: &Update, limit: f64) -> f64 {
    let (a, b) = (numbers(&update.a), numbers(&update.b));
    let [rank, columns] = update.a.shape();
    let [rows, _] = update.b.shape();
    let largest =
        |values: &mut dyn Iterator<Item = f64>| values.fold(0.0_f64, |most, value| most.max(value.abs()));
    let scale = update.scaling.abs();
    let closer: f64 = (0..rank)
        .map(|k| {
            let of_a = largest(&mut a.iter().skip(k * columns).take(columns).copied());
            let of_b = largest(&mut b.iter().skip(k).step_by(rank.max(1)).copied());
            of_a * of_b
        })
        .sum();
    if closer * scale <= limit {
        return 0.0;
    }
    let mut most = 0.0_f64;
    let mut row = vec![0.0; columns];
    for i in 0..rows {
        row.fill(0.0);
        for k in 0..rank {
            let factor = b.get(i * rank + k).copied().unwrap_or(0.0);
            for (sum, value) in row.iter_mut().zip(a.iter().skip(k * columns)) {
                *sum += factor * value;
            }
        }
        most = most.max(largest(&mut row.iter().copied()) * scale);
    }
    most
}

/// The elements of a matrix, row by row.
fn numbers(matrix: &Matrix) -> Vec<f64> {
    let place = matrix.place();
    let [rows, columns] = place.shape;
    let at = |row: usize, column: usize| {
        let step = place.strides[0] * row as isize + place.strides[1] * column as isize;
        matrix.tensor().number(place.offset.wrapping_add_signed(step))
    };
    (0..rows)
        .flat_map(|row| (0..columns).map(move |column| (row, column)))
        .map(|(row, column)| at(row, column))
        .collect()
}
