//! What a merge did to a weight.

use std::ops::AddAssign;

/// What a merge added, and how much of it the output format could take.
///
/// Sums run over all elements: those of several slabs or layers are added with `+=`. They are computed in binary32 in
/// stretches and in binary64 between them, with about six good digits, and are not finite where an element is not.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct MergeStatistics {
    /// Elements of the weight.
    pub elements: u64,
    /// Elements whose value is another than before, bit for bit.
    pub changed: u64,
    /// Sum of the squares of the delta, `Σ Δ²`.
    pub delta_squares: f64,
    /// Sum of the products of what really changed and the delta, `Σ (W′ − W) Δ`.
    pub kept: f64,
    /// Largest magnitude of the delta.
    pub largest_delta: f64,
}

impl MergeStatistics {
    /// The Frobenius norm of the delta.
    pub fn norm(&self) -> f64 {
        self.delta_squares.sqrt()
    }

    /// How much of the delta is left after rounding to the output format: 1 if all of it, 0 if none; `None` if the
    /// delta is zero. Where deltas are small beside the step of the format, most elements stay as they are and a few
    /// move too far: this number counts what is left on balance in the direction of the delta.
    pub fn survived(&self) -> Option<f64> {
        (self.delta_squares > 0.0).then(|| self.kept / self.delta_squares)
    }
}

impl AddAssign for MergeStatistics {
    fn add_assign(&mut self, other: Self) {
        self.elements += other.elements;
        self.changed += other.changed;
        self.delta_squares += other.delta_squares;
        self.kept += other.kept;
        self.largest_delta = self.largest_delta.max(other.largest_delta);
    }
}
