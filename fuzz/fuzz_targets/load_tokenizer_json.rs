//! Any content: a tokenizer that works on a text, or an error. Never a panic.
#![no_main]

use infer_accel_tokenize::{EncodeOptions, InvalidUtf8, Tokenizer};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|content: &[u8]| {
    let Ok(tokenizer) = Tokenizer::from_bytes(content) else { return };
    for parse_special in [true, false] {
        let options = EncodeOptions { add_special_tokens: true, parse_special };
        let text = "I'm the 1234th — é漢字 text\n\n  <s> x";
        if let Ok(ids) = tokenizer.encode(text, options) {
            let _ = tokenizer.decode(&ids, false, InvalidUtf8::Replace);
            assert_eq!(tokenizer.count_encoded(text, options).ok(), Some(ids.len()));
        }
    }
});
