//! Texts that grow, prompts that begin alike, segments, offsets and streams, each against encoding the whole.
#![allow(clippy::unwrap_used, missing_docs)]

mod made;

use std::fmt::Write as _;
use std::sync::{Arc, OnceLock};

use infer_accel_tokenize::{
    EncodeOptions, InvalidUtf8, PromptCache, Session, StreamDecoder, Tokenizer, in_characters,
};
use made::{MERGES, document, load, options, variants};
use proptest::prelude::*;
use serde_json::{Value, json};

/// Every native variant, with each of the patterns, and two that are not native.
fn tokenizers() -> &'static [(String, Arc<Tokenizer>)] {
    static TOKENIZERS: OnceLock<Vec<(String, Arc<Tokenizer>)>> = OnceLock::new();
    TOKENIZERS.get_or_init(|| {
        let mut all: Vec<(String, Value)> =
            variants().into_iter().map(|(name, file)| (name.to_owned(), file)).collect();
        for preset in ["qwen3.5", "llama3", "qwen2", "o200k"] {
            let mut file = document(&MERGES);
            file["pre_tokenizer"] = split(preset);
            file["added_tokens"][0]["special"] = json!(false);
            all.push((preset.to_owned(), file));
        }
        let mut lower = document(&MERGES);
        lower["normalizer"] = json!({"type": "Lowercase"});
        all.push(("lower".to_owned(), lower));
        all.into_iter().map(|(name, file)| (name, Arc::new(load(&file)))).collect()
    })
}

fn split(preset: &str) -> Value {
    let pattern = infer_accel_tokenize::pretokenize::Pretokenizer::preset_pattern(preset).unwrap();
    json!({"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
        {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
    ]})
}

/// Without truncation, which growing texts leave out.
fn whole(tokenizer: &Tokenizer, text: &str, options: EncodeOptions) -> Vec<u32> {
    let offsets = tokenizer.offsets(text, options).unwrap();
    offsets.into_iter().map(|(id, _)| id).collect()
}

const PIECES: [&str; 30] = [
    "the", " the", "abc", "er ", "12", "3", " ", "  ", "\n", "\r\n", "\t", "'", "'s", "'ll", "!", "/", "...",
    "é", "e", "\u{301}", "漢字", "。", "🙂", "<s>", "<s", ">", "</s>", "A", "Z\u{338}", "\u{3000}",
];

fn text(pieces: usize) -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(&PIECES[..]), 0..pieces).prop_map(|pieces| pieces.concat())
}

