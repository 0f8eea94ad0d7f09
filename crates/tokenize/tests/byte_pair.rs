//! The byte-pair encoder against the definition of byte-pair encoding, with vocabularies trained here.
#![allow(clippy::unwrap_used)] // a test may panic

use std::collections::HashMap;

use infer_accel_tokenize::TokenizeError;
use infer_accel_tokenize::bpe::{BpeParts, BytePairEncoder, Merges, Symbols};
use infer_accel_tokenize::pretokenize::{Pretokenizer, Unmatched};
use proptest::prelude::*;

const TEXT: &str = "the quick brown fox jumps over the lazy dog; the other thing that they thought of was then that \
                    there were others there, and that those others were thinking of the same thing. aaaaaaaaaaaaaaaa \
                    1000 2000 3000 hello hello world worlds     spaces      and\n\n\nlines\n\n   indented мир миру мира";

#[derive(Debug)]
struct Trained {
    tokens: Vec<(Vec<u8>, u32)>,
    pairs: Vec<(u32, u32)>,
}

/// Plain training: the commonest pair of neighbours merges, again and again.
fn train(merges: usize) -> Trained {
    let mut tokens: Vec<(Vec<u8>, u32)> = (0..=255_u8).map(|byte| (vec![byte], u32::from(byte))).collect();
    let mut pairs = Vec::new();
    let spans = Pretokenizer::preset("cl100k").unwrap().split(TEXT).unwrap();
    let mut words: Vec<Vec<u32>> = spans.iter().map(|span| span.bytes().map(u32::from).collect()).collect();
    for _ in 0..merges {
        let mut counts: HashMap<(u32, u32), usize> = HashMap::new();
        for word in &words {
            for pair in word.windows(2) {
                *counts.entry((pair[0], pair[1])).or_default() += 1;
            }
        }
        let Some((&pair, _)) = counts.iter().max_by_key(|(pair, count)| (**count, **pair)) else { break };
        let bytes = [&*tokens[pair.0 as usize].0, &*tokens[pair.1 as usize].0].concat();
        if tokens.iter().any(|token| token.0 == bytes) {
            break;
        }
        let id = tokens.len() as u32;
        tokens.push((bytes, id));
        pairs.push(pair);
        for word in &mut words {
            merge_in(word, pair, id);
        }
    }
    Trained { tokens, pairs }
}

fn merge_in(word: &mut Vec<u32>, pair: (u32, u32), id: u32) {
    let mut place = 0;
    while place + 1 < word.len() {
        if (word[place], word[place + 1]) == pair {
            word[place] = id;
            word.remove(place + 1);
        }
        place += 1;
    }
}

/// Always the lowest rank, leftmost first, by looking at every pair every time.
fn encode_by_definition(trained: &Trained, by_rank: bool, text: &str) -> Vec<u32> {
    let ids: HashMap<&[u8], u32> = trained.tokens.iter().map(|(bytes, id)| (&**bytes, *id)).collect();
    let merged = |pair: (u32, u32)| {
        let bytes = [&*trained.tokens[pair.0 as usize].0, &*trained.tokens[pair.1 as usize].0].concat();
        let id = ids.get(&*bytes).copied()?;
        (by_rank || trained.pairs.contains(&pair)).then_some(id)
    };
    let mut out = Vec::new();
    for span in Pretokenizer::preset("cl100k").unwrap().split(text).unwrap() {
        if by_rank && let Some(&id) = ids.get(span.as_bytes()) {
            out.push(id);
            continue;
        }
        let mut word: Vec<u32> = span.bytes().map(u32::from).collect();
        loop {
            let best = word
                .windows(2)
                .enumerate()
                .filter_map(|(place, pair)| Some((merged((pair[0], pair[1]))?, place)));
            let Some((id, place)) = best.min() else { break };
            word[place] = id;
            word.remove(place + 1);
        }
        out.extend(word);
    }
    out
}

fn encoder(trained: &Trained, by_rank: bool) -> BytePairEncoder {
    let merges = if by_rank { Merges::ByRank } else { Merges::Pairs(trained.pairs.clone()) };
    let parts = BpeParts {
        tokens: trained.tokens.clone(),
        merges,
        begins_with: Symbols::Bytes,
        ignore_merges: false,
    };
    BytePairEncoder::new(Pretokenizer::preset("cl100k").unwrap(), parts).unwrap()
}

