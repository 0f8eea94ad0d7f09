//! How SentencePiece writes text: U+2581 for a space, `<0x0A>` for a byte that belongs to no character it knows.
//!
//! Here such text has plain spaces again, so that words are looked up as they stand in a text.

use std::borrow::Cow;

use serde_json::Value;

use crate::native::{Normalization, PrefixSpace};

/// What stands for a space.
pub(crate) const MARK: char = '\u{2581}';

/// The text with a space for each mark.
pub(crate) fn without_marks(text: &str) -> Cow<'_, str> {
    if text.contains(MARK) { Cow::Owned(text.replace(MARK, " ")) } else { Cow::Borrowed(text) }
}

/// The byte that this token stands for.
pub(crate) fn byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    let upper = |digit: u8| digit.is_ascii_digit() || (b'A'..=b'F').contains(&digit);
    if digits.len() != 2 || !digits.bytes().all(upper) {
        return None;
    }
    u8::from_str_radix(digits, 16).ok()
}

/// Whether the reference's decoder takes this for a byte although it is not written as one.
pub(crate) fn is_like_a_byte(token: &str) -> bool {
    let digits = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    digits.is_some_and(|digits| digits.len() == 2 && u8::from_str_radix(digits, 16).is_ok())
        && byte(token).is_none()
}

/// How a byte is written.
pub(crate) fn written(byte: u8) -> String {
    format!("<0x{byte:02X}>")
}

/// The tokens that text can become, as the encoder takes them: each character that is a token, and each byte that is
/// none. `None` if a byte or the mark has no token.
pub(crate) fn tokens<'t>(vocabulary: impl Iterator<Item = (&'t str, u32)>) -> Option<Vec<(Vec<u8>, u32)>> {
    let mut bytes = [None; 256];
    let mut tokens = Vec::new();
    let mut is_token = [false; 256];
    for (token, id) in vocabulary {
        if is_like_a_byte(token) {
            return None;
        } else if let Some(byte) = byte(token) {
            bytes[usize::from(byte)] = Some(id);
        } else if !token.contains(' ') && !token.is_empty() {
            // Text has no spaces when it is looked up: a token with one is never found in it.
            let text = without_marks(token).into_owned().into_bytes();
            if let [byte] = text[..] {
                is_token[usize::from(byte)] = true;
            }
            tokens.push((text, id));
        }
    }
    // What is merged has spaces, the reference's text has marks: where the mark is no token, its three bytes are ids.
    if !is_token[usize::from(b' ')] {
        return None;
    }
    for (byte, id) in (0..=u8::MAX).zip(bytes) {
        let id = id?;
        if !is_token[usize::from(byte)] {
            tokens.push((vec![byte], id));
        }
    }
    Some(tokens)
}

fn kind(section: &Value) -> Option<&str> {
    section.get("type").and_then(Value::as_str)
}

fn is_prepend(step: &Value) -> bool {
    kind(step) == Some("Prepend") && step.get("prepend").and_then(Value::as_str) == Some("\u{2581}")
}

fn is_replacement(step: &Value, from: &str, to: &str) -> bool {
    kind(step) == Some("Replace")
        && step.get("pattern").and_then(|pattern| pattern.get("String")?.as_str()) == Some(from)
        && step.get("content").and_then(Value::as_str) == Some(to)
}

/// What a `tokenizer.json` of this kind does to a text before it is merged, and whether it cuts before every space.
/// `None` where it is of another kind.
pub(super) fn preparation(
    normalizer: Option<&Value>,
    pre_tokenizer: Option<&Value>,
) -> Option<(Normalization, bool)> {
    let steps = match normalizer {
        None => &[],
        Some(step) if kind(step) == Some("Sequence") => step.get("normalizers")?.as_array()?.as_slice(),
        Some(step) => std::slice::from_ref(step),
    };
    let prefix = match steps {
        [] => return metaspace(pre_tokenizer?),
        [replace] if is_replacement(replace, " ", "\u{2581}") => PrefixSpace::Never,
        [prepend, replace] if is_prepend(prepend) && is_replacement(replace, " ", "\u{2581}") => {
            PrefixSpace::Always
        }
        _ => return None,
    };
    match pre_tokenizer {
        // There is no space left to split at.
        Some(split) if !is_split_at_spaces(split) => None,
        _ => Some((Normalization::Spaces(prefix), false)),
    }
}

