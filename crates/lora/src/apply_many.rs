//! Applying many adapters to one batch.

use crate::apply_stack::{AdapterStack, Entry};
use crate::check::{Named, apart, matrix, same};
use crate::kernels::{self, Segment};
use crate::{Error, ServingError};
use infer_accel_tensor::simd::Tier;
use infer_accel_tensor::{TensorMut, TensorRef, simd, threads};

/// The id of a token to which nothing is applied.
pub const NO_ADAPTER: i64 = -1;

/// How a call over packed adapters runs. Results depend on neither.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RunOptions {
    /// The most threads to use; `None` is the default of [`threads::default_threads`].
    pub num_threads: Option<usize>,
    /// The highest instruction tier to use; `None` is [`simd::tier`].
    pub tier: Option<Tier>,
}

/// Adds to each token's outputs what its adapter makes of it: `scaling · (x · lora_aᵀ) · lora_bᵀ`.
///
/// * `x`: `[tokens, in_features]`, and `out`: `[tokens, out_features]`, each float32, float16 or bfloat16 of any
///   strides.
/// * `adapter_ids`: one for each token, in any order; [`NO_ADAPTER`] leaves a token alone, every bit of it. Tokens of
///   one adapter that lie together are the cheap case, by a little.
///
/// # Exactness
///
/// Each token's result has the bits that [`apply_adapter`](crate::apply_adapter) gives for this token alone, slice by
/// slice: it does not depend on the batch, on the tier or on the number of threads. What is not a number stays with
/// its own token.
///
/// # Cost
///
/// `tokens · rank · (in + out)` multiplications, and one pass over the packed matrices of each adapter for every six
/// of its tokens.
///
/// # Errors
///
/// [`Error`] before anything is written: shapes, dtypes, an `out` that shares memory with `x`, an id that the stack
/// does not have.
///
/// # Examples
///
/// ```
/// use infer_accel_lora::{AdapterStack, PackedLayer, RunOptions, StackedAdapter, apply_adapters};
/// use infer_accel_tensor::{TensorMut, TensorRef};
///
/// let down = [1.0_f32, 1.0]; // rank 1, two features
/// let up = [1.0_f32, 0.0, -1.0]; // three outputs
/// let layer = PackedLayer::new(
///     &TensorRef::from_slice(&down, &[1, 2])?,
///     &TensorRef::from_slice(&up, &[3, 1])?,
///     2.0,
/// )?;
/// let stack = AdapterStack::new(vec![StackedAdapter::new(7, vec![Some(layer)])], None)?;
/// let x = [1.0_f32, 2.0, 10.0, 20.0]; // two tokens
/// let mut out = [0.5_f32; 6];
/// apply_adapters(
///     &mut TensorMut::from_slice(&mut out, &[2, 3])?,
///     &TensorRef::from_slice(&x, &[2, 2])?,
///     &stack,
///     &[-1, 7],
///     &RunOptions::default(),
/// )?;
/// assert_eq!(out, [0.5, 0.5, 0.5, 60.5, 0.5, -59.5]);
/// # Ok::<(), infer_accel_lora::Error>(())
/// ```
pub fn apply_adapters(
    out: &mut TensorMut<'_>,
    x: &TensorRef<'_>,
    stack: &AdapterStack,
    adapter_ids: &[i64],
    options: &RunOptions,
) -> Result<(), Error> {
    let threads = threads::resolve(options.num_threads)?;
    let tier = options.tier.unwrap_or_else(simd::tier);
    let tokens = check(&out.as_ref(), x, stack)?;
    if adapter_ids.len() != tokens {
        return Err(ServingError::AdapterIdCount { got: adapter_ids.len(), tokens }.into());
    }
    let chosen = choose(stack.entries(), adapter_ids)?;
    let order: Vec<usize> = chosen.iter().map(|&(_, token)| token).collect();
    let mut segments = Vec::new();
    let mut first = 0;
    for run in chosen.chunk_by(|left, right| left.0 == right.0) {
        let tokens = first..first + run.len();
        first = tokens.end;
        let parts = stack.entries().get(run[0].0).map_or(&[][..], |entry| &entry.parts);
        if !parts.is_empty() {
            segments.push(Segment { parts, tokens });
        }
    }
    if !segments.is_empty() {
        kernels::apply_segments(out, x, &order, &segments, (tier, threads));
    }
    Ok(())
}

/// The place of each token's adapter, and the token: tokens of one adapter together, in their own order.
fn choose(entries: &[Entry], adapter_ids: &[i64]) -> Result<Vec<(usize, usize)>, Error> {
    let mut chosen: Vec<(usize, usize)> = Vec::with_capacity(adapter_ids.len());
    let mut is_sorted = true;
    let mut last = (NO_ADAPTER, 0);
    for (token, &id) in adapter_ids.iter().enumerate() {
        if id == NO_ADAPTER {
            continue;
        }
        if id != last.0 {
            let place = entries
                .binary_search_by_key(&id, |entry| entry.id)
                .map_err(|_| ServingError::AdapterId { token, id, known: entries.len() })?;
            last = (id, place);
        }
        is_sorted &= chosen.last().is_none_or(|&(place, _)| place <= last.1);
        chosen.push((last.1, token));
    }
    if !is_sorted {
        chosen.sort_unstable();
    }
    Ok(chosen)
}

fn check(out: &TensorRef<'_>, x: &TensorRef<'_>, stack: &AdapterStack) -> Result<usize, Error> {
    let (out, x) = (Named { name: "out", tensor: out }, Named { name: "x", tensor: x });
    let (tokens, in_features) = matrix(x, "[tokens, in_features]")?;
    let (out_tokens, out_features) = matrix(out, "[tokens, out_features]")?;
    same((out_tokens, tokens), out, x, "both must have the same number of tokens (the first dimension)")?;
    let sizes = [("x", in_features, stack.in_features()), ("out", out_features, stack.out_features())];
    for (name, got, expected) in sizes {
        if let Some(expected) = expected.filter(|&expected| expected != got) {
            return Err(ServingError::StackWidth { name, got, expected }.into());
        }
    }
    apart(out, x)?;
    Ok(tokens)
}
