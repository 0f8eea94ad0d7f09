//! Any text: the ids of the `tokenizers` crate, under a small tokenizer with special tokens, cut as each family cuts.
#![no_main]

use std::sync::LazyLock;

use infer_accel_tokenize::pretokenize::{Pretokenizer, Step};
use infer_accel_tokenize::{EncodeOptions, Tokenizer};
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

static FILE: &str = include_str!("small.tokenizer.json");

struct Family {
    ours: Tokenizer,
    parsing: tokenizers::Tokenizer,
    plain: tokenizers::Tokenizer,
}

static FAMILIES: LazyLock<Vec<Family>> =
    LazyLock::new(|| Pretokenizer::all_steps().map(|(name, steps)| family(name, steps)).collect());

fn family(name: &str, steps: &[Step<'_>]) -> Family {
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let mut sections: Vec<Value> = steps.iter().map(section).collect();
    sections.push(byte_level);
    let mut file: Value = serde_json::from_str(FILE).expect("a good file");
    file["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": sections});
    if name != "gpt2" {
        file["normalizer"] = Value::Null;
    }
    let file = file.to_string();
    let ours = Tokenizer::from_bytes(file.as_bytes()).expect("a good file");
    assert!(ours.is_native(), "{name}");
    let mut plain: tokenizers::Tokenizer = file.parse().expect("a good file");
    plain.set_encode_special_tokens(true);
    Family { ours, parsing: file.parse().expect("a good file"), plain }
}

fn section(step: &Step<'_>) -> Value {
    match step {
        Step::Split(pattern) => {
            json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false})
        }
        Step::Digits => json!({"type": "Digits", "individual_digits": true}),
        Step::Gpt2 => {
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true})
        }
    }
}

fuzz_target!(|input: (u8, &str)| {
    let (number, text) = input;
    let family = &FAMILIES[usize::from(number) % FAMILIES.len()];
    for (theirs, parse_special) in [(&family.parsing, true), (&family.plain, false)] {
        let options = EncodeOptions { add_special_tokens: true, parse_special };
        let expected = theirs.encode_fast(text, true).expect("any text can be encoded");
        let ids = family.ours.encode(text, options).expect("any text can be encoded");
        assert_eq!(ids, expected.get_ids(), "{text:?}");
        assert_eq!(family.ours.count(text, options).ok(), Some(ids.len()));
    }
});
