//! Low-rank adapters on a CPU: merged into weights and applied to activations, at the speed of memory.
//!
//! * [`merge_weights`] and [`merge_weights_into`]: `weight + scaling · lora_b · lora_a`, each element defined to the
//!   bit for every processor and number of threads.
//! * [`merge_slab`]: the same for several adapters, for slabs of rows of weights that do not fit in memory, into another
//!   format, with stochastic rounding, `DoRA` magnitudes, statistics and a residue.
//! * [`merge_quantized`]: the same for weights of eight or four bits with scales.
//! * [`unmerge_weights`] and [`Residue`]: the bits before a merge.
//! * [`combine()`]: several adapters made into one.
//! * [`apply_adapter`]: `out += scaling · (x · lora_aᵀ) · lora_bᵀ`, within a stated bound; a token's result does not
//!   depend on its neighbours.
//!
//! * [`AdapterStore`]: adapters in memory, packed, bounded by bytes, replaced while others read.
//!
//! The arithmetic lives in a private module that has a portable tier and tiers for AVX2 and AVX-512; see
//! [`infer_accel_tensor::simd`].

pub mod adapter;
mod apply;
mod apply_many;
mod apply_stack;
mod check;
pub mod checkpoint;
mod combine;
mod error;
mod kernels;
mod many;
mod merge;
pub mod problem;
mod quantized;
mod residue;
pub mod safetensors;
mod serving_error;
mod slab;
mod statistics;
mod store;
mod unmerge;

pub use apply::apply_adapter;
pub use apply_many::{NO_ADAPTER, RunOptions, apply_adapters};
pub use apply_stack::{AdapterStack, PackedLayer, StackedAdapter};
pub use check::Options;
pub use combine::{Method, MethodSettings, combine};
pub use error::Error;
pub use many::merge_many;
pub use merge::{merge_weights, merge_weights_into};
pub use quantized::{QuantizationReport, QuantizedError, QuantizedOptions, ScaleRule, merge_quantized};
pub use residue::{AdapterDigest, KERNEL_REVISION, Residue, ResidueBuilder, SlabResidue, UndoCursor};
pub use serving_error::ServingError;
pub use slab::{Delta, Rounding, SlabOptions, SlabReport, merge_slab, merge_with_residue};
pub use statistics::MergeStatistics;
pub use store::{AdapterStore, LayerSource, StoreStats, StoredAdapter};
pub use unmerge::unmerge_weights;