/// Encodes in every way and holds the ways against each other.
fn encode(encoder: &BytePairEncoder, text: &str, tokens: &[(Vec<u8>, u32)]) -> Vec<u32> {
    let (mut ids, mut spans) = (Vec::new(), Vec::new());
    encoder.encode_into(text, &mut ids).unwrap();
    encoder.encode_with_spans(text, &mut spans).unwrap();
    assert_eq!(encoder.count(text, usize::MAX).unwrap(), ids.len());
    assert!(encoder.count(text, ids.len() / 2).unwrap() > ids.len() / 2 || ids.is_empty());
    assert_eq!(spans.iter().map(|span| span.id).collect::<Vec<_>>(), ids);
    let mut end = 0;
    for span in spans {
        assert_eq!(span.start as usize, end);
        end = span.end as usize;
        assert_eq!(&text.as_bytes()[span.start as usize..end], tokens[span.id as usize].0);
    }
    assert_eq!(end, text.len());
    ids
}

fn pieces() -> impl Strategy<Value = String> {
    let words = TEXT.split_inclusive(' ').map(str::to_owned).collect::<Vec<_>>();
    let piece = prop_oneof![
        4 => prop::sample::select(words), 2 => "[a-t]{1,20}", 1 => "[hetao ]{1,120}", 1 => " {1,20}", 1 => any::<String>(),
        1 => "[а-я]{1,30}",
    ];
    prop::collection::vec(piece, 0..30).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn equals_the_definition(text in pieces(), merges in 0_usize..200) {
        let trained = train(merges);
        for by_rank in [false, true] {
            let encoder = encoder(&trained, by_rank);
            let expected = encode_by_definition(&trained, by_rank, &text);
            // The second time comes out of the cache.
            prop_assert_eq!(&encode(&encoder, &text, &trained.tokens), &expected);
            prop_assert_eq!(&encode(&encoder, &text, &trained.tokens), &expected);
        }
    }
}

/// Vocabularies that no training gives: random tokens over three letters, in random order.
fn untrained() -> impl Strategy<Value = Trained> {
    prop::collection::hash_set("[abc]{2,9}", 0..120).prop_map(|words| {
        let mut tokens: Vec<(Vec<u8>, u32)> =
            (0..=255_u8).map(|byte| (vec![byte], u32::from(byte))).collect();
        tokens.extend((256..).zip(words).map(|(id, word)| (word.into_bytes(), id)));
        Trained { tokens, pairs: Vec::new() }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn ranks_in_any_order_equal_the_definition(trained in untrained(), text in "([abc]{1,70}[ .\n]{0,3}){1,40}") {
        let encoder = encoder(&trained, true);
        let expected = encode_by_definition(&trained, true, &text);
        prop_assert_eq!(&encode(&encoder, &text, &trained.tokens), &expected);
        prop_assert_eq!(&encode(&encoder, &text, &trained.tokens), &expected);
    }
}

#[test]
fn lists_longer_than_an_entry_outlive_their_place_in_the_cache() {
    let trained = train(30);
    let encoder = encoder(&trained, true);
    // Each span is five ids or more, and all together are more than the cache keeps.
    let text = (0..20_000_u32)
        .map(|number| format!(" q{number:07}x{:05}zz", number * 7))
        .collect::<Vec<_>>()
        .concat();
    let expected = encode_by_definition(&trained, true, &text);
    for _ in 0..2 {
        assert_eq!(encode(&encoder, &text, &trained.tokens), expected);
    }
    let code = "\n        return 0\n            if ________ != ........\n".repeat(300);
    assert_eq!(encode(&encoder, &code, &trained.tokens), encode_by_definition(&trained, true, &code));
}

#[test]
fn long_repeats_take_linear_time_and_give_the_right_ids() {
    let trained = train(200);
    let encoder = encoder(&trained, true);
    for unit in ["a", " ", "\0", "\u{fffd}", "the", "'", "\n", "1", "ж"] {
        let (short, long) = (unit.repeat(96), unit.repeat(400_000));
        let found = encode(&encoder, &short, &trained.tokens);
        assert_eq!(found, encode_by_definition(&trained, true, &short), "{unit:?}");
        encode(&encoder, &long, &trained.tokens);
    }
}

#[test]
fn threads_share_one_encoder() {
    let trained = train(200);
    let encoder = encoder(&trained, false);
    let expected = encode_by_definition(&trained, false, TEXT);
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                for _ in 0..50 {
                    assert_eq!(encode(&encoder, TEXT, &trained.tokens), expected);
                }
            });
        }
    });
}

