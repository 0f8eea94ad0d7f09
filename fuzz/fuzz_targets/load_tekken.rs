//! Any `tekken.json`, good ones and nearly good ones: a tokenizer that gives texts back, or an error. Never a panic.
#![no_main]

use infer_accel_tokenize::{EncodeOptions, InvalidUtf8, Tokenizer};
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

/// What varies: tokens after the single bytes, sizes beside the right ones, special tokens, and how ranks are numbered.
type Input<'i> = (Vec<&'i [u8]>, [i8; 3], Vec<(u16, &'i str)>, &'i str);

const RESERVED: i64 = 5;

fn document((tokens, sizes, special, pattern): &Input<'_>) -> Value {
    let bytes: Vec<[u8; 1]> = (0..=u8::MAX).map(|byte| [byte]).collect();
    let contents = bytes.iter().map(<[u8; 1]>::as_slice).chain(tokens.iter().copied());
    let vocabulary: Vec<Value> = contents
        .enumerate()
        .map(|(rank, content)| json!({"rank": rank, "token_bytes": base64(content), "token_str": null}))
        .collect();
    let size = vocabulary.len() as i64;
    let pattern = if pattern.len() < 4 { r"\p{L}+|\p{N}|\s+|[^\s\p{L}\p{N}]+" } else { pattern };
    let mut file = json!({
        "config": {
            "pattern": pattern,
            "num_vocab_tokens": size + i64::from(sizes[0]),
            "default_vocab_size": RESERVED + size + i64::from(sizes[1]),
            "default_num_special_tokens": RESERVED + i64::from(sizes[2]),
            "version": "v3",
        },
        "vocab": vocabulary,
    });
    if !special.is_empty() {
        let listed = special.iter().map(|(rank, text)| json!({"rank": rank, "token_str": text, "is_control": true}));
        file["special_tokens"] = listed.collect();
    }
    file
}

fn base64(content: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut written = String::new();
    for three in content.chunks(3) {
        let bits = three.iter().fold(0, |bits, byte| bits << 8 | usize::from(*byte)) << (8 * (3 - three.len()));
        for place in 0..4 {
            let digit = char::from(DIGITS[bits >> (18 - 6 * place) & 63]);
            written.push(if place <= three.len() { digit } else { '=' });
        }
    }
    written
}

fuzz_target!(|input: Input<'_>| {
    let Ok(tokenizer) = Tokenizer::from_bytes(document(&input).to_string().as_bytes()) else { return };
    let text = "I'm the 1234th — é漢字 text\n\n  <s> x";
    let options = EncodeOptions { add_special_tokens: false, parse_special: false };
    let Ok(ids) = tokenizer.encode(text, options) else { return };
    assert_eq!(tokenizer.count(text, options).ok(), Some(ids.len()));
    let decoded = tokenizer.decode(&ids, false, InvalidUtf8::Strict);
    if input.3.len() < 4 {
        assert_eq!(decoded.expect("the pattern covers every text"), text);
    }
});
