//! The best approximation of a sum of low-rank products, without ever making the sum.
//!
//! `Σ f · B · A` is `L · Rᵀ`, with all `B` side by side in `L` and all `f · A` one above the other in `Rᵀ`. With
//! `L = Q₁ · R₁` and `R = Q₂ · R₂` it is `Q₁ · (R₁ · R₂ᵀ) · Q₂ᵀ`: what has to be decomposed is as wide as the sum of the
//! ranks, dozens, and not as the weight, thousands.

use super::householder::{Columns, Reflections};
use super::jacobi::Decomposition;
use super::{Dense, Factors, Term};

/// The matrices of the given rank whose product comes closest to the sum; fewer ranks where the sum has fewer.
pub(super) fn approximate(terms: &[Term<'_>], rank: usize) -> Factors {
    let left = Reflections::of(left_columns(terms));
    let right = Reflections::of(right_columns(terms));
    let Decomposition { scaled_left, right: rotated } = Decomposition::of(core(&left, &right));
    let kept = rank.min(left.rank()).min(right.rank());
    let lora_b = left.expand(&first(&scaled_left, kept));
    let lora_a = right.expand(&first(&rotated, kept));
    Factors {
        lora_a: Dense {
            rows: kept,
            columns: lora_a.rows,
            values: lora_a.values.iter().map(|&value| value as f32).collect(),
        },
        lora_b: transposed(&lora_b),
    }
}

/// All `lora_b` side by side, column by column.
fn left_columns(terms: &[Term<'_>]) -> Columns {
    let rows = terms.first().map_or(0, |term| term.lora_b.rows);
    let ranks = terms.iter().map(|term| term.lora_b.columns).sum();
    let mut values = Vec::with_capacity(rows * ranks);
    for Term { lora_b, .. } in terms {
        for rank in 0..lora_b.columns {
            let column = lora_b.values.iter().skip(rank).step_by(lora_b.columns);
            values.extend(column.map(|&value| f64::from(value)));
        }
    }
    Columns { rows, count: ranks, values }
}

/// All `factor · lora_a`, each rank a column.
fn right_columns(terms: &[Term<'_>]) -> Columns {
    let rows = terms.first().map_or(0, |term| term.lora_a.columns);
    let ranks = terms.iter().map(|term| term.lora_a.rows).sum();
    let mut values = Vec::with_capacity(rows * ranks);
    for term in terms {
        let factor = term.factor();
        values.extend(term.lora_a.values.iter().map(|&value| f64::from(value) * factor));
    }
    Columns { rows, count: ranks, values }
}

/// `R₁ · R₂ᵀ`
fn core(left: &Reflections, right: &Reflections) -> Columns {
    let ranks = left.ranks();
    let mut result = Columns::zeros(left.rank(), right.rank());
    for column in 0..right.rank() {
        for (row, target) in result.column_mut(column).iter_mut().enumerate() {
            *target =
                (row.max(column)..ranks).map(|rank| left.upper(row, rank) * right.upper(column, rank)).sum();
        }
    }
    result
}

fn first(columns: &Columns, count: usize) -> Columns {
    Columns { rows: columns.rows, count, values: columns.values[..columns.rows * count].to_vec() }
}

fn transposed(columns: &Columns) -> Dense {
    let mut values = vec![0.0; columns.values.len()];
    for index in 0..columns.count {
        for (target, &value) in
            values.iter_mut().skip(index).step_by(columns.count).zip(columns.column(index))
        {
            *target = value as f32;
        }
    }
    Dense { rows: columns.rows, columns: columns.count, values }
}