#[test]
fn whole_tokens_come_first_only_where_asked() {
    // "ab" is a token that no merge makes.
    let mut tokens: Vec<(Vec<u8>, u32)> = (0..=255_u8).map(|byte| (vec![byte], u32::from(byte))).collect();
    tokens.push((b"ab".to_vec(), 300));
    for (ignore_merges, expected) in [(true, vec![300]), (false, vec![97, 98])] {
        let parts = BpeParts {
            tokens: tokens.clone(),
            merges: Merges::Pairs(Vec::new()),
            begins_with: Symbols::Bytes,
            ignore_merges,
        };
        let encoder = BytePairEncoder::new(Pretokenizer::preset("gpt2").unwrap(), parts).unwrap();
        for _ in 0..2 {
            let mut ids = Vec::new();
            encoder.encode_into("ab", &mut ids).unwrap();
            assert_eq!(ids, expected);
        }
    }
}

#[test]
fn dropped_text_has_no_ids_and_no_span() {
    let trained = train(0);
    let parts = BpeParts {
        tokens: trained.tokens.clone(),
        merges: Merges::ByRank,
        begins_with: Symbols::Bytes,
        ignore_merges: false,
    };
    let pretokenizer = Pretokenizer::from_pattern("[a-z]+").unwrap().with_unmatched(Unmatched::Drop);
    let encoder = BytePairEncoder::new(pretokenizer, parts).unwrap();
    let mut spans = Vec::new();
    encoder.encode_with_spans("A bc", &mut spans).unwrap();
    let spans: Vec<_> = spans.iter().map(|span| (span.id, span.start, span.end)).collect();
    assert_eq!(spans, [(98, 2, 3), (99, 3, 4)]);
    assert_eq!(encoder.count("A bc", 0).unwrap(), 2);
}

#[test]
fn malformed_parts_are_refused() {
    let bytes: Vec<(Vec<u8>, u32)> = (0..=255_u8).map(|byte| (vec![byte], u32::from(byte))).collect();
    let build = |tokens: Vec<(Vec<u8>, u32)>, merges| {
        let parts = BpeParts { tokens, merges, begins_with: Symbols::Bytes, ignore_merges: false };
        BytePairEncoder::new(Pretokenizer::preset("gpt2").unwrap(), parts).err()
    };
    let with = |extra: &[(&[u8], u32)]| {
        bytes.iter().cloned().chain(extra.iter().map(|(token, id)| (token.to_vec(), *id))).collect::<Vec<_>>()
    };
    assert!(build(bytes.clone(), Merges::ByRank).is_none());
    assert!(matches!(
        build(bytes[1..].to_vec(), Merges::ByRank),
        Some(TokenizeError::MissingByte { byte: 0 })
    ));
    for (extra, part) in [
        (&[(&b"ab"[..], 256), (&b"ab"[..], 257)][..], "two ids"),
        (
            &[
                (&b"a long token, above fifteen bytes"[..], 256),
                (&b"a long token, above fifteen bytes"[..], 257),
            ][..],
            "two ids",
        ),
        (&[(&b"ab"[..], 97)][..], "two tokens"),
        (&[(&b""[..], 256)][..], "empty"),
        (&[(&b"ab"[..], u32::MAX)][..], "out of range"),
    ] {
        let message = build(with(extra), Merges::ByRank).unwrap().to_string();
        assert!(message.contains(part), "{message}");
    }
    for (pairs, part) in [(vec![(97, 400)], "no token has id 400"), (vec![(97, 98)], "not in the vocabulary")]
    {
        // Beyond all ids, and in a gap between them.
        for tokens in [bytes.clone(), with(&[(b"cd", 500)])] {
            let message = build(tokens, Merges::Pairs(pairs.clone())).unwrap().to_string();
            assert!(message.contains(part), "{message}");
        }
    }
}
