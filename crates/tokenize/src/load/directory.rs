//! A model's directory: the tokenizer, and the end token that its configuration names.

use std::path::Path;

use serde_json::Value;

use crate::error::{Result, TokenizeError};
use crate::load::{read, unknown};
use crate::tokenizer::Tokenizer;

/// Files that hold a whole tokenizer, in the order in which they are preferred.
const TOKENIZER_FILES: [&str; 4] =
    ["tokenizer.json", "tokenizer.tiktoken", "qwen.tiktoken", "tokenizer.model"];

/// Files that name the end token, in the order in which they are preferred.
const CONFIGURATION_FILES: [&str; 2] = ["tokenizer_config.json", "special_tokens_map.json"];

impl Tokenizer {
    /// Reads the tokenizer of a model's directory: `tokenizer.json`, or else tiktoken ranks; and the end token from
    /// `tokenizer_config.json` or `special_tokens_map.json`.
    ///
    /// # Errors
    /// [`TokenizeError::UnknownFormat`] where there is no such file, and as for [`Tokenizer::from_file`].
    pub fn from_dir(directory: &Path) -> Result<Self> {
        let Some(path) = TOKENIZER_FILES.iter().map(|name| directory.join(name)).find(|path| path.is_file())
        else {
            return Err(unknown(
                &format!("the directory {}", directory.display()),
                &format!("it has none of the files {}", TOKENIZER_FILES.join(", ")),
            ));
        };
        let tokenizer = Self::from_file(&path)?;
        for path in CONFIGURATION_FILES.map(|name| directory.join(name)) {
            if let Some(token) = end_token(&path)? {
                let id = tokenizer.token_to_id(&token).ok_or_else(|| {
                    TokenizeError::malformed(format!(
                        "{} names {token:?} as eos_token, which the vocabulary does not have",
                        path.display()
                    ))
                })?;
                return tokenizer.with_eos_token_id(id);
            }
        }
        Ok(tokenizer)
    }
}

/// The end token that a configuration file names, as a string or as an object with a `content`.
fn end_token(path: &Path) -> Result<Option<String>> {
    if !path.is_file() {
        return Ok(None);
    }
    let configuration: Value = serde_json::from_slice(&read(path)?)
        .map_err(|error| TokenizeError::malformed(format!("{}: {error}", path.display())))?;
    let token = configuration.get("eos_token").map(|token| token.get("content").unwrap_or(token));
    Ok(token.and_then(Value::as_str).map(str::to_owned))
}
