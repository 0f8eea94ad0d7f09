//! Batches, whose texts are encoded together, against each text alone.
#![allow(clippy::unwrap_used, missing_docs)]

mod made;

use std::sync::OnceLock;

use infer_accel_tokenize::Tokenizer;
use made::{MERGES, document, load, options, variants};
use proptest::prelude::*;
use serde_json::json;

/// Every native variant, one that pads, one that leaves bytes out that have no token, and one that is not native.
fn tokenizers() -> &'static [(&'static str, Tokenizer)] {
    static TOKENIZERS: OnceLock<Vec<(&str, Tokenizer)>> = OnceLock::new();
    TOKENIZERS.get_or_init(|| {
        let mut files = variants();
        let mut padded = document(&MERGES);
        padded["padding"] = json!({"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": 3, "pad_type_id": 0, "pad_token": "x"});
        files.push(("padding", padded));
        let mut incomplete = document(&MERGES);
        incomplete["model"]["vocab"].as_object_mut().unwrap().remove("!");
        files.push(("left out", incomplete));
        let mut lower = document(&MERGES);
        lower["normalizer"] = json!({"type": "Lowercase"});
        files.push(("lower", lower));
        files.into_iter().map(|(name, file)| (name, load(&file))).collect()
    })
}

const PIECES: [&str; 18] = [
    "the", " the", "abc", "er ", "12", " ", "  ", "\n", "'s", "!", "é", "e\u{301}", "漢字", "🙂", "<s>",
    "</s>", "A", "x",
];

/// Short texts, texts of one span that has many ids, and now and then one too long to be put beside others.
fn text() -> impl Strategy<Value = String> {
    let pieces = |count| prop::collection::vec(prop::sample::select(&PIECES[..]), 0..count);
    prop_oneof![
        6 => pieces(40).prop_map(|pieces| pieces.concat()),
        2 => (prop::sample::select(&PIECES[..]), 0..700_usize).prop_map(|(piece, times)| piece.repeat(times)),
        1 => (pieces(40), 1..300_usize).prop_map(|(pieces, times)| pieces.concat().repeat(times)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn a_batch_is_its_texts(
        texts in prop::collection::vec(text(), 0..40),
        add_special_tokens in any::<bool>(),
        parse_special in any::<bool>(),
        threads in 1..4_usize,
    ) {
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let options = options(add_special_tokens, parse_special);
        for (name, tokenizer) in tokenizers() {
            let alone: Vec<Vec<u32>> = texts.iter().map(|text| tokenizer.encode(text, options).unwrap()).collect();
            let longest = alone.iter().map(Vec::len).max().unwrap_or(0);
            let batch = tokenizer.encode_batch(&texts, options, threads, &|| false).unwrap();
            prop_assert_eq!(batch.offsets.len(), texts.len() + 1);
            for (ids, place) in alone.iter().zip(batch.offsets.windows(2)) {
                let found = &batch.ids[place[0]..place[1]];
                if *name == "padding" {
                    prop_assert_eq!(&found[..ids.len()], ids, "{}", name);
                    prop_assert!(found.len() == longest && found[ids.len()..].iter().all(|id| *id == 3));
                } else {
                    prop_assert_eq!(found, ids, "{}", name);
                }
            }
            for truncation in [false, true] {
                let counts = tokenizer.count_batch(&texts, options, truncation, threads, &|| false).unwrap();
                for (text, count) in texts.iter().zip(counts) {
                    let expected = if truncation {
                        tokenizer.count_encoded(text, options).unwrap()
                    } else {
                        tokenizer.count(text, options).unwrap()
                    };
                    prop_assert_eq!(count, expected, "{} {:?}", name, text);
                }
            }
        }
    }
}
