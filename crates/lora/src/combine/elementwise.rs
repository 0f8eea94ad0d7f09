//! The methods that combine the elements at one place of all adapters, in `lora_a` and `lora_b` apart.

use super::sparsify::Sparsity;
use super::{Dense, Factors, Term};

/// Combines both matrices of a module; with `elects`, elements of the minority's sign are left out and the others
/// averaged, else all are added up.
pub(super) fn combine(module: &str, terms: &[Term<'_>], sparsity: Sparsity, elects: bool) -> Factors {
    let sides: Vec<_> = terms
        .iter()
        .map(|term| {
            let root = term.factor().abs().sqrt();
            // The sign goes to one matrix alone: in both it would cancel.
            let signed = if term.factor() < 0.0 { -root } else { root };
            (
                Side { matrix: term.lora_a, factor: signed, adapter: term.adapter },
                Side { matrix: term.lora_b, factor: root, adapter: term.adapter },
            )
        })
        .collect();
    let combined = |name: &str, sides: Vec<Side<'_>>| combine_side(module, name, &sides, sparsity, elects);
    Factors {
        lora_a: combined("lora_A", sides.iter().map(|(a, _)| *a).collect()),
        lora_b: combined("lora_B", sides.iter().map(|(_, b)| *b).collect()),
    }
}

/// One matrix of one adapter, and what it is multiplied by.
#[derive(Clone, Copy)]
struct Side<'a> {
    matrix: &'a Dense,
    factor: f64,
    adapter: usize,
}

fn combine_side(module: &str, name: &str, sides: &[Side<'_>], sparsity: Sparsity, elects: bool) -> Dense {
    let Some(first) = sides.first() else {
        return Dense { rows: 0, columns: 0, values: Vec::new() };
    };
    let thinned: Vec<Vec<f64>> =
        sides.iter().map(|side| sparsity.apply(&side.matrix.values, module, name, side.adapter)).collect();
    let value = |index: usize| {
        let elements = thinned.iter().zip(sides).map(|(values, side)| (values[index], side.factor));
        if elects {
            elected_mean(elements)
        } else {
            elements.map(|(value, factor)| value * factor).sum::<f64>()
        }
    };
    let values = (0..first.matrix.values.len()).map(|index| value(index) as f32).collect();
    Dense { rows: first.matrix.rows, columns: first.matrix.columns, values }
}

/// The mean of the weighted elements whose own sign is that of the sum of all; a sum of zero counts as positive.
fn elected_mean(elements: impl Iterator<Item = (f64, f64)> + Clone) -> f64 {
    let is_positive = elements.clone().map(|(value, _)| value).sum::<f64>() >= 0.0;
    let agrees = |value: f64| if is_positive { value > 0.0 } else { value < 0.0 };
    let (total, count) = elements
        .filter(|&(value, _)| agrees(value))
        .fold((0.0, 0_u32), |(total, count), (value, factor)| (total + value * factor, count + 1));
    total / f64::from(count.max(1))
}
