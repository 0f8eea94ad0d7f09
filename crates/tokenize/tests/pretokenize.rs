//! The scanners against the regular expressions that they stand for.
#![allow(clippy::unwrap_used)] // a test may panic

use fancy_regex::Regex;
use infer_accel_tokenize::pretokenize::Pretokenizer;
use proptest::prelude::*;

const PRESETS: [&str; 6] = ["gpt2", "cl100k", "llama3", "qwen2", "o200k", "tekken"];

struct Oracle {
    name: &'static str,
    regex: Regex,
    pretokenizer: Pretokenizer,
}

fn oracles() -> &'static [Oracle] {
    static ORACLES: std::sync::OnceLock<Vec<Oracle>> = std::sync::OnceLock::new();
    let oracle = |name| {
        let pattern = Pretokenizer::preset_pattern(name).unwrap();
        Oracle {
            name,
            regex: Regex::new(pattern).unwrap(),
            pretokenizer: Pretokenizer::preset(name).unwrap(),
        }
    };
    ORACLES.get_or_init(|| PRESETS.into_iter().map(oracle).collect())
}

fn check(text: &str) {
    for oracle in oracles() {
        let expected: Vec<&str> = oracle.regex.find_iter(text).map(|found| found.unwrap().as_str()).collect();
        let found = oracle.pretokenizer.split(text).unwrap();
        assert_eq!(found, expected, "{} on {text:?}", oracle.name);
    }
}

/// Pieces in which the patterns differ or have corners.
fn corner() -> impl Strategy<Value = String> {
    let pieces = [
        " ",
        "  ",
        "\n",
        "\r\n",
        "\t",
        "\u{a0}",
        "\u{3000}",
        "\u{2028}",
        "\u{85}",
        "'",
        "'s",
        "'S",
        "'\u{17f}",
        "'ll",
        "'Re",
        "'vE",
        "'d",
        "a",
        "b",
        "s",
        "t",
        "ll",
        "A",
        "B",
        "HTTP",
        "word",
        "Word",
        "1",
        "22",
        "333",
        "4444",
        "!",
        "/",
        "//",
        "-",
        "...",
        "é",
        "É",
        "ß",
        "ж",
        "Ж",
        "中",
        "文",
        "ª",
        "ʰ",
        "ǅ",
        "\u{301}",
        "\u{93f}",
        "क",
        "\u{0}",
        "\u{fffd}",
        "\u{10ffff}",
        "\u{378}",
        "٣",
        "Ⅷ",
        "½",
        "🙂",
        "\u{200d}",
        "_",
        "\u{1f}",
        "\u{7f}",
        "\u{85}",
    ];
    prop::collection::vec(prop::sample::select(pieces.to_vec()), 0..40).prop_map(|pieces| pieces.concat())
}

/// Text in which most is ASCII, with stretches long enough to fill whole blocks.
fn mostly_ascii() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        6 => "[a-z]{1,9}", 3 => " ", 2 => "[A-Z][a-zA-Z]{0,8}", 1 => "[0-9]{1,7}", 1 => "[ \n\r\t]{1,4}",
        1 => "[!-/:-@\\[-`{-~]{1,3}", 1 => "'(s|t|ll|ve|re|x|S|LL)?", 1 => "[à-ÿа-яА-Я一-丽]{1,4}",
        1 => "[a-z]{60,70}", 1 => " {60,70}",
    ];
    prop::collection::vec(piece, 0..60).prop_map(|pieces| pieces.concat())
}

#[test]
fn every_code_point_between_others() {
    let contexts = [("a", "b"), (" ", "B"), ("!", "\n"), ("\n", " "), ("1", "2"), ("'", "'"), ("", "")];
    let mut text = String::new();
    for (place, code_point) in (0..=0x10_ffff).filter_map(char::from_u32).enumerate() {
        // All in one context, those below U+3000 and a seventh of the rest in the others too.
        let others = if place % 7 == 0 || place < 0x3000 { contexts.len() } else { 1 };
        for (before, after) in &contexts[..others] {
            text.extend([*before, code_point.encode_utf8(&mut [0; 4]), after, "\n"]);
        }
        if text.len() > 1 << 16 {
            check(&text);
            text.clear();
        }
    }
    check(&text);
}

#[test]
fn trailing_white_space_is_whole_only_in_the_newer_cl100k() {
    let split = |name, text| -> Vec<String> {
        let pretokenizer = Pretokenizer::preset(name).unwrap();
        pretokenizer.split(text).unwrap().into_iter().map(str::to_owned).collect()
    };
    assert_eq!(split("cl100k", "a \n  "), ["a", " \n  "]);
    assert_eq!(split("llama3", "a \n  "), ["a", " \n", "  "]);
}

#[test]
fn spellings_are_known() {
    for name in PRESETS {
        let pattern = Pretokenizer::preset_pattern(name).unwrap();
        assert!(Pretokenizer::from_pattern(pattern).unwrap().is_known(), "{name}");
    }
    assert!(!Pretokenizer::from_pattern(r"\w+|\W").unwrap().is_known());
    assert!(Pretokenizer::from_pattern("(").is_err());
    assert!(Pretokenizer::preset("no such preset").is_none());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn corners(text in corner()) {
        check(&text);
    }

    #[test]
    fn long_ascii_stretches(text in mostly_ascii()) {
        check(&text);
    }

    #[test]
    fn any_unicode(text in any::<String>()) {
        check(&text);
    }
}
