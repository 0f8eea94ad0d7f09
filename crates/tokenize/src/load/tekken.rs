//! Mistral's `tekken.json`: a byte-level vocabulary by rank, its pattern, and special tokens before it.
//!
//! The first ids are those of the special tokens, whose number the file gives; a token's id is its rank and that
//! number. Ranks beyond the size that the file gives are not used.

use std::borrow::Cow;

use serde::Deserialize;

use crate::bpe::{BpeParts, BytePairEncoder, Merges, Symbols};
use crate::error::{Result, TokenizeError};
use crate::frame::Frame;
use crate::limits::Limits;
use crate::load::tiktoken::{decode_base64, special_entry};
use crate::native::NativePipeline;
use crate::pretokenize::{Pretokenizer, Unmatched};
use crate::special::AddedToken;
use crate::tokenizer::{Pipeline, Tokenizer};
use crate::vocabulary::{Entry, Kind, MAX_ID, Vocabulary};

/// The special tokens of files that do not list any, in the order of their ids.
const UNLISTED: [&str; 20] = [
    "<unk>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
    "[TOOL_CALLS]",
    "[IMG]",
    "<pad>",
    "[IMG_BREAK]",
    "[IMG_END]",
    "[PREFIX]",
    "[MIDDLE]",
    "[SUFFIX]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
    "[TOOL_CONTENT]",
];
const BEGIN: &str = "<s>";
const END: &str = "</s>";

#[derive(Deserialize)]
struct File<'f> {
    config: Config,
    #[serde(borrow)]
    vocab: Vec<Token<'f>>,
    special_tokens: Option<Vec<Special>>,
}

#[derive(Deserialize)]
struct Config {
    pattern: String,
    default_vocab_size: usize,
    default_num_special_tokens: usize,
}

#[derive(Deserialize)]
struct Token<'f> {
    rank: u32,
    #[serde(borrow)]
    token_bytes: Cow<'f, str>,
}

#[derive(Deserialize)]
struct Special {
    rank: u32,
    token_str: String,
}

/// Loads a tokenizer from the content of a `tekken.json`.
pub(super) fn load(text: &str) -> Result<Tokenizer> {
    let invalid = |error: serde_json::Error| TokenizeError::malformed(format!("tekken.json: {error}"));
    let File { config, vocab, special_tokens } = serde_json::from_str(text).map_err(invalid)?;
    let (size, reserved) = (config.default_vocab_size, config.default_num_special_tokens);
    let tokens =
        size.checked_sub(reserved).filter(|&tokens| tokens <= vocab.len() && size <= MAX_ID as usize + 1);
    let tokens = tokens.ok_or_else(|| {
        TokenizeError::malformed(format!(
            "tekken.json: a vocabulary of {size} ids, {reserved} of them special, from {} tokens; there must be at \
             least as many of each as are used, and at most {} ids",
            vocab.len(),
            u64::from(MAX_ID) + 1,
        ))
    })?;
    let special = special(special_tokens, reserved)?;
    let tokens = ranked(&vocab, tokens, reserved as u32)?;
    let entries = special.iter().map(special_entry);
    let plain = |(bytes, id): &(Vec<u8>, u32)| Entry {
        id: *id,
        bytes: bytes.clone(),
        kind: Kind::ByteLevel,
        special: false,
    };
    let vocabulary = Vocabulary::new(entries.chain(tokens.iter().map(plain)).collect())?;
    let id = |content: &str| special.iter().find(|token| token.content == content).map(|token| token.id);
    let (begin, end) = (id(BEGIN), id(END));
    let pretokenizer = Pretokenizer::from_pattern(&config.pattern)?.with_unmatched(Unmatched::Drop);
    let parts = BpeParts { tokens, merges: Merges::ByRank, begins_with: Symbols::Bytes, ignore_merges: true };
    let encoder = BytePairEncoder::new(pretokenizer, parts)?;
    // Mistral's models see the first special token before every text.
    let frame = Frame { before: begin.into_iter().collect(), after: Vec::new() };
    let pipeline = NativePipeline::new(encoder, special, frame)?;
    Ok(Tokenizer::new(Pipeline::Native(Box::new(pipeline)), vocabulary, Limits::default(), end))
}

/// The listed special tokens, or those of files without a list, and fillers up to the number that is reserved.
fn special(listed: Option<Vec<Special>>, reserved: usize) -> Result<Vec<AddedToken>> {
    let mut contents: Vec<String> = match listed {
        None => UNLISTED.iter().map(ToString::to_string).collect(),
        Some(mut listed) => {
            listed.sort_by_key(|token| token.rank);
            if let Some((place, token)) =
                listed.iter().enumerate().find(|(place, token)| token.rank as usize != *place)
            {
                return Err(TokenizeError::malformed(format!(
                    "tekken.json: the special tokens have the rank {} where {place} is expected; ranks go from 0 on, \
                     each given once",
                    token.rank
                )));
            }
            listed.into_iter().map(|token| token.token_str).collect()
        }
    };
    if contents.len() > reserved {
        let count = contents.len();
        return Err(TokenizeError::malformed(format!(
            "tekken.json: {count} special tokens where {reserved} ids are reserved for them"
        )));
    }
    contents.extend((contents.len()..reserved).map(|id| format!("<SPECIAL_{id}>")));
    let mut seen = ahash::AHashSet::with_capacity(contents.len());
    if let Some(content) =
        contents.iter().find(|content| content.is_empty() || !seen.insert(content.as_str()))
    {
        return Err(TokenizeError::malformed(format!(
            "tekken.json: the special token {content:?} is empty or listed twice"
        )));
    }
    let token = |(id, content): (usize, &String)| AddedToken::special(content, id as u32);
    Ok(contents.iter().enumerate().map(token).collect())
}

/// The first `count` tokens by rank, with their ids.
fn ranked(vocab: &[Token<'_>], count: usize, reserved: u32) -> Result<Vec<(Vec<u8>, u32)>> {
    let used = vocab.iter().filter(|token| (token.rank as usize) < count);
    let mut tokens = Vec::with_capacity(count);
    for Token { rank, token_bytes } in used {
        let bytes = decode_base64(token_bytes.as_bytes()).filter(|bytes| !bytes.is_empty());
        let bytes = bytes.ok_or_else(|| {
            TokenizeError::malformed(format!(
                "tekken.json: the token of rank {rank} is no base64: {token_bytes:?}"
            ))
        })?;
        tokens.push((bytes, rank + reserved));
    }
    if tokens.len() != count {
        return Err(TokenizeError::malformed(format!(
            "tekken.json: {} tokens have a rank below {count}; each rank must be given once",
            tokens.len()
        )));
    }
    Ok(tokens)
}
