//! Small tokenizers, made here.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, missing_docs)] // not every test uses all of it

use infer_accel_tokenize::{EncodeOptions, Tokenizer};
use serde_json::{Value, json};

/// GPT-2's printable character of a byte.
fn printable(byte: u8) -> char {
    let kept = |byte: u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    if kept(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|&other| !kept(other)).count();
    char::from_u32(256 + before as u32).unwrap()
}

/// A tokenizer.json with a token for each byte, merges of the pieces given, and two special tokens.
pub fn document(merges: &[(&str, &str)]) -> Value {
    let written = |text: &str| text.bytes().map(printable).collect::<String>();
    let mut vocabulary: serde_json::Map<String, Value> =
        (0..=255_u8).map(|byte| (printable(byte).to_string(), json!(byte))).collect();
    let mut pairs = Vec::new();
    for (left, right) in merges {
        let next = vocabulary.len();
        vocabulary.entry(written(left) + &written(right)).or_insert(json!(next));
        pairs.push(json!([written(left), written(right)]));
    }
    let first = vocabulary.len();
    let special = |index: usize, content: &str| {
        json!({"id": first + index, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    let byte_level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(0, "<s>"), special(1, "</s>")],
        "normalizer": null, "pre_tokenizer": byte_level, "post_processor": null, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                  "vocab": vocabulary, "merges": pairs},
    })
}

pub const MERGES: [(&str, &str); 12] = [
    ("t", "h"),
    ("th", "e"),
    (" ", "the"),
    ("a", "b"),
    ("b", "c"),
    ("ab", "c"),
    ("a", "bc"),
    ("1", "2"),
    (" ", " "),
    ("  ", "  "),
    ("r", " "),
    ("e", "r"),
];

pub fn load(document: &Value) -> Tokenizer {
    Tokenizer::from_bytes(document.to_string().as_bytes()).unwrap()
}

pub fn options(add_special_tokens: bool, parse_special: bool) -> EncodeOptions {
    EncodeOptions { add_special_tokens, parse_special }
}

/// Changes that files make, each to be served natively.
pub fn variants() -> Vec<(&'static str, Value)> {
    let with = |change: &dyn Fn(&mut Value)| {
        let mut changed = document(&MERGES);
        change(&mut changed);
        changed
    };
    let template = json!({
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [7, 8], "tokens": ["<s>", "x"]}},
    });
    vec![
        ("plain", document(&MERGES)),
        ("nfc", with(&|file| file["normalizer"] = json!({"type": "NFC"}))),
        ("prefix space", with(&|file| file["pre_tokenizer"]["add_prefix_space"] = json!(true))),
        ("whole pieces", with(&|file| file["model"]["ignore_merges"] = json!(true))),
        ("template", with(&|file| file["post_processor"] = template.clone())),
        ("strip", with(&|file| file["added_tokens"][0]["rstrip"] = json!(true))),
        ("normalized", with(&|file| file["added_tokens"][1]["normalized"] = json!(true))),
        ("left strip", with(&|file| file["added_tokens"][0]["lstrip"] = json!(true))),
        ("single word", with(&|file| file["added_tokens"][0]["single_word"] = json!(true))),
        ("spaces", with(&|file| file["added_tokens"][1]["content"] = json!("<s> \n the"))),
        ("ordinary", with(&|file| file["added_tokens"][1]["special"] = json!(false))),
        (
            "truncation",
            with(&|file| {
                file["truncation"] =
                    json!({"direction": "Left", "max_length": 5, "strategy": "LongestFirst", "stride": 0});
            }),
        ),
    ]
}
