//! Flat lists of token ids, copied once and as narrow as a vocabulary has them.

use infer_accel_tensor::{DType, ErrorKind, TensorRef};
use pyo3::inspect::PyStaticExpr;
use pyo3::prelude::*;
use pyo3::types::{PyList, PyRange, PyTuple};

use super::{IntTable, TensorArg};
use crate::errors::NativeError;

/// A private copy of token ids.
#[derive(Default)]
pub(crate) struct IdList {
    ids: Vec<u32>,
    /// The first number that is no id of any vocabulary.
    refused: Option<i64>,
}

impl IdList {
    /// The ids, or the first number that cannot be one.
    pub(crate) fn into_ids(self) -> Result<Vec<u32>, i64> {
        self.refused.map_or(Ok(self.ids), Err)
    }

    /// The ids of many lists, and where each of them begins and ends.
    pub(crate) fn joined(lists: &Bound<'_, PyAny>) -> PyResult<(Self, Vec<i64>)> {
        let (mut all, mut offsets) = (Self::default(), vec![0]);
        for list in lists.try_iter()? {
            all.append(list?.as_borrowed())?;
            offsets.push(all.ids.len() as i64);
        }
        Ok((all, offsets))
    }

    fn append(&mut self, object: Borrowed<'_, '_, PyAny>) -> PyResult<()> {
        let is_sequence = object.is_instance_of::<PyList>()
            || object.is_instance_of::<PyTuple>()
            || object.is_instance_of::<PyRange>();
        if !is_sequence && let Ok(tensor) = TensorArg::extract(object) {
            let view = tensor.view().map_err(NativeError::from)?;
            let is_served = matches!(view.dtype(), DType::I32 | DType::U32);
            if is_served && view.shape().len() == 1 && view.is_contiguous() {
                self.append_dense(&view);
                return Ok(());
            }
        }
        let table = IntTable::extract(object)?;
        if table.shape().len() != 1 {
            return Err(NativeError::new(
                ErrorKind::Shape,
                "shape.ids",
                format!("ids of shape {:?} came; pass one axis of ids, or use decode_batch", table.shape()),
            )
            .into());
        }
        for &value in table.values() {
            // What follows a number that is refused is not looked at.
            match u32::try_from(value) {
                Ok(id) => self.ids.push(id),
                Err(_) => self.refused = self.refused.or(Some(value)),
            }
        }
        Ok(())
    }

    /// Numbers of 32 bits, of which any bits are a value.
    fn append_dense(&mut self, view: &TensorRef<'_>) {
        let (base, start) = (view.as_ptr().cast::<u32>(), self.ids.len());
        // SAFETY: the view is contiguous and of numbers of 32 bits, so each index below its length is one. Each is read
        // once: others may write meanwhile.
        self.ids.extend((0..view.len()).map(|index| unsafe { base.add(index).read_unaligned() }));
        let new = self.ids.get(start..).unwrap_or_default();
        let bits = new.iter().fold(0, |all, id| all | id);
        if view.dtype() == DType::I32 && bits.cast_signed() < 0 && self.refused.is_none() {
            self.refused = new.iter().map(|id| i64::from(id.cast_signed())).find(|id| *id < 0);
        }
    }
}

impl<'a, 'py> FromPyObject<'a, 'py> for IdList {
    type Error = PyErr;

    const INPUT_TYPE: PyStaticExpr = <IntTable as FromPyObject<'a, 'py>>::INPUT_TYPE;

    fn extract(object: Borrowed<'a, 'py, PyAny>) -> Result<Self, PyErr> {
        let mut list = Self::default();
        list.append(object)?;
        Ok(list)
    }
}
