//! Low-rank adapters: see the typed module `infer_accel.lora`.

mod adapter;
mod apply;
mod checkpoint;
mod combine;
mod merge;
mod quantized;
mod residue;
mod store;

use infer_accel_lora::{Error, ServingError};
use infer_accel_tensor::TensorRef;

use crate::errors::NativeError;

impl From<Error> for NativeError {
    fn from(error: Error) -> Self {
        let native = Self::new(error.kind(), error.code(), error.to_string());
        match error {
            Error::Serving(ServingError::StoreFull { needed, free, pinned, .. }) => {
                native.with("needed", needed).with("free", free).with("pinned", pinned)
            }
            _ => native,
        }
    }
}

/// About how many bytes of memory traffic take as long as `rows · columns · rank` multiplications.
fn multiplication_bytes(rows: &TensorRef<'_>, columns: usize) -> usize {
    rows.len().saturating_mul(columns) / 4
}

/// Low-rank adapters.
#[pyo3::pymodule]
pub(crate) mod lora {
    #[pymodule_export]
    use super::adapter::{
        Adapter, AdapterLayer, AdapterLedger, AdapterTensor, AdapterUpdate, examine_adapter, read_headers,
    };
    #[pymodule_export]
    use super::apply::{AdapterStack, apply_adapter, apply_adapters};
    #[pymodule_export]
    use super::checkpoint::{merge_checkpoint, unmerge_checkpoint};
    #[pymodule_export]
    use super::combine::combine;
    #[pymodule_export]
    use super::merge::{merge_many, merge_weights, unmerge_weights};
    #[pymodule_export]
    use super::quantized::{QuantizationReport, merge_quantized};
    #[pymodule_export]
    use super::residue::Residue;
    #[pymodule_export]
    use super::store::AdapterStore;
}
