//! Any ranks under any well-known pattern: a tokenizer that gives texts back, or an error. Never a panic.
#![no_main]

use infer_accel_tokenize::{EncodeOptions, InvalidUtf8, TiktokenOptions, Tokenizer};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|content: &[u8]| {
    for pattern in ["gpt2", "cl100k", "o200k", "llama3", "qwen2", "qwen3.5", "tekken"] {
        let options = TiktokenOptions { pattern, special_tokens: &[("<s>".to_owned(), 400)], eos_token: None };
        let Ok(tokenizer) = Tokenizer::from_tiktoken_bytes(content, &options) else { continue };
        let text = "I'm the 1234th — é漢字 text\n\n  <s> x";
        let ids = tokenizer.encode(text, EncodeOptions::default()).expect("well-known patterns do not give up");
        assert_eq!(tokenizer.decode(&ids, false, InvalidUtf8::Strict).expect("text is UTF-8"), text);
    }
});
