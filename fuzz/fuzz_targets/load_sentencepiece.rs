//! Any content behind a first piece: a tokenizer that works on texts, or an error. Never a panic.
#![no_main]

use infer_accel_tokenize::{EncodeOptions, InvalidUtf8, Tokenizer};
use libfuzzer_sys::fuzz_target;

/// A piece `<unk>`, so that content is taken for a model.
const UNKNOWN: &[u8] = b"\x0a\x0e\x0a\x05<unk>\x15\0\0\0\0\x18\x02";

fuzz_target!(|content: &[u8]| {
    for content in [content.to_vec(), [UNKNOWN, content].concat()] {
        let Ok(tokenizer) = Tokenizer::from_bytes(&content) else { continue };
        for text in ["I'm the 1234th \u{2014} é漢字 text\n\n  <s> x ", "", " ", "\u{2581}\u{ff21}\u{301}"] {
            for parse_special in [true, false] {
                let options = EncodeOptions { add_special_tokens: true, parse_special };
                let ids = tokenizer.encode(text, options).expect("a model serves every text");
                assert_eq!(tokenizer.count(text, options).ok(), Some(ids.len()));
                assert_eq!(tokenizer.offsets(text, options).map(|located| located.len()).ok(), Some(ids.len()));
                tokenizer.decode(&ids, false, InvalidUtf8::Replace).expect("these ids are known");
            }
        }
    }
});
