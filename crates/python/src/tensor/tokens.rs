//! Token ids, read in pieces: a private copy of a whole prompt would cost more than hashing it.
//!
//! Each id is read once, into memory of our own, and checked there; what another thread writes meanwhile can change
//! which ids are read, and nothing else.

use infer_accel_kvcache::KvCacheError;
use infer_accel_kvcache::hash::{check_signed_ids, narrow_token_ids};
use infer_accel_tensor::{DType, ErrorKind, TensorRef};
use pyo3::inspect::PyStaticExpr;
use pyo3::prelude::*;
use pyo3::types::{PyList, PyRange, PyTuple};

use super::{IntTable, TensorArg};
use crate::errors::NativeError;

/// Ids of 64 bits that are read at a time.
const PIECE: usize = 128;

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
        match self {
            Self::Copied(values) => narrow_token_ids(&values[position..position + out.len()], position, out),
            Self::Dense(view) if view.dtype() == DType::I32 => {
                read_dense::<u32>(view, position, out);
                check_signed_ids(out, position)
            }
            Self::Dense(view) => {
                let mut piece = [0_i64; PIECE];
                let mut at = position;
                for out in out.chunks_mut(PIECE) {
                    let piece = &mut piece[..out.len()];
                    read_dense(view, at, piece);
                    narrow_token_ids(piece, at, out)?;
                    at += out.len();
                }
                Ok(())
            }
        }
    }
}

/// Numbers of which any bits are a value.
trait AnyBits: Copy {}
impl AnyBits for u32 {}
impl AnyBits for i64 {}

/// Copies ids out of memory that others may write meanwhile, as numbers of the same width.
fn read_dense<T: AnyBits>(view: &TensorRef<'_>, position: usize, out: &mut [T]) {
    assert!(position + out.len() <= view.len(), "a caller asked for ids behind the last one");
    assert!(view.dtype().size() == size_of::<T>(), "`of` lets no third type in");
    let base = view.as_ptr().cast::<T>();
    for (index, value) in out.iter_mut().enumerate() {
        // SAFETY: the view is contiguous and of numbers of this width, the index is below its length, and any bits are
        // a value of this type.
        *value = unsafe { base.add(position + index).read_unaligned() };
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
