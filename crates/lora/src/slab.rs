//! Merging several adapters at once, into slabs of rows, into another format, with a report.

use crate::check::{Named, Options, apart, matrix, same};
use crate::kernels::CallSettings;
use crate::merge::check;
use crate::residue::{Residue, ResidueBuilder, SlabResidue};
use crate::statistics::MergeStatistics;
use crate::{AdapterDigest, Error, kernels};
use infer_accel_tensor::simd::Tier;
use infer_accel_tensor::{DType, TensorMut, TensorRef};

/// What is added to a weight: `scaling · lora_b · lora_a`.
#[derive(Clone, Copy, Debug)]
pub struct Delta<'a> {
    /// `[rank, in_features]`, float32, float16 or bfloat16, any strides.
    pub lora_a: TensorRef<'a>,
    /// `[out_features, rank]`; for a slab, the slab's rows. Its format may differ.
    pub lora_b: TensorRef<'a>,
    /// What the product is multiplied by. It is rounded to binary32 once, and must be finite after that.
    pub scaling: f64,
}

impl Delta<'_> {
    pub(crate) fn checked_scaling(&self) -> Result<f32, Error> {
        let scaling = self.scaling as f32;
        if scaling.is_finite() { Ok(scaling) } else { Err(Error::Scaling { scaling: self.scaling }) }
    }
}

/// How values between two numbers of a format are rounded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rounding {
    /// To the nearest, ties to even.
    #[default]
    Nearest,
    /// Up or down by chance, so that the mean is the value: to the number above with a probability that is the
    /// distance from the number below, in steps of the format, cut to 16 bits for bfloat16 and 13 bits for float16.
    /// The draw depends on the seed, the row and the column and on nothing else. float32 is not rounded.
    Stochastic {
        /// Merges with the same seed draw the same numbers.
        seed: u64,
    },
}

impl Rounding {
    /// The rounding of a name, `nearest` or `stochastic`.
    ///
    /// # Errors
    ///
    /// [`Error::Rounding`] for another name; [`Error::Seed`] where `stochastic` comes without a seed, or `nearest`
    /// with one.
    pub fn from_name(name: &str, seed: Option<u64>) -> Result<Self, Error> {
        match (name, seed) {
            ("nearest", None) => Ok(Self::Nearest),
            ("stochastic", Some(seed)) => Ok(Self::Stochastic { seed }),
            ("nearest" | "stochastic", _) => Err(Error::Seed { is_missing: seed.is_none() }),
            _ => Err(Error::Rounding { name: name.to_string() }),
        }
    }
}

/// How [`merge_slab`] runs.
#[derive(Clone, Copy, Debug, Default)]
pub struct SlabOptions<'a> {
    /// The row of the whole weight that the slab begins with.
    pub first_row: usize,
    /// How values are rounded.
    pub rounding: Rounding,
    /// Whether to measure what the merge did.
    pub statistics: bool,
    /// Whether to note what undoing the merge would miss.
    pub residue: bool,
    /// The magnitudes of a `DoRA` adapter, one number for each row of the slab: `[rows]` or `[rows, 1]`.
    pub magnitude: Option<TensorRef<'a>>,
    /// The most threads to use; `None` is the default. Results do not depend on it.
    pub num_threads: Option<usize>,
    /// The highest instruction tier to use; `None` is the processor's. Results do not depend on it.
    pub tier: Option<Tier>,
}

/// What [`merge_slab`] was asked to find out.
#[derive(Clone, Debug, Default)]
pub struct SlabReport {
    /// What the merge did.
    pub statistics: Option<MergeStatistics>,
    /// What undoing it needs; for [`ResidueBuilder::push`].
    pub residue: Option<SlabResidue>,
}

