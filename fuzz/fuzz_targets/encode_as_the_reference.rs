//! Any text, at once and in parts: the ids of the `tokenizers` crate and its text for them, under small tokenizers with
//! special tokens, cut as each family cuts, with tokens that look at their neighbours, without some bytes, and with
//! spaces written as SentencePiece writes them.
#![no_main]

use std::sync::{Arc, LazyLock};

use infer_accel_tokenize::pretokenize::{Pretokenizer, Step};
use infer_accel_tokenize::{EncodeOptions, InvalidUtf8, Session, StreamDecoder, Tokenizer};
use libfuzzer_sys::fuzz_target;
use serde_json::{Map, Value, json};

static FILE: &str = include_str!("small.tokenizer.json");

struct Family {
    ours: Arc<Tokenizer>,
    parsing: tokenizers::Tokenizer,
    plain: tokenizers::Tokenizer,
}

static FAMILIES: LazyLock<Vec<Family>> = LazyLock::new(|| {
    let mut files: Vec<Value> = Pretokenizer::all_steps().map(|(name, steps)| split(name, steps)).collect();
    files.extend(["lstrip", "rstrip", "single_word", "normalized"].map(with_flag));
    files.push(without_bytes());
    let space = json!({"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"});
    let prepend = json!({"type": "Prepend", "prepend": "\u{2581}"});
    files.push(spaced(json!({"type": "Sequence", "normalizers": [prepend, space]}), Value::Null));
    for scheme in ["first", "always", "never"] {
        let split = scheme == "always";
        let metaspace =
            json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": scheme, "split": split});
        files.push(spaced(Value::Null, metaspace));
    }
    files.into_iter().map(family).collect()
});

fn read() -> Value {
    serde_json::from_str(FILE).expect("a good file")
}

fn family(file: Value) -> Family {
    let file = file.to_string();
    let ours = Tokenizer::from_bytes(file.as_bytes()).expect("a good file");
    assert!(ours.is_native(), "{}", &file[..800]);
    let mut plain: tokenizers::Tokenizer = file.parse().expect("a good file");
    plain.set_encode_special_tokens(true);
    Family { ours: Arc::new(ours), parsing: file.parse().expect("a good file"), plain }
}

