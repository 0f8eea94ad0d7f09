//! Merging the layers of a model in one call.

use crate::check::{Named, Options};
use crate::merge::check;
use crate::slab::Delta;
use crate::{Error, kernels};
use infer_accel_tensor::TensorMut;
use std::ops::Range;

/// Adds to each weight its delta, in place, as [`crate::merge_weights`] does; all layers in one call, so that threads
/// run over the tiles of all of them and the last ones of a layer do not wait for each other.
///
/// # Errors
///
/// [`Error`] before anything is written: [`Error::Layer`] says which layer is refused, and why. Weights must not share
/// memory with each other, nor with any adapter; views whose elements interleave count as sharing.
///
/// # Examples
///
/// ```
/// use infer_accel_lora::{Delta, merge_many};
/// use infer_accel_tensor::{TensorMut, TensorRef};
///
/// let (mut first, mut second) = ([1.0_f32, 2.0], [3.0_f32]);
/// let delta = |lora_a, lora_b| Delta { lora_a, lora_b, scaling: 1.0 };
/// let mut layers = [
///     (
///         TensorMut::from_slice(&mut first, &[1, 2])?,
///         delta(TensorRef::from_slice(&[1.0_f32, 1.0], &[1, 2])?, TensorRef::from_slice(&[10.0_f32], &[1, 1])?),
///     ),
///     (
///         TensorMut::from_slice(&mut second, &[1, 1])?,
///         delta(TensorRef::from_slice(&[1.0_f32], &[1, 1])?, TensorRef::from_slice(&[0.5_f32], &[1, 1])?),
///     ),
/// ];
/// merge_many(&mut layers, None)?;
/// assert_eq!((first, second), ([11.0, 12.0], [3.5]));
/// # Ok::<(), infer_accel_lora::Error>(())
/// ```
pub fn merge_many(
    layers: &mut [(TensorMut<'_>, Delta<'_>)],
    num_threads: Option<usize>,
) -> Result<(), Error> {
    let settings = Options { num_threads, ..Options::default() }.settings()?;
    let mut scalings = Vec::with_capacity(layers.len());
    for (layer, (weight, delta)) in layers.iter().enumerate() {
        let target = weight.as_ref();
        let named = Named { name: "weight", tensor: &target };
        let checked = delta.checked_scaling().and_then(|scaling| {
            check(named, named, &delta.lora_a, &delta.lora_b)?;
            Ok(scaling)
        });
        scalings.push(checked.map_err(|error| Error::Layer { layer, error: Box::new(error) })?);
    }
    apart(layers)?;
    kernels::merge_all(layers, &scalings, &settings);
    Ok(())
}

/// Who uses a stretch of memory.
struct User {
    bytes: Range<usize>,
    layer: usize,
    /// What it is called, if it is only read.
    reads: Option<&'static str>,
}

/// Refuses weights that share memory with each other, or with a matrix of any layer.
fn apart(layers: &[(TensorMut<'_>, Delta<'_>)]) -> Result<(), Error> {
    let mut users: Vec<User> = layers
        .iter()
        .enumerate()
        .flat_map(|(layer, (weight, delta))| {
            [
                User { bytes: weight.byte_range(), layer, reads: None },
                User { bytes: delta.lora_a.byte_range(), layer, reads: Some("lora_A") },
                User { bytes: delta.lora_b.byte_range(), layer, reads: Some("lora_B") },
            ]
        })
        .filter(|user| !user.bytes.is_empty())
        .collect();
    users.sort_by_key(|user| user.bytes.start);
    // From left to right: whatever began before and reaches on has the furthest end, of readers and of writers.
    let (mut writer, mut reader): (Option<&User>, Option<&User>) = (None, None);
    for user in &users {
        let meets = |other: Option<&User>| other.is_some_and(|other| other.bytes.end > user.bytes.start);
        let other = if meets(writer) {
            writer
        } else if user.reads.is_none() && meets(reader) {
            reader
        } else {
            None
        };
        if let Some(other) = other {
            let (target, read) = if user.reads.is_none() { (user, other) } else { (other, user) };
            let error = Error::LayerOverlap {
                target: target.layer,
                name: read.reads.unwrap_or("weight"),
                layer: read.layer,
            };
            return Err(error);
        }
        let furthest = if user.reads.is_none() { &mut writer } else { &mut reader };
        if furthest.is_none_or(|known| known.bytes.end < user.bytes.end) {
            *furthest = Some(user);
        }
    }
    Ok(())
}
