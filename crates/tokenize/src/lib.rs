//! Exact tokenization and token counting for LLM servers.
//!
//! A [`Tokenizer`] is read from a Hugging Face `tokenizer.json`, a SentencePiece model or tiktoken ranks. Byte-level
//! BPE, the family of GPT-2, cl100k, o200k, Llama 3 and Qwen, and SentencePiece's BPE run on a native pipeline; every
//! other `tokenizer.json` runs on the `tokenizers` crate. Both give the ids of the family's reference, one by one.
//!
//! ```no_run
//! use infer_accel_tokenize::{EncodeOptions, Tokenizer};
//!
//! let tokenizer = Tokenizer::from_file("tokenizer.json".as_ref())?;
//! let ids = tokenizer.encode("Hello, world!", EncodeOptions::default())?;
//! assert_eq!(tokenizer.count("Hello, world!", EncodeOptions::default())?, ids.len());
//! # Ok::<(), infer_accel_tokenize::TokenizeError>(())
//! ```

mod borders;
pub mod bpe;
mod buffers;
mod cache;
pub mod chat;
mod count;
mod decode;
mod encode;
mod error;
mod fallback;
mod frame;
mod hot;
mod kernels;
mod limits;
mod load;
mod locality;
mod long_table;
mod native;
mod offsets;
pub mod pretokenize;
mod prompt_cache;
mod segments;
mod sentencepiece;
mod session;
mod side;
mod spacing;
mod special;
mod stream;
mod tasks;
mod together;
mod tokenizer;
mod vocabulary;
mod workers;

pub use decode::{InvalidUtf8, TextBatch};
pub use encode::TokenBatch;
pub use error::{Result, TokenizeError};
pub use kernels::text_of;
pub use load::TiktokenOptions;
pub use offsets::{Located, in_characters};
pub use prompt_cache::{PromptCache, PromptCacheStats};
pub use segments::Segment;
pub use session::Session;
pub use stream::StreamDecoder;
pub use tokenizer::{EncodeOptions, Tokenizer};
pub use vocabulary::MAX_ID;
