//! Which codes and scales a weight has, told by formats and shapes.

use super::QuantizedError;
use crate::Error;
use crate::kernels::{Coding, ScaleFormat};
use infer_accel_tensor::{DType, TensorRef};

/// Sides of a square block of codes of eight bits that share a scale.
pub(crate) const BLOCK: usize = 128;

/// Columns that share a scale of MXFP4.
const MX_BLOCK: usize = 32;

/// Columns that share a scale of NVFP4.
const NV_BLOCK: usize = 16;

/// How a weight is quantized.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Scheme {
    pub(crate) coding: Coding,
    /// Rows and columns of elements.
    pub(crate) shape: [usize; 2],
    /// Rows and columns that share a scale.
    pub(crate) block: [usize; 2],
    /// Scales down and across.
    pub(crate) counts: [usize; 2],
    /// What every scale is multiplied by.
    pub(crate) factor: f32,
}

impl Scheme {
    /// The scheme of two tensors.
    pub(crate) fn of(
        weight: &TensorRef<'_>,
        scale: &TensorRef<'_>,
        global_scale: Option<f32>,
    ) -> Result<Self, Error> {
        let &[rows, columns] = weight.shape() else {
            let (name, expected) = ("weight", "[out_features, in_features]");
            return Err(Error::NotMatrix { name, shape: weight.shape().to_vec(), expected });
        };
        Self::from_formats((weight.dtype(), [rows, columns]), (scale.dtype(), scale.shape()), global_scale)
            .map_err(Error::from)
    }

    /// The scheme of two tensors, each given by its format and its shape.
    pub(crate) fn from_formats(
        (dtype, stored): (DType, [usize; 2]),
        (scale_dtype, scale_shape): (DType, &[usize]),
        global_scale: Option<f32>,
    ) -> Result<Self, QuantizedError> {
        let coding = match dtype {
            DType::U8 => Coding::E2M1,
            other => Coding::of(other).ok_or(QuantizedError::Coding { dtype: other })?,
        };
        let format =
            ScaleFormat::of(coding, scale_dtype).ok_or(QuantizedError::ScaleDType { dtype, scale_dtype })?;
        let is_global = format == ScaleFormat::E4M3;
        if is_global != global_scale.is_some() {
            return Err(QuantizedError::GlobalScale { is_missing: is_global });
        }
        let factor = global_scale.unwrap_or(1.0);
        if !(factor.is_normal() && factor > 0.0) {
            return Err(QuantizedError::GlobalScaleValue { scale: factor });
        }
        let shape = [stored[0], stored[1].saturating_mul(coding.in_byte())];
        let block =
            block_of(coding, format, shape, scale_shape).ok_or_else(|| QuantizedError::ScaleShape {
                shape: scale_shape.to_vec(),
                weight: shape,
                is_packed: coding.in_byte() == 2,
            })?;
        let counts = [shape[0].div_ceil(block[0]), shape[1].div_ceil(block[1])];
        Ok(Self { coding, shape, block, counts, factor })
    }
}

/// The rows and columns that share a scale, if there are as many scales as such blocks.
fn block_of(coding: Coding, format: ScaleFormat, shape: [usize; 2], scales: &[usize]) -> Option<[usize; 2]> {
    let [rows, columns] = shape;
    if coding == Coding::E2M1 {
        let across = if format == ScaleFormat::E8M0 { MX_BLOCK } else { NV_BLOCK };
        let fits = columns.is_multiple_of(across) && scales == [rows, columns / across];
        return fits.then_some([1, across]);
    }
    match *scales {
        // With no elements there are no blocks, and one scale that says nothing.
        _ if rows == 0 || columns == 0 => None,
        _ if scales.iter().all(|&extent| extent == 1) => Some([rows, columns]),
        [count] | [count, 1] if count == rows => Some([1, columns]),
        [down, across] if [down, across] == [rows.div_ceil(BLOCK), columns.div_ceil(BLOCK)] => {
            Some([BLOCK, BLOCK])
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(shape: [usize; 2], scales: &[usize]) -> Option<[usize; 2]> {
        let scheme = Scheme::from_formats((DType::F8E4M3, shape), (DType::F32, scales), None);
        scheme.ok().map(|scheme| scheme.block)
    }

    #[test]
    fn layouts_are_told_by_shapes() {
        assert_eq!(block([200, 300], &[]), Some([200, 300]));
        assert_eq!(block([200, 300], &[1]), Some([200, 300]));
        assert_eq!(block([200, 300], &[1, 1]), Some([200, 300]));
        assert_eq!(block([200, 300], &[200]), Some([1, 300]));
        assert_eq!(block([200, 300], &[200, 1]), Some([1, 300]));
        assert_eq!(block([200, 300], &[2, 3]), Some([128, 128]));
        for other in [&[2, 2][..], &[300], &[1, 300], &[200, 300], &[2, 3, 1], &[0], &[1, 200]] {
            assert_eq!(block([200, 300], other), None, "{other:?}");
        }
    }

    #[test]
    fn four_bits_are_told_by_the_format_of_the_scales() {
        let of = |scale, shape: &[usize], global| {
            Scheme::from_formats((DType::U8, [3, 32]), (scale, shape), global)
        };
        assert_eq!(of(DType::U8, &[3, 2], None).unwrap().block, [1, 32]);
        assert_eq!(of(DType::F8E4M3, &[3, 4], Some(0.5)).unwrap().block, [1, 16]);
        assert!(matches!(
            of(DType::F8E4M3, &[3, 4], None),
            Err(QuantizedError::GlobalScale { is_missing: true })
        ));
        assert!(matches!(
            of(DType::U8, &[3, 2], Some(1.0)),
            Err(QuantizedError::GlobalScale { is_missing: false })
        ));
        assert!(matches!(of(DType::F32, &[3, 2], None), Err(QuantizedError::ScaleDType { .. })));
        assert!(matches!(of(DType::U8, &[3, 4], None), Err(QuantizedError::ScaleShape { .. })));
        for scale in [0.0, -1.0, f32::NAN, f32::INFINITY] {
            let found = of(DType::F8E4M3, &[3, 4], Some(scale));
            assert!(matches!(found, Err(QuantizedError::GlobalScaleValue { .. })));
        }
    }
}