/// Adds deltas to some rows of a weight and rounds once: `target = round(source + Σ deltas)`.
///
/// `source` is `None` for a merge in place. Otherwise it may be of another format than `target`: each is float32,
/// float16 or bfloat16, of any strides, and they must not share memory.
///
/// # Exactness
///
/// ```text
/// value = source[i, j]                                    # binary32, as all that follows
/// for each delta:  value = fma(scaling, sum, value)       # sum as in [`merge_weights`](crate::merge_weights)
/// with magnitude:  value = (magnitude[i] / norm[i]) · value
/// target[i, j] = round_to_storage(value)
/// ```
///
/// `norm[i]` is the square root of the sum of the squares of the row's values, where value `j` goes by a fused
/// multiply-add to partial sum `j mod 16` and these are added up by halves. A delta of rank 0 is left out. With
/// nothing to add, the same format and no magnitude every bit stays. One delta, one format and nothing else asked for
/// is [`merge_weights`](crate::merge_weights), to the bit, at a higher cost.
///
/// # Errors
///
/// [`Error`] before anything is written: shapes, dtypes, a target that shares memory with an argument that is
/// read, a scaling that is not finite, a residue of a merge with magnitudes.
///
/// # Examples
///
/// ```
/// use infer_accel_lora::{Delta, SlabOptions, merge_slab};
/// use infer_accel_tensor::{TensorMut, TensorRef};
///
/// let mut weight = [1.0_f32, 2.0];
/// let delta = Delta {
///     lora_a: TensorRef::from_slice(&[1.0_f32, 10.0], &[1, 2])?,
///     lora_b: TensorRef::from_slice(&[0.5_f32], &[1, 1])?,
///     scaling: 2.0,
/// };
/// let options = SlabOptions { statistics: true, ..SlabOptions::default() };
/// let report = merge_slab(&mut TensorMut::from_slice(&mut weight, &[1, 2])?, None, &[delta, delta], &options)?;
/// assert_eq!(weight, [3.0, 22.0]);
/// assert_eq!(report.statistics.map(|statistics| statistics.changed), Some(2));
/// # Ok::<(), infer_accel_lora::Error>(())
/// ```
pub fn merge_slab(
    target: &mut TensorMut<'_>,
    source: Option<&TensorRef<'_>>,
    deltas: &[Delta<'_>],
    options: &SlabOptions<'_>,
) -> Result<SlabReport, Error> {
    let (settings, scalings) = check_slab(&target.as_ref(), source, deltas, options)?;
    let (base, merged) = (source.map_or(target.dtype(), TensorRef::dtype), target.dtype());
    let (rows, columns) = (target.shape()[0], target.shape()[1]);
    let first_row = options.first_row;
    let outcome = kernels::merge_slab(target, source, deltas, &scalings, options, &settings);
    let kernels::Outcome { statistics, exceptions, digest } = outcome;
    let residue = SlabResidue { first_row, rows, columns, base, merged, exceptions, digest };
    Ok(SlabReport {
        statistics: options.statistics.then_some(statistics),
        residue: options.residue.then_some(residue),
    })
}

/// As [`merge_slab`] for a whole weight, with the residue of it.
///
/// # Errors
///
/// As [`merge_slab`].
pub fn merge_with_residue(
    target: &mut TensorMut<'_>,
    source: Option<&TensorRef<'_>>,
    deltas: &[Delta<'_>],
    options: &SlabOptions<'_>,
) -> Result<(SlabReport, Residue), Error> {
    let options = SlabOptions { first_row: 0, residue: true, ..*options };
    check_slab(&target.as_ref(), source, deltas, &options)?;
    let digest = AdapterDigest::of(deltas)?;
    let base = source.map_or(target.dtype(), TensorRef::dtype);
    let mut builder =
        ResidueBuilder::new([target.shape()[0], target.shape()[1]], base, target.dtype(), digest);
    let mut report = merge_slab(target, source, deltas, &options)?;
    if let Some(slab) = report.residue.take() {
        builder.push(&slab)?;
    }
    Ok((report, builder.finish()?))
}

/// Refuses what does not fit; gives back how the call runs and the scalings in binary32.
pub(crate) fn check_slab(
    target: &TensorRef<'_>,
    source: Option<&TensorRef<'_>>,
    deltas: &[Delta<'_>],
    options: &SlabOptions<'_>,
) -> Result<(CallSettings, Vec<f32>), Error> {
    let call = Options { scaling: 1.0, num_threads: options.num_threads, tier: options.tier };
    let settings = call.settings()?;
    let written = Named { name: if source.is_some() { "out" } else { "weight" }, tensor: target };
    let read = Named { name: "weight", tensor: source.unwrap_or(target) };
    let shape = "[out_features, in_features]";
    let (rows, _) = matrix(read, shape)?;
    matrix(written, shape)?;
    if target.shape() != read.tensor.shape() {
        same((0, 1), written, read, "both must be the same")?;
    }
    if source.is_some() {
        apart(written, read)?;
    }
    let mut scalings = Vec::with_capacity(deltas.len());
    for delta in deltas {
        scalings.push(delta.checked_scaling()?);
        check(read, written, &delta.lora_a, &delta.lora_b)?;
    }
    if let Some(magnitude) = &options.magnitude {
        if options.residue {
            return Err(Error::ResidueMagnitude);
        }
        check_magnitude(Named { name: "magnitude", tensor: magnitude }, rows, read)?;
        apart(written, Named { name: "magnitude", tensor: magnitude })?;
    }
    Ok((settings, scalings))
}

fn check_magnitude(magnitude: Named<'_, '_>, rows: usize, weight: Named<'_, '_>) -> Result<(), Error> {
    let found = match *magnitude.tensor.shape() {
        [count] | [count, 1] => Some(count),
        _ => None,
    };
    if found != Some(rows) {
        same(
            (0, 1),
            magnitude,
            weight,
            "a magnitude is one number for each of the weight's rows (out_features)",
        )?;
    }
    match magnitude.tensor.dtype() {
        DType::F32 | DType::F16 | DType::BF16 => Ok(()),
        dtype => Err(Error::DType { name: magnitude.name, dtype }),
    }
}
