//! Exact tokenization and token counting for LLM servers.

mod error;

pub use error::{Result, TokenizeError};
