//! JSON of unknown origin: keys in their order, none twice, and the numbers that Python writes and JSON forbids.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{Error as _, MapAccess, SeqAccess, Visitor};

/// A JSON value. An object keeps the order of its keys, which decides what a pattern means.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Node {
    Null,
    Bool(bool),
    Integer(i64),
    /// A number with a fraction or beyond 64 bits; not finite where Python wrote `NaN` or `Infinity`.
    Float(f64),
    Text(String),
    Array(Vec<Node>),
    Object(Vec<(String, Node)>),
}

impl Node {
    /// Parses a whole text.
    pub(super) fn parse(text: &[u8]) -> Result<Self, String> {
        let text = without_bare_words(text);
        serde_json::from_slice(&text).map_err(|error| error.to_string())
    }

    /// Whether Python would take this value as true.
    pub(super) fn is_truthy(&self) -> bool {
        match self {
            Self::Null => false,
            Self::Bool(value) => *value,
            Self::Integer(value) => *value != 0,
            Self::Float(value) => *value != 0.0,
            Self::Text(text) => !text.is_empty(),
            Self::Array(items) => !items.is_empty(),
            Self::Object(fields) => !fields.is_empty(),
        }
    }

    /// The value as it would stand in a message, shortened.
    pub(super) fn shown(&self) -> String {
        match self {
            Self::Null => "null".to_owned(),
            Self::Bool(value) => value.to_string(),
            Self::Integer(value) => value.to_string(),
            Self::Float(value) => value.to_string(),
            Self::Text(text) => format!("{:?}", text.chars().take(64).collect::<String>()),
            Self::Array(items) => format!("a list of {}", items.len()),
            Self::Object(fields) => format!("an object of {} fields", fields.len()),
        }
    }
}

/// What a bare word becomes: a text that no JSON file can spell without an escape.
const MARK: &str = "\\u0000infer-accel:";
const MARKED: &str = "\0infer-accel:";

/// Python writes numbers that are not finite as bare words. They are turned into marked texts, so that the field
/// that holds one can be named.
fn without_bare_words(text: &[u8]) -> Cow<'_, [u8]> {
    const WORDS: [&str; 3] = ["-Infinity", "Infinity", "NaN"];
    let mut clean = Vec::new();
    let (mut copied, mut position, mut in_text) = (0, 0, false);
    while let Some(&byte) = text.get(position) {
        match byte {
            b'\\' if in_text => position += 1,
            b'"' => in_text = !in_text,
            b'-' | b'I' | b'N' if !in_text => {
                let rest = text.get(position..).unwrap_or_default();
                if let Some(word) = WORDS.iter().find(|word| rest.starts_with(word.as_bytes())) {
                    clean.extend_from_slice(text.get(copied..position).unwrap_or_default());
                    clean.extend_from_slice(format!("\"{MARK}{word}\"").as_bytes());
                    position += word.len();
                    copied = position;
                    continue;
                }
            }
            _ => {}
        }
        position += 1;
    }
    if clean.is_empty() {
        return Cow::Borrowed(text);
    }
    clean.extend_from_slice(text.get(copied..).unwrap_or_default());
    Cow::Owned(clean)
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Integer(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(i64::try_from(value).map_or(Node::Float(value as f64), Node::Integer))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
        Ok(Node::Float(value))
    }

    fn visit_str<E>(self, text: &str) -> Result<Node, E> {
        Ok(match text.strip_prefix(MARKED) {
            Some("NaN") => Node::Float(f64::NAN),
            Some("Infinity") => Node::Float(f64::INFINITY),
            Some("-Infinity") => Node::Float(f64::NEG_INFINITY),
            _ => Node::Text(text.to_owned()),
        })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Node::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut fields: Vec<(String, Node)> = Vec::new();
        let mut seen = std::collections::HashSet::new();
        while let Some((key, value)) = map.next_entry::<String, Node>()? {
            if !seen.insert(key.clone()) {
                return Err(A::Error::custom(format!("the key {key:?} stands there twice")));
            }
            fields.push((key, value));
        }
        Ok(Node::Object(fields))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_python_writes_is_read() {
        let node =
            Node::parse(br#"{"b": NaN, "a": [-Infinity, 1, 2.5, "NaN \" NaN"], "c": Infinity}"#).unwrap();
        let Node::Object(fields) = node else { panic!("an object") };
        assert_eq!(fields.iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>(), ["b", "a", "c"]);
        assert!(matches!(fields[0].1, Node::Float(value) if value.is_nan()));
        let items = [
            Node::Float(f64::NEG_INFINITY),
            Node::Integer(1),
            Node::Float(2.5),
            Node::Text("NaN \" NaN".to_owned()),
        ];
        assert_eq!(fields[1].1, Node::Array(items.to_vec()));
        assert_eq!(fields[2].1, Node::Float(f64::INFINITY));
    }

    #[test]
    fn what_is_no_json_is_refused() {
        for text in
            ["", "{", "{\"a\":1,\"a\":2}", "{\"a\":{\"b\":1,\"b\":1}}", "{} {}", "NaNNaN", "{'a': 1}", "\"\\"]
        {
            assert!(Node::parse(text.as_bytes()).is_err(), "{text}");
        }
        assert!(Node::parse("[".repeat(100_000).as_bytes()).is_err());
    }
}
