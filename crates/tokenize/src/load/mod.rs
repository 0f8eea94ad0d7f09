//! From a file's content to a [`Tokenizer`].

pub(crate) mod bpe_model;
pub(crate) mod byte_level;
mod directory;
mod sentencepiece;
pub(crate) mod spaced;
mod tekken;
mod tiktoken;
mod tokenizer_json;
mod well_known;

use std::io::Read as _;
use std::path::Path;

use infer_accel_tensor::files::open_plain;

use crate::error::{Result, TokenizeError};
use crate::tokenizer::Tokenizer;

pub use tiktoken::TiktokenOptions;

/// Files larger than this are no tokenizers; the largest in use have about 35 MB.
const MAX_FILE_BYTES: u64 = 1 << 30;

impl Tokenizer {
    /// Reads a tokenizer from a file and recognises its format by its content: a Hugging Face `tokenizer.json`,
    /// Mistral's `tekken.json`, a SentencePiece model, or tiktoken ranks of a well-known vocabulary.
    ///
    /// # Errors
    /// [`TokenizeError::Read`], [`TokenizeError::UnknownFormat`], or what the loader finds wrong.
    pub fn from_file(path: &Path) -> Result<Self> {
        Self::from_bytes(&read(path)?)
    }

    /// As [`Tokenizer::from_file`], from the content itself.
    ///
    /// # Errors
    /// As for [`Tokenizer::from_file`].
    pub fn from_bytes(content: &[u8]) -> Result<Self> {
        from_bytes_with(content, sentencepiece::Framing::default())
    }

    /// Reads tiktoken ranks: lines of a token in base64 and its rank, which is its id.
    ///
    /// # Errors
    /// [`TokenizeError::Read`], [`TokenizeError::Malformed`], [`TokenizeError::Pattern`],
    /// [`TokenizeError::MissingByte`].
    pub fn from_tiktoken(path: &Path, options: &TiktokenOptions<'_>) -> Result<Self> {
        Self::from_tiktoken_bytes(&read(path)?, options)
    }

    /// As [`Tokenizer::from_tiktoken`], from the content itself.
    ///
    /// # Errors
    /// As for [`Tokenizer::from_tiktoken`].
    pub fn from_tiktoken_bytes(content: &[u8], options: &TiktokenOptions<'_>) -> Result<Self> {
        tiktoken::load(content, options)
    }
}

/// A tokenizer from the content of a file; `framing` is for formats that do not say what stands around a text.
fn from_bytes_with(content: &[u8], framing: sentencepiece::Framing) -> Result<Tokenizer> {
    if sentencepiece::looks_like_model(content) {
        return sentencepiece::load(content, framing);
    }
    let first = content.iter().find(|byte| !byte.is_ascii_whitespace());
    match first {
        None => Err(unknown("an empty file", "download it again")),
        Some(b'{') => tokenizer_json::load(content),
        _ if tiktoken::looks_like_ranks(content) => tiktoken::load_well_known(content),
        Some(b'v') if content.starts_with(b"version https://git-lfs") => {
            Err(unknown("a Git LFS pointer", "fetch the file that it stands for (git lfs pull)"))
        }
        Some(_) => Err(unknown(&describe(content), "see the documentation of Tokenizer.from_file")),
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let failed = |source| TokenizeError::Read { path: path.to_owned(), source };
    let (file, size) = open_plain(path).map_err(failed)?;
    if size > MAX_FILE_BYTES {
        return Err(unknown(&format!("a file of {size} bytes"), "no tokenizer is larger than 1 GiB"));
    }
    let mut content = Vec::with_capacity(size as usize);
    // It may grow meanwhile.
    file.take(MAX_FILE_BYTES).read_to_end(&mut content).map_err(failed)?;
    Ok(content)
}

fn unknown(found: &str, hint: &str) -> TokenizeError {
    TokenizeError::UnknownFormat { found: found.to_owned(), hint: hint.to_owned() }
}

fn describe(content: &[u8]) -> String {
    let beginning = &content[..content.len().min(16)];
    format!("a file that begins with {:?}", String::from_utf8_lossy(beginning))
}
