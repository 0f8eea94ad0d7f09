//! The tokens that a pipeline puts around every text: what a post-processor amounts to for one sequence.

use serde::Deserialize;
use serde_json::Value;
use std::collections::HashMap;

use crate::error::{Result, TokenizeError};

/// Ids before and after the text's own, added unless the caller says `add_special_tokens=False`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) before: Vec<u32>,
    pub(crate) after: Vec<u32>,
}

#[derive(Deserialize)]
struct Template {
    single: Vec<Piece>,
    pair: Vec<Piece>,
    special_tokens: HashMap<String, TemplateToken>,
}

#[derive(Deserialize)]
enum Piece {
    Sequence { id: char },
    SpecialToken { id: String },
}

#[derive(Deserialize)]
struct TemplateToken {
    ids: Vec<u32>,
}

impl Frame {
    /// How many ids it adds.
    pub(crate) fn len(&self) -> usize {
        self.before.len() + self.after.len()
    }

    /// Reads the `post_processor` of a `tokenizer.json`. `None` means that it is valid as far as is known here,
    /// but not of a kind that comes down to ids before and after.
    pub(crate) fn read(processor: Option<&Value>) -> Result<Option<Self>> {
        let Some(processor) = processor.filter(|value| !value.is_null()) else {
            return Ok(Some(Self::default()));
        };
        match processor.get("type").and_then(Value::as_str) {
            Some("ByteLevel") => Ok(Some(Self::default())), // moves offsets only
            Some("TemplateProcessing") => Self::from_template(processor),
            Some("RobertaProcessing" | "BertProcessing") => Ok(Self::from_classifier(processor)),
            Some("Sequence") => Self::from_sequence(processor),
            _ => Ok(None),
        }
    }

    fn from_sequence(processor: &Value) -> Result<Option<Self>> {
        let Some(steps) = processor.get("processors").and_then(Value::as_array) else { return Ok(None) };
        let mut frame = Self::default();
        for step in steps {
            // Nested sequences do not occur; each level would recurse on what a stranger wrote.
            if step.get("type").and_then(Value::as_str) == Some("Sequence") {
                return Ok(None);
            }
            match Self::read(Some(step))? {
                Some(next) if next.len() == 0 => {}
                Some(next) if frame.len() == 0 => frame = next,
                _ => return Ok(None), // not understood, or a second frame, which the reference treats specially
            }
        }
        Ok(Some(frame))
    }

    fn from_template(processor: &Value) -> Result<Option<Self>> {
        let Ok(template) = Template::deserialize(processor) else { return Ok(None) };
        for piece in template.single.iter().chain(&template.pair) {
            if let Piece::SpecialToken { id } = piece
                && !template.special_tokens.contains_key(id)
            {
                return Err(TokenizeError::malformed(format!(
                    "the post-processor's template names the special token {id:?}, which its special_tokens do not list"
                )));
            }
        }
        let mut frame = Self::default();
        let mut sequences = 0;
        for piece in &template.single {
            match piece {
                Piece::Sequence { id: 'A' } => sequences += 1,
                Piece::Sequence { .. } => return Ok(None),
                Piece::SpecialToken { id } => {
                    let ids = template.special_tokens.get(id).map_or(&[][..], |token| &token.ids);
                    (if sequences == 0 { &mut frame.before } else { &mut frame.after })
                        .extend_from_slice(ids);
                }
            }
        }
        Ok((sequences == 1).then_some(frame))
    }

    /// The classifiers' (`RobertaProcessing`, `BertProcessing`) processors: `cls` before, `sep` after.
    fn from_classifier(processor: &Value) -> Option<Self> {
        let id = |name: &str| {
            let (_, id) = <(String, u32)>::deserialize(processor.get(name)?).ok()?;
            Some(vec![id])
        };
        Some(Self { before: id("cls")?, after: id("sep")? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn template(single: &Value) -> Value {
        json!({
            "type": "TemplateProcessing",
            "single": single,
            "pair": [],
            "special_tokens": {
                "<s>": {"id": "<s>", "ids": [1, 7], "tokens": ["<s>", "x"]},
                "</s>": {"id": "</s>", "ids": [2], "tokens": ["</s>"]},
            },
        })
    }

    #[test]
    fn templates_come_down_to_ids_around_the_text() {
        let single = json!([
            {"SpecialToken": {"id": "<s>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": "</s>", "type_id": 0}},
        ]);
        let framed = Frame { before: vec![1, 7], after: vec![2] };
        assert_eq!(Frame::read(Some(&template(&single))).unwrap(), Some(framed.clone()));
        let trim = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false});
        let sequence = json!({"type": "Sequence", "processors": [trim, template(&single)]});
        assert_eq!(Frame::read(Some(&sequence)).unwrap(), Some(framed));
        let roberta = json!({"type": "RobertaProcessing", "cls": ["<s>", 0], "sep": ["</s>", 2]});
        assert_eq!(Frame::read(Some(&roberta)).unwrap(), Some(Frame { before: vec![0], after: vec![2] }));
    }

    #[test]
    fn what_is_not_understood_is_left_to_the_reference() {
        let twice = json!([{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]);
        let none = json!([{"SpecialToken": {"id": "<s>", "type_id": 0}}]);
        for processor in [template(&twice), template(&none), json!({"type": "Unheard"}), json!(7)] {
            assert_eq!(Frame::read(Some(&processor)).unwrap(), None, "{processor}");
        }
    }

    #[test]
    fn a_template_of_unlisted_tokens_is_malformed() {
        let single =
            json!([{"SpecialToken": {"id": "<x>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]);
        assert!(matches!(Frame::read(Some(&template(&single))), Err(TokenizeError::Malformed { .. })));
    }
}
