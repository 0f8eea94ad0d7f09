//! The ground that every part of infer-accel stands on.
//!
//! * [`DType`] and [`float`]: number formats and their conversions.
//! * [`TensorRef`] and [`TensorMut`]: strided views of memory that somebody else owns.
//! * [`simd`]: which instruction tier runs, detected once, lowered by `INFER_ACCEL_SIMD`.
//! * [`threads`]: a private thread pool that survives a fork.
//! * [`files`]: files that somebody named, opened without waiting.
//! * [`machine`]: what this machine can do at best, for benchmarks.
//! * [`ErrorKind`]: what class of error a caller in another language sees.

mod buffer;
mod dtype;
mod error;
pub mod files;
pub mod float;
mod layout;
pub mod machine;
pub mod simd;
pub mod threads;
mod view;

pub use buffer::Buffer;
pub use dtype::{DType, Element};
pub use error::{ErrorKind, TensorError};
pub use layout::{Layout, MAX_DIMS};
pub use view::{TensorMut, TensorRef};
