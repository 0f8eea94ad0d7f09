//! Python's ints for ids, ready-made.

use pyo3::prelude::*;
use pyo3::types::{PyInt, PyList};

use crate::tensor::prefetch;

/// Ids that are asked for together.
const AHEAD: usize = 64;

/// An int for each id.
pub(super) struct Numbers {
    ints: Vec<Py<PyInt>>,
}

impl Numbers {
    /// The ints from 0 to `size`, the last one left out.
    pub(super) fn new(py: Python<'_>, size: usize) -> PyResult<Self> {
        let make = |id: usize| Ok(id.into_pyobject(py).map_err(PyErr::from)?.unbind());
        Ok(Self { ints: (0..size).map(make).collect::<PyResult<_>>()? })
    }

    /// The ids as a list.
    pub(super) fn list<'py>(&self, py: Python<'py>, ids: &[u32]) -> PyResult<Bound<'py, PyList>> {
        let number = |(place, id): (usize, &u32)| {
            if place.is_multiple_of(AHEAD) {
                self.ask(ids.get(place..).unwrap_or_default());
            }
            match self.ints.get(*id as usize) {
                Some(int) => int.bind(py).clone(),
                None => PyInt::new(py, *id),
            }
        };
        PyList::new(py, ids.iter().enumerate().map(number))
    }

    /// Asks for the memory of the next ints. Their reference counts lie all over it: one after the other they would be
    /// what a list costs.
    fn ask(&self, ids: &[u32]) {
        let next = ids.get(..AHEAD).unwrap_or(ids);
        for id in next {
            prefetch(self.ints.as_ptr().wrapping_add(*id as usize));
        }
        for int in next.iter().filter_map(|id| self.ints.get(*id as usize)) {
            prefetch(int.as_ptr());
        }
    }
}
