//! Files to tokenizers, and their ids against the `tokenizers` crate, on small vocabularies made here.
#![allow(clippy::unwrap_used, missing_docs)]

mod made;

use infer_accel_tokenize::{EncodeOptions, InvalidUtf8, TiktokenOptions, TokenizeError, Tokenizer};
use made::{MERGES, document, load, options, variants};
use proptest::prelude::*;
use serde_json::{Value, json};

fn reference(document: &Value, parse_special: bool) -> tokenizers::Tokenizer {
    let mut reference: tokenizers::Tokenizer = document.to_string().parse().unwrap();
    reference.set_encode_special_tokens(!parse_special);
    reference
}

#[test]
fn what_the_native_pipeline_does_not_understand_goes_to_the_reference() {
    for (name, file) in variants() {
        assert!(load(&file).is_native(), "{name}");
    }
    let mut other = document(&MERGES);
    other["normalizer"] = json!({"type": "Lowercase"});
    let tokenizer = load(&other);
    assert!(!tokenizer.is_native());
    let text = "The ABC <s>";
    let expected = reference(&other, false).encode(text, true).unwrap();
    assert_eq!(tokenizer.encode(text, EncodeOptions::default()).unwrap(), expected.get_ids());
    assert_eq!(tokenizer.count(text, EncodeOptions::default()).unwrap(), expected.len());
    assert_eq!(tokenizer.decode(&[97, 98], true, InvalidUtf8::Replace).unwrap(), "ab");
}

#[test]
fn batches_are_their_texts_in_order_on_any_number_of_threads() {
    let tokenizer = load(&document(&MERGES));
    let texts: Vec<String> =
        (0..3000).map(|index| format!("the abc {index} {}", "er ".repeat(index % 90))).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    for threads in [1, 2, 5] {
        let batch = tokenizer.encode_batch(&texts, EncodeOptions::default(), threads, &|| false).unwrap();
        assert_eq!(batch.offsets.len(), texts.len() + 1);
        for (index, text) in texts.iter().enumerate() {
            let ids = &batch.ids[batch.offsets[index]..batch.offsets[index + 1]];
            assert_eq!(ids, tokenizer.encode(text, EncodeOptions::default()).unwrap());
        }
        let offsets: Vec<i64> = batch.offsets.iter().map(|&offset| offset as i64).collect();
        let decoded = tokenizer
            .decode_batch(&batch.ids, &offsets, true, InvalidUtf8::Strict, threads, &|| false)
            .unwrap();
        assert_eq!((decoded.iter().collect::<Vec<_>>(), decoded.len()), (texts.clone(), texts.len()));
        assert_eq!(decoded.is_empty(), texts.is_empty());
        let counts =
            tokenizer.count_batch(&texts, EncodeOptions::default(), false, threads, &|| false).unwrap();
        assert_eq!(counts.iter().sum::<usize>(), batch.ids.len());
    }
}

#[test]
fn offsets_that_do_not_cut_the_ids_are_refused() {
    let tokenizer = load(&document(&MERGES));
    for offsets in [&[][..], &[0, 3], &[2, 1], &[-1, 1]] {
        let outcome = tokenizer.decode_batch(&[1, 2], offsets, true, InvalidUtf8::Replace, 1, &|| false);
        assert!(matches!(outcome, Err(TokenizeError::Offsets { .. })), "{offsets:?}");
    }
}

#[test]
fn ranks_need_a_pattern_and_consistent_special_tokens() {
    let mut lines: Vec<String> = (0..=255_u8).map(|byte| format!("{} {byte}", base64(&[byte]))).collect();
    lines.push(format!("{} 256", base64(b"the")));
    let ranks = lines.join("\n");
    let special_tokens = [("<s>".to_owned(), 300)];
    let given = TiktokenOptions { pattern: "gpt2", special_tokens: &special_tokens, eos_token: Some("<s>") };
    let tokenizer = Tokenizer::from_tiktoken_bytes(ranks.as_bytes(), &given).unwrap();
    assert_eq!(tokenizer.eos_token_id(), Some(300));
    assert_eq!(tokenizer.encode("the<s>", options(true, true)).unwrap(), [256, 300]);
    assert_eq!(tokenizer.vocab_size(), 301);
    assert!(matches!(
        tokenizer.decode(&[299], true, InvalidUtf8::Replace),
        Err(TokenizeError::UnassignedId { id: 299 })
    ));
    let wrong = TiktokenOptions { special_tokens: &[("<s>".to_owned(), 7)], ..given };
    assert!(matches!(
        Tokenizer::from_tiktoken_bytes(ranks.as_bytes(), &wrong),
        Err(TokenizeError::Malformed { .. })
    ));
    assert!(matches!(Tokenizer::from_bytes(ranks.as_bytes()), Err(TokenizeError::UnknownFormat { .. })));
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    bytes
        .chunks(3)
        .map(|group| {
            let word = group.iter().fold(0_u32, |word, &byte| word << 8 | u32::from(byte))
                << (8 * (3 - group.len()));
            let digit = |index: usize| char::from(DIGITS[(word >> (18 - 6 * index)) as usize & 63]);
            (0..4).map(|index| if index <= group.len() { digit(index) } else { '=' }).collect::<String>()
        })
        .collect()
}

fn text() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        "[ abcther12\n]{0,12}",
        "\\PC{0,4}",
        Just("<s>".to_owned()),
        Just("</s> ".to_owned()),
        Just("e\u{301}".to_owned()),
    ];
    proptest::collection::vec(part, 0..6).prop_map(|parts| parts.concat())
}

proptest! {
    #[test]
    fn any_text_gives_the_references_ids(text in text(), add: bool, parse: bool) {
        for (name, file) in variants() {
            let ours = load(&file);
            let expected = reference(&file, parse).encode(text.as_str(), add).unwrap();
            prop_assert_eq!(
                ours.encode(&text, options(add, parse)).unwrap(), expected.get_ids(), "{}: {:?}", name, text
            );
            prop_assert_eq!(ours.count_encoded(&text, options(add, parse)).unwrap(), expected.len());
        }
    }

    #[test]
    fn a_cut_text_fits(text in text(), limit in 0_usize..12, parse: bool) {
        for (name, file) in variants() {
            let ours = load(&file);
            let end = ours.truncate(&text, options(false, parse), limit).unwrap();
            prop_assert!(text.is_char_boundary(end));
            prop_assert!(ours.count(&text[..end], options(false, parse)).unwrap() <= limit, "{}: {:?}", name, text);
            let count = ours.count(&text, options(false, parse)).unwrap();
            prop_assert_eq!(ours.fits(&text, options(false, parse), limit).unwrap(), count <= limit);
            if count <= limit {
                prop_assert_eq!(end, text.len());
            }
        }
    }

    #[test]
    fn decoding_gives_the_references_text(ids in proptest::collection::vec(0_u32..269, 0..20), skip: bool) {
        let file = document(&MERGES);
        let ours = load(&file);
        let ids: Vec<u32> = ids.into_iter().filter(|&id| ours.id_to_token(id).is_some()).collect();
        let expected = reference(&file, true).decode(&ids, skip).unwrap();
        prop_assert_eq!(ours.decode(&ids, skip, InvalidUtf8::Replace).unwrap(), expected);
    }

    #[test]
    fn no_content_panics(content in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Tokenizer::from_bytes(&content);
        let options = TiktokenOptions { pattern: "gpt2", special_tokens: &[], eos_token: None };
        let _ = Tokenizer::from_tiktoken_bytes(&content, &options);
    }
}
