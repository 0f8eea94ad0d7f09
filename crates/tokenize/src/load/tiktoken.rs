//! tiktoken's rank files: one line a token, `base64 rank`. The rank orders the merges and is the id.

use crate::bpe::{BpeParts, BytePairEncoder, Merges, Symbols};
use crate::error::{Result, TokenizeError};
use crate::frame::Frame;
use crate::limits::Limits;
use crate::load::{byte_level, unknown, well_known};
use crate::native::NativePipeline;
use crate::pretokenize::{Pretokenizer, Unmatched};
use crate::special::AddedToken;
use crate::tokenizer::{Pipeline, Tokenizer};
use crate::vocabulary::{Entry, Kind, MAX_ID, Vocabulary};

/// What a rank file does not say.
#[derive(Clone, Copy, Debug, Default)]
pub struct TiktokenOptions<'o> {
    /// The regular expression that cuts text into pieces, or the name of a well-known one.
    pub pattern: &'o str,
    /// Contents and ids of the special tokens.
    pub special_tokens: &'o [(String, i64)],
    /// The special token that ends a text, if any.
    pub eos_token: Option<&'o str>,
}

/// Whether the content begins like a rank file.
pub(super) fn looks_like_ranks(content: &[u8]) -> bool {
    let line = content.split(|&byte| byte == b'\n').find(|line| !line.trim_ascii().is_empty());
    line.is_some_and(|line| parse_line(line).is_some())
}

/// Loads ranks whose pattern and special tokens are known from the content.
pub(super) fn load_well_known(content: &[u8]) -> Result<Tokenizer> {
    let Some(known) = well_known::recognise(content) else {
        return Err(unknown(
            "a file of tiktoken ranks of a vocabulary that is not among the well-known ones",
            "such a file does not say how text is split: use Tokenizer.from_tiktoken(path, pattern=..., \
             special_tokens=...)",
        ));
    };
    let special_tokens = known.special_tokens();
    load(
        content,
        &TiktokenOptions { pattern: known.pattern, special_tokens: &special_tokens, eos_token: known.eos },
    )
}

/// Loads ranks with what the caller says about them.
pub(super) fn load(content: &[u8], options: &TiktokenOptions<'_>) -> Result<Tokenizer> {
    let tokens = parse(content)?;
    let pretokenizer = match Pretokenizer::preset(options.pattern) {
        Some(preset) => preset,
        None => Pretokenizer::from_pattern(options.pattern)?.with_unmatched(Unmatched::Drop),
    };
    let special = special_tokens(&tokens, options)?;
    let entries = tokens
        .iter()
        .map(|(bytes, id)| Entry { id: *id, bytes: bytes.clone(), kind: Kind::ByteLevel, special: false })
        .chain(special.iter().map(special_entry))
        .collect();
    let eos = options.eos_token.and_then(|eos| special.iter().find(|token| token.content == eos));
    let eos = eos.map(|token| token.id);
    // tiktoken looks a whole piece up before it merges, which is what `ignore_merges` means.
    let parts = BpeParts { tokens, merges: Merges::ByRank, begins_with: Symbols::Bytes, ignore_merges: true };
    let encoder = BytePairEncoder::new(pretokenizer, parts)?;
    let vocabulary = Vocabulary::new(entries)?;
    let pipeline = NativePipeline::new(encoder, special, Frame::default())?;
    Ok(Tokenizer::new(Pipeline::Native(Box::new(pipeline)), vocabulary, Limits::default(), eos))
}

/// The vocabulary's entry of a special token, which is written as it stands.
pub(super) fn special_entry(token: &AddedToken) -> Entry {
    let bytes = token.content.clone().into_bytes();
    let printable = byte_level::to_bytes(&token.content).is_some_and(|written| written == bytes);
    let kind = if printable { Kind::ByteLevel } else { Kind::Plain };
    Entry { id: token.id, bytes, kind, special: true }
}