fn floor(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|&at| text.is_char_boundary(at)).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn a_session_has_the_ids_of_the_whole_text(
        parts in prop::collection::vec(text(12), 1..8), add in any::<bool>(), parse in any::<bool>(),
    ) {
        for (name, tokenizer) in tokenizers() {
            let mut session = Session::new(Arc::clone(tokenizer), options(add, parse)).unwrap();
            let mut so_far = String::new();
            for part in &parts {
                let (before, settled) = (session.ids().to_vec(), session.settled());
                let kept = session.append(part).unwrap();
                so_far.push_str(part);
                prop_assert_eq!(session.ids(), &whole(tokenizer, &so_far, options(add, parse)), "{}", name);
                prop_assert!(settled <= kept && kept <= before.len() && settled <= session.settled());
                prop_assert_eq!(&session.ids()[..kept.min(session.ids().len())], &before[..kept]);
            }
        }
    }

    #[test]
    fn a_cached_prompt_has_the_ids_of_the_prompt(
        base in text(900), ends in prop::collection::vec((0..4000_usize, text(60)), 1..4),
        add in any::<bool>(), parse in any::<bool>(), capacity in prop::sample::select(&[0, 4000, 1 << 20][..]),
    ) {
        for (name, tokenizer) in tokenizers() {
            let cache = PromptCache::new(Arc::clone(tokenizer), capacity);
            for (at, end) in &ends {
                let prompt = format!("{}{end}{}", &base[..floor(&base, *at)], &base[floor(&base, *at)..]);
                for options in [options(add, parse), options(!add, !parse)] {
                    let expected = tokenizer.encode(&prompt, options).unwrap();
                    prop_assert_eq!(&cache.encode(&prompt, options).unwrap(), &expected, "{}", name);
                    let count = tokenizer.count(&prompt, options).unwrap();
                    prop_assert_eq!(cache.count(&prompt, options).unwrap(), count, "{}", name);
                }
            }
            let stats = cache.stats();
            prop_assert!(stats.bytes <= stats.capacity_bytes && stats.capacity_bytes <= capacity);
        }
    }

    #[test]
    fn segments_of_one_kind_are_the_text(parts in prop::collection::vec(text(8), 0..6), add in any::<bool>()) {
        let joined = parts.concat();
        for (name, tokenizer) in tokenizers() {
            for trusted in [true, false] {
                let segments: Vec<_> = parts.iter().map(|part| (part.as_str(), trusted)).collect();
                let ids = tokenizer.encode_segments(&segments, add).unwrap();
                let trusted = trusted && !joined.is_empty();
                prop_assert_eq!(ids, tokenizer.encode(&joined, options(add, trusted)).unwrap(), "{}", name);
            }
        }
    }

    #[test]
    fn untrusted_text_never_becomes_a_special_token(parts in prop::collection::vec((text(8), any::<bool>()), 0..6)) {
        let segments: Vec<_> = parts.iter().map(|(text, trusted)| (text.as_str(), *trusted)).collect();
        let joined: String = segments.iter().map(|(text, _)| *text).collect();
        for (name, tokenizer) in tokenizers() {
            let Ok(ids) = tokenizer.encode_segments(&segments, false) else {
                prop_assert!(!tokenizer.is_native());
                continue;
            };
            if tokenizer.encode(&joined, EncodeOptions::default()).unwrap().len() < 5 {
                continue; // truncated
            }
            let allowed: usize = ["<s>", "</s>", "<s> \n the"].iter().map(|content| {
                segments.iter().filter(|(_, trusted)| *trusted).map(|(text, _)| text.matches(content).count()).sum::<usize>()
                + segments.windows(2).filter(|pair| pair[0].1 && pair[1].1).count() * 5
            }).sum();
            let special = ids.iter().filter(|&&id| tokenizer.is_special(id)).count();
            prop_assert!(special <= allowed, "{}: {:?}", name, segments);
        }
    }

    #[test]
    fn offsets_lie_in_order_and_cover_what_decodes_to_the_text(text in text(40), parse in any::<bool>()) {
        for (name, tokenizer) in tokenizers() {
            let located = tokenizer.offsets(&text, options(false, parse)).unwrap();
            let mut end = 0;
            for (id, part) in &located {
                prop_assert!(part.start <= part.end && part.end <= text.len(), "{}", name);
                prop_assert!(part.start <= end || !tokenizer.is_native() || name == "nfc", "{}: no gap", name);
                end = end.max(part.end);
                if ["plain", "ordinary", "o200k"].contains(&name.as_str()) {
                    let bytes = tokenizer.decode_bytes(&[*id], false).unwrap();
                    prop_assert_eq!(&text.as_bytes()[part.clone()], &bytes);
                }
            }
            // What normalization composes away belongs to no token.
            prop_assert!(end == text.len() || !tokenizer.is_native() || name == "nfc", "{}", name);
            let characters = in_characters(&text, located.iter().map(|(_, part)| part.clone()));
            let count = text.chars().count();
            prop_assert!(characters.iter().all(|part| part.start <= part.end && part.end <= count));
        }
    }

    #[test]
    fn a_stream_shows_what_decoding_shows(
        ids in prop::collection::vec(0..275_u32, 0..40), skip in any::<bool>(), start in 0..40_usize,
    ) {
        for (name, tokenizer) in tokenizers() {
            let size = tokenizer.vocab_size() as u32;
            let ids: Vec<u32> = ids.iter().map(|id| id % size).collect();
            for invalid in [InvalidUtf8::Replace, InvalidUtf8::Ignore] {
                let mut stream = StreamDecoder::new(Arc::clone(tokenizer), skip, invalid);
                let mut shown = String::new();
                for _ in 0..2 {
                    shown.clear();
                    ids.iter().try_for_each(|&id| stream.step(id, &mut shown)).unwrap();
                    stream.finish(&mut shown).unwrap();
                    prop_assert_eq!(&shown, &tokenizer.decode(&ids, skip, invalid).unwrap(), "{}", name);
                }
            }
            let (prompt, rest) = ids.split_at(start.min(ids.len()));
            let mut stream = StreamDecoder::new(Arc::clone(tokenizer), skip, InvalidUtf8::Ignore).after(prompt).unwrap();
            let mut shown = String::new();
            rest.iter().try_for_each(|&id| stream.step(id, &mut shown)).unwrap();
            stream.finish(&mut shown).unwrap();
            let all = tokenizer.decode(&ids, skip, InvalidUtf8::Ignore).unwrap();
            prop_assert!(all.ends_with(&shown), "{}: {:?} {:?}", name, all, shown);
        }
    }
}