fn split(name: &str, steps: &[Step<'_>]) -> Value {
    let byte_level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let mut sections: Vec<Value> = steps.iter().map(section).collect();
    sections.push(byte_level);
    let mut file = read();
    file["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": sections});
    if name != "gpt2" {
        file["normalizer"] = Value::Null;
    }
    file
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

fn with_flag(flag: &str) -> Value {
    let mut file = read();
    for token in file["added_tokens"].as_array_mut().expect("a list") {
        token[flag] = json!(true);
        token["special"] = json!(token["content"] == "<s>");
    }
    file
}

/// Without tokens for `\0`, `\x01` and the first byte of characters of four.
fn without_bytes() -> Value {
    let mut file = read();
    let vocabulary = file["model"]["vocab"].as_object_mut().expect("an object");
    let missing = ["\u{100}", "\u{101}", "\u{f0}"];
    let mut kept: Vec<(String, u64)> =
        vocabulary.iter().map(|(token, id)| (token.clone(), id.as_u64().unwrap_or(0))).collect();
    kept.retain(|(token, _)| !missing.iter().any(|byte| token.contains(byte)));
    kept.sort_by_key(|(_, id)| *id);
    *vocabulary = kept.into_iter().enumerate().map(|(id, (token, _))| (token, json!(id))).collect();
    let first = vocabulary.len();
    for (index, token) in file["added_tokens"].as_array_mut().expect("a list").iter_mut().enumerate() {
        token["id"] = json!(first + index);
    }
    file
}

/// The ASCII part of the same merges, spaces as SentencePiece writes them, a token for each byte.
fn spaced(normalizer: Value, pre_tokenizer: Value) -> Value {
    let mut file = read();
    let text = |form: &str| form.replace('\u{120}', "\u{2581}");
    let is_plain = |form: &str| text(form).chars().all(|one| matches!(one, '!'..='~' | '\u{2581}'));
    let names = ["<unk>", "<s>", "</s>"].map(str::to_owned);
    let bytes = (0..=u8::MAX).map(|byte| format!("<0x{byte:02X}>"));
    let mut order: Vec<String> = names.into_iter().chain(bytes).collect();
    let mut entries: Vec<(String, u64)> = Vec::new();
    for (form, id) in file["model"]["vocab"].as_object().expect("an object") {
        entries.push((form.clone(), id.as_u64().unwrap_or(0)));
    }
    entries.sort_by_key(|(_, id)| *id);
    order.extend(entries.iter().filter(|(form, _)| is_plain(form)).map(|(form, _)| text(form)));
    let half = |pair: &Value, side: usize| match pair {
        Value::String(line) => line.split(' ').nth(side).unwrap_or_default().to_owned(),
        pair => pair[side].as_str().unwrap_or_default().to_owned(),
    };
    let merges = file["model"]["merges"].as_array().expect("a list").iter();
    let pairs = merges.map(|pair| [half(pair, 0), half(pair, 1)]);
    let merges: Vec<Value> = pairs
        .filter(|pair| pair.iter().all(|form| is_plain(form)))
        .map(|pair| json!(pair.map(|form| text(&form))))
        .collect();
    let vocabulary: Map<String, Value> =
        order.into_iter().enumerate().map(|(id, token)| (token, json!(id))).collect();
    let token = |id: usize, content: &str, special: bool| {
        json!({"id": id, "content": content, "special": special, "single_word": false, "lstrip": false,
               "rstrip": false, "normalized": false})
    };
    let size = vocabulary.len();
    file["added_tokens"] = json!([
        token(0, "<unk>", true),
        token(1, "<s>", true),
        token(2, "</s>", true),
        token(size, "tool", false)
    ]);
    file["normalizer"] = normalizer;
    file["pre_tokenizer"] = pre_tokenizer;
    file["decoder"] = json!({"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "}, {"type": "ByteFallback"},
        {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]});
    file["model"]["vocab"] = Value::Object(vocabulary);
    file["model"]["merges"] = Value::Array(merges);
    file["model"]["byte_fallback"] = json!(true);
    file["model"]["unk_token"] = json!("<unk>");
    file
}

fuzz_target!(|input: (u8, u8, &str)| {
    let (number, place, text) = input;
    let family = &FAMILIES[usize::from(number) % FAMILIES.len()];
    let cut =
        (0..=usize::from(place).min(text.len())).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
    for (theirs, parse_special) in [(&family.parsing, true), (&family.plain, false)] {
        let options = EncodeOptions { add_special_tokens: true, parse_special };
        let expected = theirs.encode_fast(text, true).expect("any text can be encoded");
        let ids = family.ours.encode(text, options).expect("any text can be encoded");
        assert_eq!(ids, expected.get_ids(), "{text:?}");
        assert_eq!(family.ours.count(text, options).ok(), Some(ids.len()));
        let mut session = Session::new(Arc::clone(&family.ours), options).expect("nothing fails");
        for part in [&text[..cut], &text[cut..]] {
            session.append(part).expect("nothing fails");
        }
        assert_eq!(session.ids(), ids, "{text:?} after {cut}");
        let shown = theirs.decode(&ids, false).expect("these ids are known");
        assert_eq!(
            family.ours.decode(&ids, false, InvalidUtf8::Replace).expect("these ids are known"),
            shown
        );
        let mut stream = StreamDecoder::new(Arc::clone(&family.ours), false, InvalidUtf8::Replace);
        let mut steps = String::new();
        for id in ids {
            stream.step(id, &mut steps).expect("these ids are known");
        }
        stream.finish(&mut steps).expect("nothing is strict");
        assert_eq!(steps, shown);
    }
});
