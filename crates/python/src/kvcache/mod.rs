//! Paged KV-cache blocks: see the typed module `infer_accel.kvcache`.

mod cache;
mod copy;
mod events;
mod extra_keys;
mod hash;
mod host;
mod manager;
mod nonfinite;
mod pool;
mod prompt;
mod replay;
mod tier;

use infer_accel_kvcache::KvCacheError;

use crate::errors::NativeError;

impl From<KvCacheError> for NativeError {
    fn from(error: KvCacheError) -> Self {
        let native = Self::new(error.kind(), error.code(), error.to_string());
        match error {
            KvCacheError::OutOfBlocks { needed, free } | KvCacheError::PinBudget { needed, left: free } => {
                native.with("needed", needed).with("free", free)
            }
            _ => native,
        }
    }
}

/// Paged KV-cache blocks.
#[pyo3::pymodule]
pub(crate) mod kvcache {
    #[pymodule_export]
    use super::cache::TieredCache;
    #[pymodule_export]
    use super::copy::{page_copy, page_gather, page_scatter};
    #[pymodule_export]
    use super::hash::{hash_blocks, none_hash, xxh3_128};
    #[pymodule_export]
    use super::host::HostPool;
    #[pymodule_export]
    use super::manager::BlockManager;
    #[pymodule_export]
    use super::nonfinite::{scan_nonfinite, scrub};
    #[pymodule_export]
    use super::pool::BlockPool;
    #[pymodule_export]
    use super::prompt::{hash_chat, hash_prompt};
    #[pymodule_export]
    use super::replay::{Trace, replay};
    #[pymodule_export]
    use super::tier::DiskTier;
}