#[test]
fn a_growing_prompt_is_encoded_once() {
    let (_, tokenizer) = &tokenizers()[0];
    let cache = PromptCache::new(Arc::clone(tokenizer), 1 << 22);
    let mut prompt = String::new();
    for turn in 0..50 {
        writeln!(prompt, "<s>turn {turn}: the abc is the {} er", "the 12 ".repeat(300)).unwrap();
        let expected = tokenizer.encode(&prompt, options(true, true)).unwrap();
        assert_eq!(cache.encode(&prompt, options(true, true)).unwrap(), expected);
    }
    let stats = cache.stats();
    assert!(stats.encoded_bytes < 2 * prompt.len() as u64, "{stats:?}");
    assert!(stats.reused_bytes > 20 * prompt.len() as u64, "{stats:?}");
}

#[test]
fn a_part_that_is_there_ends_where_this_text_may_be_cut() {
    let base = format!("!{}", long(5, 2600));
    for (name, tokenizer) in tokenizers() {
        for at in (1025..1060).filter(|at| base.is_char_boundary(*at)) {
            let cache = PromptCache::new(Arc::clone(tokenizer), 1 << 16);
            for end in ["x", "s", " ", "\n", "1", "'s", "/", "\u{301}", "漢", &base] {
                // The last end begins as the text does, which gets a space before it in some files, and this does not. What a
                // text leaves behind may take the place of the part that the next one begins with.
                cache.encode(&base, options(false, false)).unwrap();
                let prompt = format!("{}{end}", &base[..at]);
                let expected = tokenizer.encode(&prompt, options(false, false)).unwrap();
                assert_eq!(
                    cache.encode(&prompt, options(false, false)).unwrap(),
                    expected,
                    "{name} {at} {end:?}"
                );
            }
        }
    }
}

/// A text of this many bytes or a little more, which does not repeat itself.
fn long(seed: u64, length: usize) -> String {
    let (mut state, mut text) = (seed, String::new());
    while text.len() < length {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        text.push_str(PIECES[(state >> 33) as usize % PIECES.len()]);
    }
    text
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn long_prompts_have_their_ids_whatever_was_there_before(
        seeds in prop::collection::vec(0..3_u64, 2..6),
        changes in prop::collection::vec((0..220_000_usize, text(20), any::<bool>()), 2..6),
        parse in any::<bool>(), capacity in prop::sample::select(&[300_000, 2 << 20, 8 << 20][..]),
    ) {
        let several = ["plain", "nfc", "llama3", "o200k"];
        let known = tokenizers().iter().filter(|(name, _)| several.contains(&name.as_str()));
        for (name, tokenizer) in known {
            let cache = PromptCache::new(Arc::clone(tokenizer), capacity);
            for (seed, (at, change, ends)) in seeds.iter().zip(&changes) {
                let base = long(*seed, 200_000);
                let (head, tail) = base.split_at(floor(&base, *at));
                let prompt = if *ends { format!("{head}{change}") } else { format!("{head}{change}{tail}") };
                let options = options(false, parse);
                let expected = tokenizer.encode(&prompt, options).unwrap();
                // The first time keeps the smallest parts, the second and the third join them.
                for _ in 0..4 {
                    prop_assert_eq!(&cache.encode(&prompt, options).unwrap(), &expected, "{}", name);
                    prop_assert_eq!(cache.count(&prompt, options).unwrap(), expected.len(), "{}", name);
                }
                let stats = cache.stats();
                prop_assert!(stats.bytes <= stats.capacity_bytes && stats.capacity_bytes <= capacity);
            }
        }
    }
}

