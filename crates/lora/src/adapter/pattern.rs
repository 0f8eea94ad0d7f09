//! The patterns of `rank_pattern` and `alpha_pattern`, with PEFT's meaning.
//!
//! A key of those tables is a regular expression. It applies to a module whose name, or whose name behind any of
//! its dots, it matches as a whole: Python's `re.match(rf"(.*\.)?({key})$", name)`. The first key that applies wins.

use fancy_regex::{Regex, RegexBuilder};

/// Steps after which a pattern is given up. Those of real adapters take a few dozen.
const MAX_STEPS: usize = 100_000;
/// Bytes that a compiled pattern may take.
const MAX_COMPILED: usize = 1 << 20;

/// A compiled key.
pub(super) enum Pattern {
    /// Letters, digits, underscores, and dots that stand for any character, as most keys are.
    Plain(String),
    /// Anything else.
    Regex(Box<Regex>),
}

impl Pattern {
    /// Compiles a key; the text says why it cannot be.
    pub(super) fn new(key: &str) -> Result<Self, String> {
        if key.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.')) {
            return Ok(Self::Plain(key.to_owned()));
        }
        check_sets(key)?;
        // The very text that PEFT compiles must be an expression by itself: parentheses of the key could otherwise
        // pair with those around it. In front of it stands what `re.match` adds.
        let text = format!(r"(.*\.)?({key})$");
        compiled(&text)?;
        compiled(&format!(r"\A(?:{text})")).map(|regex| Self::Regex(Box::new(regex)))
    }

    /// Whether the key applies to a module; an error where the pattern takes too many steps.
    pub(super) fn applies(&self, name: &str) -> Result<bool, String> {
        match self {
            Self::Plain(key) => Ok(plain_applies(key.as_bytes(), name)),
            Self::Regex(regex) => regex.is_match(name).map_err(|error| error.to_string()),
        }
    }
}

fn compiled(text: &str) -> Result<Regex, String> {
    RegexBuilder::new(text)
        .backtrack_limit(MAX_STEPS)
        .delegate_size_limit(MAX_COMPILED)
        .build()
        .map_err(|error| error.to_string())
}

/// Refuses what means one thing in a set of Python's expressions and another here: sets within sets, and their
/// differences, intersections and the like.
fn check_sets(key: &str) -> Result<(), String> {
    let bytes = key.as_bytes();
    let (mut position, mut in_set) = (0, false);
    while let Some(&byte) = bytes.get(position) {
        let next = bytes.get(position + 1).copied();
        match (in_set, byte) {
            (_, b'\\') => position += 1,
            (false, b'[') => {
                in_set = true;
                // A bracket that closes first, behind the one that negates, stands for itself.
                position += usize::from(next == Some(b'^'));
                position += usize::from(bytes.get(position + 1) == Some(&b']'));
            }
            (true, b']') => in_set = false,
            (true, b'[') => return Err("a '[' within a set must be escaped".to_owned()),
            (true, b'&' | b'-' | b'~' | b'|') if next == Some(byte) => {
                return Err("a doubled sign within a set must be escaped".to_owned());
            }
            _ => {}
        }
        position += 1;
    }
    Ok(())
}

fn plain_applies(key: &[u8], name: &str) -> bool {
    if !name.is_ascii() {
        // A dot stands for a whole character, which here may be of several bytes.
        let (key, name): (Vec<char>, Vec<char>) =
            (key.iter().map(|&byte| byte as char).collect(), name.chars().collect());
        return ends_with(&key, &name, '.');
    }
    ends_with(key, name.as_bytes(), b'.')
}

fn ends_with<T: PartialEq + Copy>(key: &[T], name: &[T], dot: T) -> bool {
    let Some(before) = name.len().checked_sub(key.len()) else { return false };
    let (front, tail) = name.split_at(before);
    front.last().is_none_or(|&last| last == dot) && key.iter().zip(tail).all(|(&k, &n)| k == dot || k == n)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn applies(key: &str, name: &str) -> bool {
        Pattern::new(key).unwrap().applies(name).unwrap()
    }

    #[test]
    fn keys_mean_what_peft_means() {
        let name = "model.layers.10.self_attn.q_proj";
        for key in [
            "q_proj",
            "self_attn.q_proj",
            name,
            "^model.*q_proj",
            r"layers\.\d+\.self_attn\.(q|k)_proj",
            ".*q_proj",
        ] {
            assert!(applies(key, name), "{key}");
        }
        for key in [
            "proj",
            "_proj",
            "attn.q_proj",
            "q_pro",
            "^layers.10.self_attn.q_proj",
            r"layers\.1\..*",
            "q_proj.",
            "",
        ] {
            assert!(!applies(key, name), "{key}");
        }
        assert!(applies(r"layers\.(?!0\.)\d+\.self_attn\.q_proj", name));
        assert!(!applies(r"layers\.(?!10\.)\d+\.self_attn\.q_proj", name));
        assert!(applies("", "ends.in.a.dot."));
        // Parentheses of a key belong to the key.
        assert!(!applies("a)].|(", "b1bb."));
        assert!(Pattern::new("a))(?:(b").is_err());
        for key in ["[a[b]]", "[a&&b]", "[a--b]", "[^][]"] {
            assert!(Pattern::new(key).is_err(), "{key}");
        }
        assert!(applies(r"[]\[]", "x.]") && applies("[^]a]", "x.b"));
    }

    #[test]
    fn what_cannot_be_compiled_or_never_ends_is_an_error() {
        assert!(Pattern::new("(").is_err());
        let huge = Pattern::new("x{1000}{1000}{1000}").and_then(|pattern| pattern.applies("x"));
        assert_ne!(huge, Ok(true), "refused, given up or answered, but never in a gigabyte");
        let slow = Pattern::new(r"((a+)+)\2b(?!c)").unwrap();
        assert!(slow.applies(&"a".repeat(40)).is_err());
    }

    proptest! {
        #[test]
        fn plain_keys_match_as_their_regex(key in "[ab.]{0,6}", name in "[ab.é]{0,10}") {
            let regex = Regex::new(&format!(r"\A(?:.*\.)?(?:{key})\z")).unwrap();
            prop_assert_eq!(plain_applies(key.as_bytes(), &name), regex.is_match(&name).unwrap());
        }
    }
}
