//! Small integer tables: ids and mappings, copied privately before anything else happens.
//!
//! Another thread could change such a table after it was checked, so this is the one kind of argument that is
//! copied. Tables are small beside the pages and tokens that they name.

use infer_accel_tensor::{DType, ErrorKind, TensorRef};
use pyo3::inspect::PyStaticExpr;
use pyo3::prelude::*;
use pyo3::types::{PyInt, PyList};
use pyo3::{type_hint_identifier, type_hint_subscript, type_hint_union};

use super::TensorArg;
use crate::errors::NativeError;

/// A private copy of an integer table.
pub(crate) struct IntTable {
    values: Vec<i64>,
    shape: Vec<usize>,
}

impl IntTable {
    /// The numbers in row-major order.
    pub(crate) fn values(&self) -> &[i64] {
        &self.values
    }

    /// Entries of each axis.
    pub(crate) fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The numbers, given away.
    pub(crate) fn into_values(self) -> Vec<i64> {
        self.values
    }

    fn from_view(view: &TensorRef<'_>) -> Result<Self, NativeError> {
        let mut values = Vec::new();
        // A few bytes with strides of zero can say that they are any number of ids.
        values.try_reserve_exact(view.len()).map_err(|_| no_memory(view.len()))?;
        match view.dtype() {
            DType::I64 if view.is_contiguous() => {
                copy_dense::<i64>(view, &mut values);
                Ok(())
            }
            DType::I32 if view.is_contiguous() => {
                copy_dense::<i32>(view, &mut values);
                Ok(())
            }
            DType::I64 => copy(view, &mut values, |value: i64| Some(value)),
            DType::I32 => copy(view, &mut values, |value: i32| Some(value.into())),
            DType::I16 => copy(view, &mut values, |value: i16| Some(value.into())),
            DType::I8 => copy(view, &mut values, |value: i8| Some(value.into())),
            DType::U64 => copy(view, &mut values, |value: u64| i64::try_from(value).ok()),
            DType::U32 => copy(view, &mut values, |value: u32| Some(value.into())),
            DType::U16 => copy(view, &mut values, |value: u16| Some(value.into())),
            DType::U8 => copy(view, &mut values, |value: u8| Some(value.into())),
            other => return Err(not_integers(other.name())),
        }?;
        Ok(Self { values, shape: view.shape().to_vec() })
    }

    /// A flat list of Python's ints, the common case; `None` for anything else.
    fn from_flat_list(list: &Bound<'_, PyList>) -> PyResult<Option<Self>> {
        let mut values = Vec::with_capacity(list.len());
        for item in list {
            if !item.is_exact_instance_of::<PyInt>() {
                return Ok(None);
            }
            values.push(item.extract::<i64>().map_err(|_| out_of_range(&item.to_string()))?);
        }
        Ok(Some(Self { shape: vec![values.len()], values }))
    }
}

impl<'a, 'py> FromPyObject<'a, 'py> for IntTable {
    type Error = PyErr;

    const INPUT_TYPE: PyStaticExpr = type_hint_union!(
        type_hint_identifier!("infer_accel._typing", "Tensor"),
        type_hint_subscript!(
            type_hint_identifier!("collections.abc", "Sequence"),
            type_hint_identifier!("builtins", "int")
        ),
        type_hint_subscript!(
            type_hint_identifier!("collections.abc", "Sequence"),
            type_hint_subscript!(
                type_hint_identifier!("collections.abc", "Sequence"),
                type_hint_identifier!("builtins", "int")
            )
        )
    );

    fn extract(object: Borrowed<'a, 'py, PyAny>) -> Result<Self, PyErr> {
        if let Ok(list) = object.cast::<PyList>()
            && let Some(table) = Self::from_flat_list(&list)?
        {
            return Ok(table);
        }
        if object.is_instance_of::<PyList>() || object.hasattr("__iter__")? && !object.hasattr("__array__")? {
            return Self::from_nested(object);
        }
        let tensor = TensorArg::extract(object)?;
        Ok(Self::from_view(&tensor.view().map_err(NativeError::from)?)?)
    }
}

impl IntTable {
    /// Nested lists, tuples and ranges: numpy knows how to read them.
    fn from_nested(object: Borrowed<'_, '_, PyAny>) -> PyResult<Self> {
        let array = object
            .py()
            .import("numpy")?
            .call_method1("asarray", (object,))
            .map_err(|error| not_integers(&format!("something that is no table ({error})")))?;
        if array.getattr("size")?.extract::<usize>()? == 0 {
            // numpy gives an empty list a float format.
            return Ok(Self { values: Vec::new(), shape: array.getattr("shape")?.extract()? });
        }
        if array.getattr("dtype")?.getattr("kind")?.extract::<char>()? == 'O' {
            return Err(not_integers("Python objects (uneven rows, or numbers beyond 64 bits)").into());
        }
        let tensor = TensorArg::extract(array.as_borrowed())?;
        Ok(Self::from_view(&tensor.view().map_err(NativeError::from)?)?)
    }
}

/// The common case, without a branch a number: token ids come by the ten thousand.
fn copy_dense<T: Into<i64>>(view: &TensorRef<'_>, values: &mut Vec<i64>) {
    let base = view.as_ptr().cast::<T>();
    // SAFETY: the view is contiguous, so each index below its length is an element.
    values.extend((0..view.len()).map(|index| unsafe { base.add(index).read_unaligned() }.into()));
}

fn copy<T: Copy>(
    view: &TensorRef<'_>,
    values: &mut Vec<i64>,
    convert: impl Fn(T) -> Option<i64>,
) -> Result<(), NativeError> {
    let base = view.as_ptr().cast::<T>();
    let read = |offset: isize| {
        // SAFETY: every offset comes from the view's own shape and strides.
        let value = unsafe { base.wrapping_offset(offset).read_unaligned() };
        convert(value).ok_or_else(|| out_of_range("a number above 2^63 - 1"))
    };
    if view.is_contiguous() {
        for index in 0..view.len() {
            values.push(read(index as isize)?);
        }
        return Ok(());
    }
    let (shape, strides) = (view.shape(), view.strides());
    let mut index = vec![0_usize; shape.len()];
    for _ in 0..view.len() {
        let offset = index.iter().zip(strides).map(|(&at, &stride)| at as isize * stride).sum();
        values.push(read(offset)?);
        for (at, &extent) in index.iter_mut().zip(shape).rev() {
            *at += 1;
            if *at < extent {
                break;
            }
            *at = 0;
        }
    }
    Ok(())
}

fn not_integers(what: &str) -> NativeError {
    NativeError::new(
        ErrorKind::DType,
        "dtype.ids",
        format!("{what} came where ids are expected; pass integers: an array, a tensor or a list of int"),
    )
}

fn no_memory(count: usize) -> NativeError {
    NativeError::new(
        ErrorKind::Argument,
        "argument.memory",
        format!("{count} ids came, and there is no memory for a copy of them; pass fewer at a time"),
    )
}

fn out_of_range(what: &str) -> NativeError {
    NativeError::new(
        ErrorKind::Id,
        "id.range",
        format!("{what} came as an id; ids are 64-bit signed integers"),
    )
}
