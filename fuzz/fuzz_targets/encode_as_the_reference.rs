//! Any text: the ids of the `tokenizers` crate, under a small tokenizer with special tokens.
#![no_main]

use std::sync::LazyLock;

use infer_accel_tokenize::{EncodeOptions, Tokenizer};
use libfuzzer_sys::fuzz_target;

static FILE: &str = include_str!("small.tokenizer.json");
static OURS: LazyLock<Tokenizer> = LazyLock::new(|| Tokenizer::from_bytes(FILE.as_bytes()).expect("a good file"));
static PARSING: LazyLock<tokenizers::Tokenizer> = LazyLock::new(|| FILE.parse().expect("a good file"));
static PLAIN: LazyLock<tokenizers::Tokenizer> = LazyLock::new(|| {
    let mut plain: tokenizers::Tokenizer = FILE.parse().expect("a good file");
    plain.set_encode_special_tokens(true);
    plain
});

fuzz_target!(|text: &str| {
    for (theirs, parse_special) in [(&*PARSING, true), (&*PLAIN, false)] {
        let options = EncodeOptions { add_special_tokens: true, parse_special };
        let expected = theirs.encode_fast(text, true).expect("any text can be encoded");
        let ids = OURS.encode(text, options).expect("any text can be encoded");
        assert_eq!(ids, expected.get_ids(), "{text:?}");
        assert_eq!(OURS.count(text, options).ok(), Some(ids.len()));
    }
});
