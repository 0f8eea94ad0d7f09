//! The scanners against the regular expressions that they stand for.
#![allow(clippy::unwrap_used)] // a test may panic

use fancy_regex::Regex;
use infer_accel_tokenize::pretokenize::{Pretokenizer, Step};
use proptest::prelude::*;

const PRESETS: [&str; 7] = ["gpt2", "cl100k", "llama3", "qwen2", "qwen3.5", "o200k", "tekken"];

/// What the step `Digits` of the reference takes for a number: its tables are newer than its regex engine's.
const DIGIT: &str = r"[\p{N}\x{11de0}-\x{11de9}\x{16ff4}-\x{16ff6}]";

struct Oracle {
    name: &'static str,
    /// Applied one after the other, what lies between matches kept.
    regexes: Vec<Regex>,
    pretokenizer: Pretokenizer,
}

impl Oracle {
    fn split<'t>(&self, text: &'t str) -> Vec<&'t str> {
        let whole = if text.is_empty() { Vec::new() } else { vec![text] };
        self.regexes.iter().fold(whole, |pieces, regex| {
            pieces.into_iter().flat_map(|piece| isolated(regex, piece)).collect()
        })
    }
}

fn isolated<'t>(regex: &Regex, text: &'t str) -> Vec<&'t str> {
    let (mut pieces, mut covered) = (Vec::new(), 0);
    for found in regex.find_iter(text).map(Result::unwrap) {
        pieces.extend([&text[covered..found.start()], found.as_str()]);
        covered = found.end();
    }
    pieces.push(&text[covered..]);
    pieces.retain(|piece| !piece.is_empty());
    pieces
}

fn oracles() -> &'static [Oracle] {
    static ORACLES: std::sync::OnceLock<Vec<Oracle>> = std::sync::OnceLock::new();
    let regex = |step: &Step<'_>| match step {
        Step::Split(pattern) => Regex::new(pattern).unwrap(),
        Step::Digits => Regex::new(DIGIT).unwrap(),
        Step::Gpt2 => Regex::new(Pretokenizer::preset_pattern("gpt2").unwrap()).unwrap(),
    };
    let oracle = |(name, steps): (_, &[Step<'_>])| Oracle {
        name,
        regexes: steps.iter().map(regex).collect(),
        pretokenizer: Pretokenizer::from_steps(steps).unwrap(),
    };
    let cl100k = || Oracle {
        name: "cl100k",
        regexes: vec![Regex::new(Pretokenizer::preset_pattern("cl100k").unwrap()).unwrap()],
        pretokenizer: Pretokenizer::preset("cl100k").unwrap(),
    };
    ORACLES.get_or_init(|| Pretokenizer::all_steps().map(oracle).chain([cl100k()]).collect())
}

fn check(text: &str) {
    for oracle in oracles() {
        let expected = oracle.split(text);
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
        "カナ",
        "ひ",
        "・",
        "\u{3040}",
        "\u{3099}",
        "。",
        "$",
        "\u{11de0}",
        "\u{16ff4}",
        "\u{e000}",
    ];
    prop::collection::vec(prop::sample::select(pieces.to_vec()), 0..40).prop_map(|pieces| pieces.concat())
}

/// Text in which most is ASCII, with stretches long enough to fill whole blocks.
fn mostly_ascii() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        6 => "[a-z]{1,9}", 3 => " ", 2 => "[A-Z][a-zA-Z]{0,8}", 1 => "[0-9]{1,7}", 1 => "[ \n\r\t]{1,4}",
        1 => "[!-/:-@\\[-`{-~]{1,3}", 1 => "'(s|t|ll|ve|re|x|S|LL)?", 1 => "[à-ÿа-яА-Я一-丽]{1,4}",
        1 => "[ぁ-ヿ一-丽。・]{1,9}", 1 => "[\u{1}\u{7f}\u{ad}\u{301}]{1,3}",
        1 => "[a-z]{60,70}", 1 => " {60,70}",
    ];
    prop::collection::vec(piece, 0..60).prop_map(|pieces| pieces.concat())
}

#[test]
fn every_code_point_between_others() {
    let contexts = [("a", "b"), (" ", "B"), ("!", "\n"), ("\n", " "), ("1", "2"), ("'", "'"), ("", "")];
    let mut text = String::new();
    for (place, code_point) in (0..=0x10_ffff).filter_map(char::from_u32).enumerate() {
        // All in one context, those below U+1000 and a share of the rest in the others too.
        let others = if place % 19 == 0 || place < 0x1000 { contexts.len() } else { 1 };
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
    let steps = Pretokenizer::all_steps().find(|(name, _)| *name == "deepseek").unwrap().1;
    assert!(Pretokenizer::from_steps(&steps[..2]).is_none());
    assert!(Pretokenizer::from_steps(&[Step::Digits, Step::Gpt2]).is_some());
    assert!(Pretokenizer::from_steps(&[Step::Gpt2, Step::Digits]).is_none());
    assert!(Pretokenizer::from_steps(&[]).is_none());
    assert!(Pretokenizer::preset("deepseek").is_none(), "no single pattern says what its steps do");
    assert!(Pretokenizer::from_pattern("(").is_err());
    assert!(Pretokenizer::preset("no such preset").is_none());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

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