fn special_tokens(tokens: &[(Vec<u8>, u32)], options: &TiktokenOptions<'_>) -> Result<Vec<AddedToken>> {
    let mut special: Vec<AddedToken> = Vec::with_capacity(options.special_tokens.len());
    for (content, id) in options.special_tokens {
        if content.is_empty() {
            return Err(TokenizeError::malformed("a special token is empty; it would match everywhere"));
        }
        let fitting = u32::try_from(*id).ok().filter(|&id| id <= MAX_ID);
        let number = fitting.ok_or_else(|| TokenizeError::id_too_large(id))?;
        if special.iter().any(|token| token.content == *content) {
            return Err(TokenizeError::malformed(format!("the special token {content:?} is given twice")));
        }
        special.push(AddedToken::special(content, number));
    }
    if let Some(eos) = options.eos_token
        && !special.iter().any(|token| token.content == eos)
    {
        return Err(TokenizeError::malformed(format!("eos_token {eos:?} is none of the special tokens")));
    }
    let mut taken: Vec<u32> = special.iter().map(|token| token.id).collect();
    taken.sort_unstable();
    if let Some((bytes, id)) = tokens.iter().find(|(_, id)| taken.binary_search(id).is_ok()) {
        return Err(TokenizeError::malformed(format!(
            "a special token has the id {id}, which the ranks give to {:?}",
            String::from_utf8_lossy(bytes)
        )));
    }
    Ok(special)
}

fn parse(content: &[u8]) -> Result<Vec<(Vec<u8>, u32)>> {
    let mut tokens = Vec::with_capacity(content.len() / 15);
    for (index, line) in content.split(|&byte| byte == b'\n').enumerate() {
        let line = line.trim_ascii();
        if line.is_empty() {
            continue;
        }
        let malformed = |what: &str| {
            let shown = String::from_utf8_lossy(&line[..line.len().min(60)]).into_owned();
            TokenizeError::malformed(format!(
                "line {}: {what}; expected `base64 rank`, got {shown:?}",
                index + 1
            ))
        };
        let (token, rank) = parse_line(line).ok_or_else(|| malformed("no rank of a token"))?;
        if token.is_empty() {
            return Err(malformed("an empty token"));
        }
        if rank > u64::from(MAX_ID) {
            return Err(malformed(&format!("the rank {rank} is above {MAX_ID}")));
        }
        tokens.push((token, rank as u32));
    }
    Ok(tokens)
}

fn parse_line(line: &[u8]) -> Option<(Vec<u8>, u64)> {
    let mut fields = line.split(u8::is_ascii_whitespace).filter(|field| !field.is_empty());
    let (token, rank) = (fields.next()?, fields.next()?);
    if fields.next().is_some() || !rank.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some((decode_base64(token)?, std::str::from_utf8(rank).ok()?.parse().ok()?))
}

/// Standard base64 with padding (RFC 4648), nothing else.
pub(super) fn decode_base64(text: &[u8]) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(4) {
        return None;
    }
    let padding = text.iter().rev().take_while(|&&byte| byte == b'=').count();
    if padding > 2 {
        return None;
    }
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    for group in text.chunks_exact(4) {
        let mut word = 0;
        for &byte in group {
            word = word << 6 | u32::from(sextet(byte)?);
        }
        bytes.extend_from_slice(&word.to_be_bytes()[1..]);
    }
    if text[..text.len() - padding].contains(&b'=') {
        return None;
    }
    bytes.truncate(bytes.len() - padding);
    Some(bytes)
}

fn sextet(byte: u8) -> Option<u8> {
    match byte {
        b'A'..=b'Z' => Some(byte - b'A'),
        b'a'..=b'z' => Some(byte - b'a' + 26),
        b'0'..=b'9' => Some(byte - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        b'=' => Some(0),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_decoded_strictly() {
        for (text, bytes) in [("", ""), ("QQ==", "A"), ("QUI=", "AB"), ("QUJD", "ABC"), ("IHRoZQ==", " the")]
        {
            assert_eq!(decode_base64(text.as_bytes()).as_deref(), Some(bytes.as_bytes()), "{text}");
        }
        assert_eq!(decode_base64(b"//79"), Some(vec![0xff, 0xfe, 0xfd]));
        for text in ["Q", "QQ", "QQ=", "Q===", "=QQ=", "QQ==QUJD", "Q-==", "QÜ=="] {
            assert_eq!(decode_base64(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn lines_are_told_from_other_text() {
        assert!(looks_like_ranks(b"\n  IQ== 0\nIg== 1"));
        for content in ["", "version 1\n", "IQ==", "IQ== 0 1", "IQ== -1", "IQ== 1.5", "not base64! 3"] {
            assert!(!looks_like_ranks(content.as_bytes()), "{content:?}");
        }
    }
}
