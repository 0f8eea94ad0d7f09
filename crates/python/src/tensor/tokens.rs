//! Token ids, read in pieces: a private copy of a whole prompt would cost more than hashing it.
//!
//! Each id is read once, into memory of our own, and checked there; what another thread writes meanwhile can change
//! which ids are read, and nothing else.

use infer_accel_kvcache::KvCacheError;
use infer_accel_kvcache::hash::narrow_token_ids;
use infer_accel_tensor::{DType, ErrorKind, TensorRef};
use pyo3::inspect::PyStaticExpr;
use pyo3::prelude::*;
use pyo3::types::{PyList, PyRange, PyTuple};

use super::{IntTable, TensorArg};
use crate::errors::NativeError;

/// Token ids of one prompt, as Python passed them.
pub(crate) enum TokenIds<'py> {
    /// Contiguous int32 or int64.
    Dense(TensorArg<'py>),
    /// Anything else, copied.
    Copied(Vec<i64>),
}

/// The same without the interpreter's lock.
#[derive(Clone, Copy)]
pub(crate) enum TokenView<'a> {
    Dense(TensorRef<'a>),
    Copied(&'a [i64]),
}

impl TokenIds<'_> {
    pub(crate) fn view(&self) -> Result<TokenView<'_>, NativeError> {
        Ok(match self {
            Self::Dense(tensor) => TokenView::Dense(tensor.view()?),
            Self::Copied(values) => TokenView::Copied(values),
        })
    }
}

impl TokenView<'_> {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Dense(view) => view.len(),
            Self::Copied(values) => values.len(),
        }
    }

    /// Reads the ids from `position` on, as many as `out` holds; the caller has seen that there are as many.
    pub(crate) fn read(&self, position: usize, out: &mut [u32]) -> Result<(), KvCacheError> {
        const PIECE: usize = 512;
        let mut piece = [0_i64; PIECE];
        for (index, out) in out.chunks_mut(PIECE).enumerate() {
            let at = position + index * PIECE;
            let piece = &mut piece[..out.len()];
            match self {
                Self::Dense(view) => read_dense(view, at, piece),
                Self::Copied(values) => piece.copy_from_slice(&values[at..at + out.len()]),
            }
            narrow_token_ids(piece, at, out)?;
        }
        Ok(())
    }
}

fn read_dense(view: &TensorRef<'_>, position: usize, out: &mut [i64]) {
    assert!(position + out.len() <= view.len(), "a caller asked for ids behind the last one");
    if view.dtype() == DType::I64 {
        let base = view.as_ptr().cast::<i64>();
        for (index, value) in out.iter_mut().enumerate() {
            // SAFETY: the view is contiguous and of this type, and the index is below its length.
            *value = unsafe { base.add(position + index).read_unaligned() };
        }
    } else {
        let base = view.as_ptr().cast::<i32>();
        for (index, value) in out.iter_mut().enumerate() {
            // SAFETY: as above; `of` lets no third type in.
            *value = unsafe { base.add(position + index).read_unaligned() }.into();
        }
    }
}

impl<'a, 'py> FromPyObject<'a, 'py> for TokenIds<'py> {
    type Error = PyErr;

    const INPUT_TYPE: PyStaticExpr = <IntTable as FromPyObject<'a, 'py>>::INPUT_TYPE;

    fn extract(object: Borrowed<'a, 'py, PyAny>) -> Result<Self, PyErr> {
        let is_sequence = object.is_instance_of::<PyList>()
            || object.is_instance_of::<PyTuple>()
            || object.is_instance_of::<PyRange>();
        if !is_sequence && let Ok(tensor) = TensorArg::extract(object) {
            let view = tensor.view().map_err(NativeError::from)?;
            let is_served = matches!(view.dtype(), DType::I32 | DType::I64);
            if is_served && view.shape().len() == 1 && view.is_contiguous() {
                return Ok(Self::Dense(tensor));
            }
        }
        let table = IntTable::extract(object)?;
        if table.shape().len() != 1 {
            return Err(NativeError::new(
                ErrorKind::Shape,
                "shape.token_ids",
                format!(
                    "token_ids of shape {:?} came; pass the ids of one prompt, in one dimension",
                    table.shape()
                ),
            )
            .into());
        }
        Ok(Self::Copied(table.into_values()))
    }
}
