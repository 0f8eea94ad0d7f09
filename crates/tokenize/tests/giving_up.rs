//! A pattern that gives up on a text: an error that says so, and nothing left behind for the next call.
#![allow(clippy::unwrap_used, missing_docs)]

use std::fmt::Write as _;
use std::sync::Arc;

use infer_accel_tokenize::{EncodeOptions, PromptCache, Session, TiktokenOptions, TokenizeError, Tokenizer};

/// All bytes, ranks of two letters, and a pattern that tries every way to take a row of them before anything but its end.
fn tokenizer() -> Tokenizer {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digit = |number: usize| char::from(DIGITS[number % 64]);
    let mut ranks = String::new();
    for byte in 0..256_usize {
        writeln!(ranks, "{}{}== {byte}", digit(byte >> 2), digit(byte << 4)).unwrap();
    }
    ranks.push_str("YWE= 256\nYWI= 257\n"); // "aa" and "ab"
    let options = TiktokenOptions { pattern: r"(?:(a)|(a))+\1?c|[^c]", special_tokens: &[], eos_token: None };
    Tokenizer::from_tiktoken_bytes(ranks.as_bytes(), &options).unwrap()
}

fn gave_up<T>(outcome: &Result<T, TokenizeError>) -> bool {
    matches!(outcome, Err(TokenizeError::PatternGaveUp { .. }))
}

#[test]
fn what_comes_after_a_failure_is_right() {
    let (tokenizer, options) = (Arc::new(tokenizer()), EncodeOptions::default());
    // The first spans of the bad text are found and wait, with those of the texts before it, when the pattern gives up.
    let (good, bad) = ("aac aaac bcb aac", format!("aac b aac {} ", "a".repeat(60)));
    let expected = tokenizer.encode(good, options).unwrap();
    assert!(expected.contains(&256), "the pattern is not what the test means");
    let texts = [good, good, &bad, good];
    let cache = PromptCache::new(Arc::clone(&tokenizer), 1 << 20);
    let mut session = Session::new(Arc::clone(&tokenizer), options).unwrap();
    assert!(gave_up(&tokenizer.encode(&bad, options)));
    assert!(gave_up(&tokenizer.count(&bad, options)));
    assert!(gave_up(&tokenizer.offsets(&bad, options)));
    assert!(gave_up(&cache.encode(&bad, options)) && gave_up(&cache.count(&bad, options)));
    assert!(gave_up(&tokenizer.encode_batch(&texts, options, 1, &|| false)));
    let batch = tokenizer.encode_batch(&[good; 3], options, 1, &|| false).unwrap();
    assert_eq!(batch.ids, expected.repeat(3));
    assert!(gave_up(&tokenizer.count_batch(&texts, options, false, 1, &|| false)));
    let counts = tokenizer.count_batch(&[good; 3], options, false, 1, &|| false).unwrap();
    assert_eq!(counts, [expected.len(); 3]);
    assert_eq!(tokenizer.encode(good, options).unwrap(), expected);
    assert_eq!(cache.encode(good, options).unwrap(), expected);
    session.append(good).unwrap();
    assert!(gave_up(&session.append(&bad)));
    assert_eq!(session.ids(), expected);
}