fn is_split_at_spaces(step: &Value) -> bool {
    let pattern = step.get("pattern").and_then(|pattern| pattern.get("String")?.as_str());
    let behavior = step.get("behavior").and_then(Value::as_str);
    kind(step) == Some("Split")
        && pattern == Some(" ")
        && matches!(behavior, Some("MergedWithPrevious" | "MergedWithNext" | "Isolated"))
        && step.get("invert").and_then(Value::as_bool) == Some(false)
}

fn metaspace(step: &Value) -> Option<(Normalization, bool)> {
    if kind(step) != Some("Metaspace") || step.get("replacement")?.as_str()? != "\u{2581}" {
        return None;
    }
    let adds = step.get("add_prefix_space").and_then(Value::as_bool);
    let prefix = match step.get("prepend_scheme").map_or(Some("always"), Value::as_str)? {
        "always" if adds != Some(false) => PrefixSpace::UnlessThere,
        "first" if adds != Some(false) => PrefixSpace::AtStart,
        "never" => PrefixSpace::Never,
        _ => return None,
    };
    let split = match step.get("split") {
        None | Some(Value::Null) => true,
        Some(split) => split.as_bool()?,
    };
    Some((Normalization::Spaces(prefix), split))
}

/// Whether the `decoder` puts texts together as SentencePiece's vocabularies need it, and whether it takes a space
/// away from the beginning; `None` where it does something else.
pub(super) fn strips_a_space(decoder: Option<&Value>) -> Option<bool> {
    let decoder = decoder?;
    if kind(decoder) != Some("Sequence") {
        return None;
    }
    let steps = decoder.get("decoders")?.as_array()?;
    let (spaces, rest) = steps.split_first()?;
    let (bytes, rest) = rest.split_first()?;
    let (fuse, rest) = rest.split_first()?;
    let known = is_replacement(spaces, "\u{2581}", " ")
        && kind(bytes) == Some("ByteFallback")
        && kind(fuse) == Some("Fuse");
    match rest {
        [] => known.then_some(false),
        [strip] => {
            let number = |name: &str| strip.get(name).and_then(Value::as_u64);
            let one_space = kind(strip) == Some("Strip")
                && strip.get("content").and_then(Value::as_str) == Some(" ")
                && (number("start"), number("stop")) == (Some(1), Some(0));
            (known && one_space).then_some(true)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_written_in_upper_case() {
        assert_eq!(byte("<0x0A>"), Some(b'\n'));
        for token in ["<0x0a>", "<0x+1>", "<0x100>", "0x0A", "<0x0A", "<0x>"] {
            assert_eq!(byte(token), None, "{token}");
        }
        assert!((0..=u8::MAX).all(|value| byte(&written(value)) == Some(value)));
    }

    #[test]
    fn a_character_stands_before_its_byte() {
        let bytes: Vec<(String, u32)> =
            (0..=u8::MAX).map(|value| (written(value), u32::from(value))).collect();
        let vocabulary = || bytes.iter().map(|(token, id)| (token.as_str(), *id));
        let more = [("a", 300), ("\u{2581}a", 301), ("\u{2581}", 302), ("a b", 303)];
        let tokens = tokens(vocabulary().chain(more)).unwrap();
        let id = |text: &[u8]| tokens.iter().find(|(token, _)| token == text).map(|(_, id)| *id);
        assert_eq!([id(b"a"), id(b" a"), id(b" "), id(b"\n")], [Some(300), Some(301), Some(302), Some(10)]);
        assert_eq!((id(b"a b"), tokens.len()), (None, 257));
        assert!(super::tokens(vocabulary().skip(1).chain(more)).is_none());
        assert!(super::tokens(vocabulary().chain(more.into_iter().take(2))).is_none());
    }
}
