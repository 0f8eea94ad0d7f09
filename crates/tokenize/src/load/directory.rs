//! A model's directory: the tokenizer, the end token that its configuration names, and its chat template.

use std::path::Path;

use serde_json::Value;

use crate::chat::ChatSource;
use crate::error::{Result, TokenizeError};
use crate::load::sentencepiece::Framing;
use crate::load::{from_bytes_with, read, unknown};
use crate::tokenizer::Tokenizer;

/// Files that hold a whole tokenizer, in the order in which they are preferred.
const TOKENIZER_FILES: [&str; 5] =
    ["tokenizer.json", "tekken.json", "tokenizer.tiktoken", "qwen.tiktoken", "tokenizer.model"];

/// Files that name the end token, in the order in which they are preferred.
const CONFIGURATION_FILES: [&str; 2] = ["tokenizer_config.json", "special_tokens_map.json"];

/// The chat template in a file of its own, which is preferred to that of `tokenizer_config.json`.
const TEMPLATE_FILE: &str = "chat_template.jinja";

/// Where there are several templates: the one for conversations with tools, and the one for all others.
const TOOL_TEMPLATE: &str = "tool_use";
const DEFAULT_TEMPLATE: &str = "default";

impl Tokenizer {
    /// Reads the tokenizer of a model's directory: `tokenizer.json`, or else tiktoken ranks or a SentencePiece model
    /// (which gets the tokens around a text that the configuration asks for); the end token from
    /// `tokenizer_config.json` or `special_tokens_map.json`; and the chat template from `chat_template.jinja` or
    /// `tokenizer_config.json`.
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
        let mut configurations = Vec::new();
        for path in CONFIGURATION_FILES.map(|name| directory.join(name)).iter().filter(|path| path.is_file())
        {
            let configuration: Value = serde_json::from_slice(&read(path)?)
                .map_err(|error| TokenizeError::malformed(format!("{}: {error}", path.display())))?;
            configurations.push(configuration);
        }
        let mut tokenizer = from_bytes_with(&read(&path)?, framing(&configurations))?;
        if let Some(token) = configurations.iter().find_map(|file| content(file.get("eos_token")?)) {
            let id = tokenizer.token_to_id(&token).ok_or_else(|| {
                TokenizeError::malformed(format!(
                    "the configuration names {token:?} as eos_token, which the vocabulary does not have"
                ))
            })?;
            tokenizer = tokenizer.with_eos_token_id(id)?;
        }
        let file = directory.join(TEMPLATE_FILE);
        let own = if file.is_file() { Some(text(&file)?) } else { None };
        Ok(match chat_source(own, &configurations) {
            Some(source) => tokenizer.with_chat(source),
            None => tokenizer,
        })
    }
}

/// What stands around a text where the tokenizer's own file does not say: `add_bos_token` and `add_eos_token`, or what
/// `transformers` takes for granted.
fn framing(configurations: &[Value]) -> Framing {
    let flag = |name: &str| configurations.iter().find_map(|file| file.get(name)?.as_bool());
    let class = configurations.iter().find_map(|file| file.get("tokenizer_class")?.as_str());
    let class = class.map(|class| class.trim_end_matches("Fast"));
    let begins = matches!(class, Some("LlamaTokenizer" | "CodeLlamaTokenizer" | "GemmaTokenizer"));
    Framing { begin: flag("add_bos_token").unwrap_or(begins), end: flag("add_eos_token").unwrap_or(false) }
}

fn text(path: &Path) -> Result<String> {
    String::from_utf8(read(path)?)
        .map_err(|error| TokenizeError::malformed(format!("{}: {error}", path.display())))
}

/// What stands for a token in a configuration: a string, or an object with a `content`.
fn content(token: &Value) -> Option<String> {
    token.get("content").unwrap_or(token).as_str().map(str::to_owned)
}

/// The chat template, from a file of its own or from the first configuration that has one, with the special tokens
/// that all of them name.
fn chat_source(own: Option<String>, configurations: &[Value]) -> Option<ChatSource> {
    let declared = configurations.iter().find_map(|file| file.get("chat_template"));
    let named = |name: &str| {
        let entries = declared?.as_array()?.iter();
        let mut found = entries.filter(|entry| entry.get("name").and_then(Value::as_str) == Some(name));
        found.next()?.get("template")?.as_str().map(str::to_owned)
    };
    let single = declared.and_then(Value::as_str).map(str::to_owned);
    let tool_template = if own.is_some() || single.is_some() { None } else { named(TOOL_TEMPLATE) };
    let template = own.or(single).or_else(|| named(DEFAULT_TEMPLATE)).or_else(|| tool_template.clone())?;
    let mut special_tokens: Vec<(String, String)> = Vec::new();
    for (name, token) in configurations.iter().filter_map(Value::as_object).flatten() {
        let known = special_tokens.iter().any(|(other, _)| other == name);
        if let Some(token) = content(token).filter(|_| name.ends_with("_token") && !known) {
            special_tokens.push((name.clone(), token));
        }
    }
    Some(ChatSource { template, tool_template, special_tokens })
}
