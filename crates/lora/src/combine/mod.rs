//! Several adapters made into one.
//!
//! The methods are those of PEFT's `add_weighted_adapter` and mean what they mean there. Everything is computed in
//! binary64 in one order and rounded to binary32 once, so that a result has the same bits on every machine.

mod adapters;
mod elementwise;
mod householder;
mod jacobi;
mod low_rank;
mod method;
mod sparsify;

#[cfg(test)]
mod tests;

pub use adapters::combine;
pub use method::{Method, MethodSettings};

use sparsify::Sparsity;

/// A matrix of binary32, row by row.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Dense {
    /// Rows.
    pub(crate) rows: usize,
    /// Columns.
    pub(crate) columns: usize,
    /// `rows · columns` numbers.
    pub(crate) values: Vec<f32>,
}

/// One adapter's part of a module: `weight · scaling · lora_b · lora_a`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Term<'a> {
    /// Place of the adapter in the list of adapters; names its random numbers.
    pub(crate) adapter: usize,
    /// `[rank, in_features]`.
    pub(crate) lora_a: &'a Dense,
    /// `[out_features, rank]`.
    pub(crate) lora_b: &'a Dense,
    /// What the adapter multiplies its product by.
    pub(crate) scaling: f64,
    /// What the caller multiplies the adapter by.
    pub(crate) weight: f64,
}

impl Term<'_> {
    fn factor(&self) -> f64 {
        self.weight * self.scaling
    }
}

/// The combined matrices of a module; their scaling is 1.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Factors {
    /// `[rank, in_features]`.
    pub(crate) lora_a: Dense,
    /// `[out_features, rank]`.
    pub(crate) lora_b: Dense,
}

/// Combines the adapters of one module. There is at least one term; shapes and ranks fit, and all numbers are finite.
pub(crate) fn combine_module(module: &str, terms: &[Term<'_>], method: &Method) -> Factors {
    let elementwise =
        |sparsity: Sparsity, elects: bool| elementwise::combine(module, terms, sparsity, elects);
    match *method {
        Method::Linear => elementwise(Sparsity::None, false),
        Method::Cat => concatenate(terms),
        Method::Svd { rank } => {
            let largest = terms.iter().map(|term| term.lora_a.rows).max().unwrap_or(0);
            low_rank::approximate(terms, rank.unwrap_or(largest))
        }
        Method::Ties { density } => elementwise(Sparsity::Largest { density }, true),
        Method::DareLinear { density, seed } => elementwise(Sparsity::Random { density, seed }, false),
        Method::DareTies { density, seed } => elementwise(Sparsity::Random { density, seed }, true),
        Method::MagnitudePrune { density } => elementwise(Sparsity::Largest { density }, false),
    }
}

/// Puts the ranks side by side; `lora_a` takes the factors.
fn concatenate(terms: &[Term<'_>]) -> Factors {
    let (columns, rows) = terms.first().map_or((0, 0), |term| (term.lora_a.columns, term.lora_b.rows));
    let rank = terms.iter().map(|term| term.lora_a.rows).sum();
    let mut a = Vec::with_capacity(rank * columns);
    for term in terms {
        let factor = term.factor();
        a.extend(term.lora_a.values.iter().map(|&value| (f64::from(value) * factor) as f32));
    }
    let mut b = Vec::with_capacity(rows * rank);
    for row in 0..rows {
        for Term { lora_b, .. } in terms {
            b.extend_from_slice(&lora_b.values[row * lora_b.columns..][..lora_b.columns]);
        }
    }
    Factors {
        lora_a: Dense { rows: rank, columns, values: a },
        lora_b: Dense { rows, columns: rank, values: b },
    }
}