#[test]
fn what_comes_again_is_joined() {
    let (_, tokenizer) = tokenizers().iter().find(|(name, _)| name == "llama3").unwrap();
    let cache = PromptCache::new(Arc::clone(tokenizer), 16 << 20);
    let prompt = long(7, 150_000);
    let mut entries = Vec::new();
    for _ in 0..4 {
        assert_eq!(
            cache.encode(&prompt, options(false, true)).unwrap(),
            tokenizer.encode(&prompt, options(false, true)).unwrap()
        );
        entries.push(cache.stats().entries);
    }
    // 150 KB are 140 parts or so, 17 of the next level and 2 of the last.
    assert!(entries[0] > 120 && entries[0] < 150, "{entries:?}");
    assert!(entries[1] - entries[0] >= 15 && entries[1] - entries[0] <= 18, "{entries:?}");
    assert_eq!((entries[2] - entries[1], entries[3] - entries[2]), (2, 0), "{entries:?}");
    let stats = cache.stats();
    assert_eq!(stats.reused_bytes + stats.encoded_bytes, 4 * prompt.len() as u64);
    assert!(stats.encoded_bytes < prompt.len() as u64 + 4 * 1200, "{stats:?}");
}

#[test]
fn threads_share_a_cache() {
    let (_, tokenizer) = tokenizers().iter().find(|(name, _)| name == "llama3").unwrap();
    // So small that threads push out what others have just found.
    for capacity in [200_000, 3 << 20] {
        let cache = PromptCache::new(Arc::clone(tokenizer), capacity);
        let prompts: Vec<String> = (0..3).map(|seed| long(seed, 120_000)).collect();
        let expected: Vec<_> =
            prompts.iter().map(|prompt| tokenizer.encode(prompt, options(false, false)).unwrap()).collect();
        std::thread::scope(|scope| {
            for thread in 0..16 {
                let (cache, prompts, expected) = (&cache, &prompts, &expected);
                scope.spawn(move || {
                    for round in 0..6 {
                        let which = (thread + round) % prompts.len();
                        let ids = cache.encode(&prompts[which], options(false, false)).unwrap();
                        assert!(ids == expected[which]);
                    }
                });
            }
        });
        let stats = cache.stats();
        assert!(stats.bytes <= stats.capacity_bytes);
    }
}

#[test]
fn segments_are_split_as_one_text() {
    let (_, tokenizer) = &tokenizers()[0];
    let special = tokenizer.token_to_id("<s>").unwrap();
    let ids = tokenizer.encode_segments(&[("<s>th", true), ("e<s>", false), ("<s>", true)], true).unwrap();
    let mut expected = vec![special];
    expected.extend(tokenizer.encode("the<s>", options(true, false)).unwrap());
    expected.push(special);
    assert_eq!(ids, expected);
    let across = tokenizer.encode_segments(&[("<", true), ("s>", false)], true).unwrap();
    assert_eq!(across, tokenizer.encode("<s>", options(true, false)).unwrap());
}

#[test]
fn a_stream_refuses_an_unknown_id_and_goes_on() {
    for (name, tokenizer) in tokenizers() {
        let mut stream = StreamDecoder::new(Arc::clone(tokenizer), true, InvalidUtf8::Replace);
        let mut shown = String::new();
        stream.step(0xe6, &mut shown).unwrap();
        stream.step(1 << 20, &mut shown).unwrap_err();
        for id in [0xbc, 0xa2] {
            stream.step(id, &mut shown).unwrap();
        }
        stream.finish(&mut shown).unwrap();
        assert_eq!(shown, "漢", "{name}");
        assert!(
            StreamDecoder::new(Arc::clone(tokenizer), true, InvalidUtf8::Replace).after(&[1 << 20]).is_err()
        );
    }
}
