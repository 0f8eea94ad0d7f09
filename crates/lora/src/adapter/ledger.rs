//! Where every delta of an adapter goes.

use super::{Matrix, Place, Tensor};
use crate::problem::Problem;

/// One low-rank update of one tensor of the base: `matrix += scaling · b @ a`, where `matrix` is what `place` names
/// of the tensor. Every kind of layer comes in this form; an expert's parameter as one update for each expert.
#[derive(Clone, Debug)]
pub struct Update {
    /// The tensor of the merged checkpoint that changes.
    pub target: String,
    /// The tensor of the base that it starts from: `target` itself, except for a head that shares its weight with
    /// the embedding (see [`Ledger::untied`]).
    pub source: String,
    /// Which layer of the adapter this is, as an index of [`Adapter::layers`](super::Adapter::layers).
    pub layer: usize,
    /// The matrix `[out, in]` within the tensor; its strides say whether it is stored transposed.
    pub place: Place,
    /// `[rank, in]`.
    pub a: Matrix,
    /// `[out, rank]`.
    pub b: Matrix,
    /// What the product is multiplied by.
    pub scaling: f64,
    /// `DoRA`: the row `i` of the sum is multiplied by `magnitude[i] / ‖row i‖`. `[out]`.
    pub magnitude: Option<Tensor>,
}

/// A tensor of the base that is replaced as a whole.
#[derive(Clone, Debug)]
pub struct Exchange {
    /// The tensor of the merged checkpoint that is replaced.
    pub target: String,
    /// What takes its place: of the base's shape, not always of its number format.
    pub tensor: Tensor,
}

/// An embedding and a head that share one tensor in the base, and no longer do after merging.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Untied {
    /// The tensor that both share in the base.
    pub embedding: String,
    /// The name under which the head's own tensor must be written.
    pub head: String,
}

/// What [`Adapter::resolve`](super::Adapter::resolve) found: every delta of the adapter is in one of the lists.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// Low-rank updates, in the order of their targets.
    pub updates: Vec<Update>,
    /// Replaced tensors, in the order of their targets. A target that is also updated is replaced first: the updates
    /// start from what takes its place.
    pub exchanges: Vec<Exchange>,
    /// Whether the merged checkpoint must store the head's weight by itself, with `tie_word_embeddings` set to false:
    /// the adapter changes only one of the two that shared it, or both in different ways.
    pub untied: Option<Untied>,
    /// Deltas that have no place in the base, and whatever else does not fit. Merge only if there are none.
    pub problems: Vec<Problem>,
}
