//! What every operation asks of its arguments before it touches them.

use crate::Error;
use crate::kernels::CallSettings;
use infer_accel_tensor::simd::Tier;
use infer_accel_tensor::{DType, TensorRef, simd, threads};

/// How a call runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// What the product of the adapter's matrices is multiplied by: `alpha / rank`, or `alpha / √rank`. It is rounded
    /// to binary32 once, and must be finite after that.
    pub scaling: f64,
    /// The most threads to use; `None` is the default of [`threads::default_threads`]. Results do not depend on it.
    pub num_threads: Option<usize>,
    /// The highest instruction tier to use; `None` is [`simd::tier`]. Results do not depend on it.
    pub tier: Option<Tier>,
}

impl Default for Options {
    fn default() -> Self {
        Self { scaling: 1.0, num_threads: None, tier: None }
    }
}

impl Options {
    pub(crate) fn settings(&self) -> Result<CallSettings, Error> {
        let scaling = self.scaling as f32;
        if !scaling.is_finite() {
            return Err(Error::Scaling { scaling: self.scaling });
        }
        let threads = threads::resolve(self.num_threads)?;
        Ok(CallSettings { scaling, threads, tier: self.tier.unwrap_or_else(simd::tier) })
    }
}

/// An argument with the name that the caller knows it by.
#[derive(Clone, Copy)]
pub(crate) struct Named<'a, 'b> {
    pub(crate) name: &'static str,
    pub(crate) tensor: &'b TensorRef<'a>,
}

/// The two dimensions of a matrix of one of the three formats.
pub(crate) fn matrix(argument: Named<'_, '_>, expected: &'static str) -> Result<(usize, usize), Error> {
    let Named { name, tensor } = argument;
    let &[rows, columns] = tensor.shape() else {
        return Err(Error::NotMatrix { name, shape: tensor.shape().to_vec(), expected });
    };
    match tensor.dtype() {
        DType::F32 | DType::F16 | DType::BF16 => Ok((rows, columns)),
        dtype => Err(Error::DType { name, dtype }),
    }
}

/// Refuses two sizes that should be equal.
pub(crate) fn same(
    sizes: (usize, usize),
    argument: Named<'_, '_>,
    other: Named<'_, '_>,
    rule: &'static str,
) -> Result<(), Error> {
    if sizes.0 == sizes.1 {
        return Ok(());
    }
    Err(Error::Shape {
        name: argument.name,
        shape: argument.tensor.shape().to_vec(),
        other: other.name,
        other_shape: other.tensor.shape().to_vec(),
        rule,
    })
}

/// Refuses a target of another format.
pub(crate) fn same_dtype(argument: Named<'_, '_>, other: Named<'_, '_>) -> Result<(), Error> {
    let (dtype, other_dtype) = (argument.tensor.dtype(), other.tensor.dtype());
    if dtype == other_dtype {
        return Ok(());
    }
    Err(Error::DTypeMismatch { name: argument.name, dtype, other: other.name, other_dtype })
}

/// Refuses a target that shares memory with something that is read.
pub(crate) fn apart(target: Named<'_, '_>, read: Named<'_, '_>) -> Result<(), Error> {
    if target.tensor.overlaps(read.tensor) {
        return Err(Error::Overlap { target: target.name, name: read.name });
    }
    Ok(())
}
