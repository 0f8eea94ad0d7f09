//! Merging an adapter into a weight.

use crate::check::{Named, Options, apart, matrix, same, same_dtype};
use crate::{Error, kernels};
use infer_accel_tensor::{TensorMut, TensorRef};

const WEIGHT: &str = "[out_features, in_features]";
const LORA_A: &str = "[rank, in_features]";
const LORA_B: &str = "[out_features, rank]";

/// Adds `scaling · lora_b · lora_a` to `weight`, in place.
///
/// * `weight`: `[out_features, in_features]`, float32, float16 or bfloat16, any strides.
/// * `lora_a`: `[rank, in_features]`, and `lora_b`: `[out_features, rank]`: each float32, float16 or bfloat16, any
///   strides; the two may differ.
///
/// # Exactness
///
/// Every element of the result is defined to the bit, whatever the instruction tier and the number of threads:
///
/// ```text
/// sum = +0.0                                   # binary32, as everything before the last line
/// for k in order:  sum = fma(lora_b[i, k], lora_a[k, j], sum)
/// value = fma(scaling, sum, weight[i, j])
/// weight[i, j] = round_to_storage(value)       # to nearest even
/// ```
///
/// `order` is 0, 1, 2, … rank − 1, except where both matrices are bfloat16: then it is 1, 0, 3, 2, … (of each pair
/// the odd one first, as the instruction `vdpbf16ps` accumulates), a last rank without partner at the end. Subnormal
/// numbers are kept, wherever they come up. Zeros follow IEEE 754: −0.0 plus a delta of +0.0 is +0.0. An element
/// that is not a number becomes the positive quiet NaN without payload. With rank 0 nothing is added and every bit
/// stays.
///
/// # Cost
///
/// `out · in · rank` multiplications; `weight` is read and written once; no memory that grows with the weight.
///
/// # Errors
///
/// [`Error`] before anything is written: shapes, dtypes, a weight that shares memory with the adapter, a scaling
/// that is not finite.
///
/// # Examples
///
/// ```
/// use infer_accel_lora::{Options, merge_weights};
/// use infer_accel_tensor::{TensorMut, TensorRef};
///
/// let mut weight = [1.0_f32, 2.0, 3.0, 4.0];
/// let lora_a = [1.0_f32, 10.0]; // [1, 2]
/// let lora_b = [0.5_f32, -0.5]; // [2, 1]
/// merge_weights(
///     &mut TensorMut::from_slice(&mut weight, &[2, 2])?,
///     &TensorRef::from_slice(&lora_a, &[1, 2])?,
///     &TensorRef::from_slice(&lora_b, &[2, 1])?,
///     &Options { scaling: 2.0, ..Options::default() },
/// )?;
/// assert_eq!(weight, [2.0, 12.0, 2.0, -6.0]);
/// # Ok::<(), infer_accel_lora::Error>(())
/// ```
pub fn merge_weights(
    weight: &mut TensorMut<'_>,
    lora_a: &TensorRef<'_>,
    lora_b: &TensorRef<'_>,
    options: &Options,
) -> Result<(), Error> {
    let settings = options.settings()?;
    let target = weight.as_ref();
    check(
        Named { name: "weight", tensor: &target },
        Named { name: "weight", tensor: &target },
        lora_a,
        lora_b,
    )?;
    kernels::merge(weight, None, lora_a, lora_b, &settings);
    Ok(())
}

/// As [`merge_weights`], but writes the result to `out`, of the shape and dtype of `weight`, which stays as it is.
///
/// `out` must not share memory with any of the others.
pub fn merge_weights_into(
    out: &mut TensorMut<'_>,
    weight: &TensorRef<'_>,
    lora_a: &TensorRef<'_>,
    lora_b: &TensorRef<'_>,
    options: &Options,
) -> Result<(), Error> {
    let settings = options.settings()?;
    let target = out.as_ref();
    let (out_named, weight_named) =
        (Named { name: "out", tensor: &target }, Named { name: "weight", tensor: weight });
    check(weight_named, out_named, lora_a, lora_b)?;
    same_dtype(out_named, weight_named)?;
    if target.shape() != weight.shape() {
        same((0, 1), out_named, weight_named, "both must be the same")?;
    }
    apart(out_named, weight_named)?;
    kernels::merge(out, Some(weight), lora_a, lora_b, &settings);
    Ok(())
}

/// Refuses a weight, a target and matrices that do not fit each other.
pub(crate) fn check(
    weight: Named<'_, '_>,
    target: Named<'_, '_>,
    lora_a: &TensorRef<'_>,
    lora_b: &TensorRef<'_>,
) -> Result<(), Error> {
    let a = Named { name: "lora_A", tensor: lora_a };
    let b = Named { name: "lora_B", tensor: lora_b };
    let (out_features, in_features) = matrix(weight, WEIGHT)?;
    let (rank, a_features) = matrix(a, LORA_A)?;
    let (b_features, b_rank) = matrix(b, LORA_B)?;
    same(
        (rank, b_rank),
        a,
        b,
        "lora_A [rank, in_features] and lora_B [out_features, rank] must have the same rank",
    )?;
    same((a_features, in_features), a, weight, "both must have the same in_features (the last dimension)")?;
    same(
        (b_features, out_features),
        b,
        weight,
        "both must have the same out_features (the first dimension)",
    )?;
    apart(target, a)?;
    apart(target, b)
}
