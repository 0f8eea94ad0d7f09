//! Applying an adapter to activations.

use crate::check::{Named, Options, apart, matrix, same};
use crate::{Error, kernels};
use infer_accel_tensor::{TensorMut, TensorRef};

/// Adds `scaling · (x · lora_aᵀ) · lora_bᵀ` to `out`.
///
/// * `x`: `[tokens, in_features]`, and `out`: `[tokens, out_features]`.
/// * `lora_a`: `[rank, in_features]`, and `lora_b`: `[out_features, rank]`.
///
/// Each is float32, float16 or bfloat16 of any strides; they may differ.
///
/// # Exactness
///
/// A token's result has the same bits whatever the batch that it comes in, the instruction tier and the number of
/// threads. All arithmetic is binary32:
///
/// ```text
/// part[0..16] = +0.0
/// for j in 0..in_features:  part[j % 16] = fma(lora_a[k, j], x[t, j], part[j % 16])
/// hidden[k] = the parts added up halves by halves: part[i] += part[i + 8], then + 4, + 2, + 1
/// sum = +0.0
/// for k in 0..rank:  sum = fma(hidden[k], lora_b[o, k], sum)
/// out[t, o] = round_to_storage(fma(scaling, sum, out[t, o]))
/// ```
///
/// What is not a number becomes the positive quiet NaN without payload. With rank 0 or without features nothing is
/// added and every bit stays.
///
/// # Error bound
///
/// Let `y` be the exact result and `m = |scaling| · Σ_k |lora_b[o, k]| Σ_j |lora_a[k, j] · x[t, j]|`. Short of overflow
/// and underflow the result differs from `y` by at most
/// `(⌈in_features / 16⌉ + rank + 6) · 2⁻²⁴ · m · 1.01 + (u + 2⁻²³) · |y|`,
/// where `u` is the unit roundoff of `out`: 2⁻²⁴, 2⁻¹¹ or 2⁻⁸ for float32, float16 and bfloat16.
///
/// # Cost
///
/// `tokens · rank · (in + out)` multiplications; memory for `512 · rank` numbers, kept between calls.
///
/// # Errors
///
/// [`Error`] before anything is written: shapes, dtypes, an `out` that shares memory with another argument, a
/// scaling that is not finite.
///
/// # Examples
///
/// ```
/// use infer_accel_lora::{Options, apply_adapter};
/// use infer_accel_tensor::{TensorMut, TensorRef};
///
/// let x = [1.0_f32, 2.0]; // one token
/// let mut out = [0.5_f32, 0.5, 0.5];
/// apply_adapter(
///     &mut TensorMut::from_slice(&mut out, &[1, 3])?,
///     &TensorRef::from_slice(&x, &[1, 2])?,
///     &TensorRef::from_slice(&[1.0_f32, 1.0], &[1, 2])?,
///     &TensorRef::from_slice(&[1.0_f32, 0.0, -1.0], &[3, 1])?,
///     &Options::default(),
/// )?;
/// assert_eq!(out, [3.5, 0.5, -2.5]);
/// # Ok::<(), infer_accel_lora::Error>(())
/// ```
pub fn apply_adapter(
    out: &mut TensorMut<'_>,
    x: &TensorRef<'_>,
    lora_a: &TensorRef<'_>,
    lora_b: &TensorRef<'_>,
    options: &Options,
) -> Result<(), Error> {
    let settings = options.settings()?;
    check(&out.as_ref(), x, lora_a, lora_b)?;
    kernels::apply(out, x, lora_a, lora_b, &settings);
    Ok(())
}

fn check(
    out: &TensorRef<'_>,
    x: &TensorRef<'_>,
    lora_a: &TensorRef<'_>,
    lora_b: &TensorRef<'_>,
) -> Result<(), Error> {
    let named = |name, tensor| Named { name, tensor };
    let (out, x) = (named("out", out), named("x", x));
    let (a, b) = (named("lora_A", lora_a), named("lora_B", lora_b));
    let (tokens, in_features) = matrix(x, "[tokens, in_features]")?;
    let (out_tokens, out_features) = matrix(out, "[tokens, out_features]")?;
    let (rank, a_features) = matrix(a, "[rank, in_features]")?;
    let (b_features, b_rank) = matrix(b, "[out_features, rank]")?;
    same(
        (rank, b_rank),
        a,
        b,
        "lora_A [rank, in_features] and lora_B [out_features, rank] must have the same rank",
    )?;
    same((a_features, in_features), a, x, "both must have the same in_features (the last dimension)")?;
    same(
        (b_features, out_features),
        b,
        out,
        "lora_B [out_features, rank] must have as many rows as out has columns",
    )?;
    same((out_tokens, tokens), out, x, "both must have the same number of tokens (the first dimension)")?;
    apart(out, x)?;
    apart(out, a)?;
    apart(out, b)
}
