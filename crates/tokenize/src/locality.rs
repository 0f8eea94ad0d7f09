//! Which decoders can be asked for a few ids at a time.
//!
//! A stream decodes a window of ids and shows what came to its text. That is right where a token's text depends on
//! its neighbours only. Steps after the tokens were joined see one string: what they do at its ends, or to all of it,
//! may change with every id that comes. No published model has such a decoder, but a file can.

use serde_json::Value;

/// Deeper nesting than this is nobody's decoder.
const MAX_DEPTH: usize = 8;

/// Whether the decoder of a `tokenizer.json` may be asked for a window of ids.
pub(crate) fn is_local(decoder: Option<&Value>) -> bool {
    let mut steps = Vec::new();
    let Some(decoder) = decoder.filter(|value| !value.is_null()) else { return true };
    flatten(decoder, 0, &mut steps) && chain_is_local(&steps)
}

/// Collects the steps of nested sequences in their order; false where they nest too deeply or are malformed.
fn flatten<'d>(decoder: &'d Value, depth: usize, steps: &mut Vec<&'d Value>) -> bool {
    if kind(decoder) != "Sequence" {
        steps.push(decoder);
        return true;
    }
    let Some(inner) = decoder.get("decoders").and_then(Value::as_array) else { return false };
    depth < MAX_DEPTH && inner.iter().all(|step| flatten(step, depth + 1, steps))
}

fn chain_is_local(steps: &[&Value]) -> bool {
    // The first and the last token of the whole are treated apart by one step at most: two of them would see
    // different firsts in a window and in the whole.
    let mut looks_at_ends = false;
    let mut joins_bytes = false;
    let mut is_joined = false;
    for &step in steps {
        let is_known = match kind(step) {
            _ if is_joined => is_local_in_joined_text(step),
            "Replace" if joins_bytes || replaces_by_a_space(step) => true,
            // Anything else might make a token that stands for a byte.
            "Replace" => steps.iter().all(|other| kind(other) != "ByteFallback"),
            "ByteFallback" => !std::mem::replace(&mut joins_bytes, true) && !looks_at_ends,
            "Metaspace" | "WordPiece" | "BPEDecoder" | "CTC" => {
                !std::mem::replace(&mut looks_at_ends, true) && !joins_bytes
            }
            "Strip" => !joins_bytes,
            "ByteLevel" | "Fuse" => {
                is_joined = true;
                true
            }
            _ => false,
        };
        if !is_known {
            return false;
        }
    }
    true
}

/// Whether a step changes the beginning of the joined text by one character at most, or each character by itself.
fn is_local_in_joined_text(step: &Value) -> bool {
    match kind(step) {
        "Fuse" => true,
        "Strip" => {
            let count = |name: &str| step.get(name).and_then(Value::as_u64);
            count("start").is_some_and(|start| start <= 1) && count("stop") == Some(0)
        }
        _ => false,
    }
}

/// Whether a step puts a space in the place of one character, as SentencePiece's decoders do.
fn replaces_by_a_space(step: &Value) -> bool {
    let pattern = step.pointer("/pattern/String").and_then(Value::as_str);
    let content = step.get("content").and_then(Value::as_str);
    pattern.is_some_and(|pattern| pattern.chars().count() == 1) && content == Some(" ")
}

fn kind(step: &Value) -> &str {
    step.get("type").and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn chain(steps: &[Value]) -> bool {
        is_local(Some(&json!({"type": "Sequence", "decoders": steps})))
    }

    fn replace(pattern: &str, content: &str) -> Value {
        json!({"type": "Replace", "pattern": {"String": pattern}, "content": content})
    }

    fn strip(start: u32, stop: u32) -> Value {
        json!({"type": "Strip", "content": " ", "start": start, "stop": stop})
    }

    fn plain(kind: &str) -> Value {
        json!({"type": kind})
    }

    #[test]
    fn the_decoders_of_published_models_are() {
        let (spaces, bytes, fuse) = (replace("\u{2581}", " "), plain("ByteFallback"), plain("Fuse"));
        assert!(is_local(None) && is_local(Some(&Value::Null)));
        for kind in ["ByteLevel", "Metaspace", "WordPiece", "BPEDecoder", "CTC"] {
            assert!(is_local(Some(&plain(kind))), "{kind}");
        }
        assert!(chain(&[spaces.clone(), bytes.clone(), fuse.clone(), strip(1, 0)])); // Llama-2, Mistral, Phi-3
        assert!(chain(&[spaces, bytes, fuse])); // Gemma
        assert!(chain(&[plain("Metaspace"), replace("a", "b")]));
    }

    #[test]
    fn what_sees_the_whole_text_is_not() {
        let (spaces, bytes, fuse) = (replace("\u{2581}", " "), plain("ByteFallback"), plain("Fuse"));
        let metaspace = plain("Metaspace");
        for steps in [
            vec![fuse.clone(), strip(0, 1)],
            vec![fuse.clone(), strip(2, 0)],
            vec![fuse.clone(), spaces],
            vec![fuse.clone(), bytes.clone()],
            vec![fuse, plain("ByteLevel")],
            vec![metaspace.clone(), metaspace],
            vec![bytes.clone(), bytes.clone()],
            vec![replace("(", "<"), bytes.clone()],
            vec![bytes, strip(1, 0)],
            vec![plain("Unheard")],
        ] {
            assert!(!chain(&steps), "{steps:?}");
        }
        let nested = (0..20).fold(plain("Fuse"), |step, _| json!({"type": "Sequence", "decoders": [step]}));
        assert!(!is_local(Some(&nested)));
    }
}
