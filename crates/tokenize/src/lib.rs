//! Exact tokenization and token counting for LLM servers.

pub mod bpe;
mod error;
pub mod pretokenize;

pub use error::{Result, TokenizeError};
