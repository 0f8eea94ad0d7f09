//! Paged KV-cache blocks: naming them by hash, lending them out, and moving their pages.
//!
//! - [`hash`] names a full block of tokens by the hash of its prefix, byte for byte as vLLM does.
//! - [`copy`] moves pages between tensors of any layout.
//! - [`pool`] lends the blocks of a cache to requests, counts references, keeps a prefix index and evicts.
//! - [`host`] is memory for pages.
//! - [`nonfinite`] finds pages that hold a NaN or an infinity, and makes pages blank.
//! - [`tier`] keeps pages on disk.
//! - [`manager`] runs whole batches of sequences on a pool: tables, slots, forks.
//! - [`replay`] sends recorded requests through a pool.
//! - [`events`] says what a pool stored and removed.
//!
//! The crate knows nothing of Python. `docs/design/kvcache.md` explains the structures.

pub mod copy;
mod error;
pub mod events;
pub mod hash;
pub mod host;
mod kernels;
pub mod manager;
pub mod nonfinite;
pub mod pool;
pub mod replay;
pub mod tier;

pub use error::KvCacheError;
