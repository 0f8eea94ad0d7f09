//! Tokenizers: see the typed module `infer_accel.tokenize`.

mod arguments;
pub(crate) mod chat;
mod decoding;
mod numbers;
mod prompt_cache;
mod session;
mod stream;
pub(crate) mod tokenizer;

use infer_accel_tokenize::TokenizeError;

use crate::errors::NativeError;

impl From<TokenizeError> for NativeError {
    fn from(error: TokenizeError) -> Self {
        Self::new(error.kind(), error.code(), error.to_string())
    }
}

/// Text to tokens, counts, and back.
#[pyo3::pymodule]
pub(crate) mod tokenize {
    #[pymodule_export]
    use super::chat::ChatTemplate;
    #[pymodule_export]
    use super::prompt_cache::PromptCache;
    #[pymodule_export]
    use super::session::Session;
    #[pymodule_export]
    use super::stream::StreamDecoder;
    #[pymodule_export]
    use super::tokenizer::Tokenizer;
}
