//! Places where a text can be cut in two without a change to its spans, seen from the two characters beside the cut.
//!
//! At such a place every scan that comes from the left ends, whatever it has read; one that begins there does not
//! know what came before; and no scan on its left looks past it. So the spans of the text are those of its left
//! part, then those of its right part, and a part that was split once need not be split again in another text.
//!
//! The rules, with the alternatives of the patterns that make each of them true:
//!
//! - **White space after something else.** All that can have taken the something (letters, numbers, others, a
//!   contraction) stops at white space, except that others take line breaks along (`[\r\n]*`; not in GPT-2). The
//!   look-ahead `\s+(?!\S)` and the anchor `\s+$` belong to white space alone, which lies on the right.
//! - **Anything but white space after a line break**, not in GPT-2: line breaks are taken as far as they go
//!   (`\s*[\r\n]+`, `[\r\n]*`; in o200k `[\r\n/]*`, so that a slash is no cut), and never begin a word.
//! - **No letter after a letter.** In o200k words go on over marks, and over an apostrophe as a contraction.
//! - **No number after a number.** Numbers are taken up to three at a time, but never with anything else.
//! - **On one side a number, on the other none**, where numbers are cut out first; so for `DeepSeek`'s ideographs. White
//!   space on the left is whole, as it is at the end of a text.

use super::classes::{Character, MARK, SPACE, character_at, is_ideograph};
use super::grammar::{Grammar, Words};

/// Whether the text can be cut at `at`, a boundary between two of its characters. False where it is not known.
pub(crate) fn is_cut<G: Grammar>(text: &[u8], at: usize) -> bool {
    let (Some((start, before)), Some(after)) = (character_before(text, at), character_at(text, at)) else {
        return false;
    };
    if G::NUMBERS_APART && before.is(G::NUMBERS) != after.is(G::NUMBERS) {
        return true;
    }
    if G::WORDS == Words::AfterPunctuation && is_ideograph(text, start) != is_ideograph(text, at) {
        return true;
    }
    let breaks = |at: usize| matches!(text.get(at), Some(b'\r' | b'\n'));
    if before.is(SPACE) {
        let slash = G::WORDS == Words::Cased && text.get(at) == Some(&b'/');
        return G::WORDS != Words::AfterSpace && breaks(at - 1) && !after.is(SPACE) && !slash;
    }
    if before.is(G::LETTERS) {
        let contraction = text.get(at) == Some(&b'\'');
        return !after.is(G::LETTERS) && !(G::WORDS == Words::Cased && (after.is(MARK) || contraction));
    }
    if before.is(G::NUMBERS) {
        return !after.is(G::NUMBERS);
    }
    after.is(SPACE) && (G::WORDS == Words::AfterSpace || !breaks(at))
}

/// The character that ends at `at`, and where it starts.
fn character_before(text: &[u8], at: usize) -> Option<(usize, Character)> {
    let head = text.get(..at)?;
    let start = head.iter().rposition(|byte| byte & 0xc0 != 0x80)?;
    Some((start, character_at(head, start)?))
}

#[cfg(test)]
mod tests {
    use crate::pretokenize::Pretokenizer;

    /// One character of each class that a pattern tells apart.
    const CHARACTERS: [&str; 18] = [
        " ",
        "\n",
        "\r",
        "\t",
        "s",
        "L",
        "字",
        "\u{301}",
        "7",
        "'",
        "!",
        "/",
        "ſ",
        "e",
        "\u{3000}",
        "\0",
        "・",
        "\u{11de0}",
    ];

    fn all() -> Vec<Pretokenizer> {
        let steps = Pretokenizer::all_steps().map(|(_, steps)| Pretokenizer::from_steps(steps).unwrap());
        steps.chain(Pretokenizer::preset("cl100k")).collect()
    }

    fn check(pretokenizer: &Pretokenizer, text: &str) -> usize {
        let whole = pretokenizer.split(text).unwrap();
        let cuts = (0..=text.len()).filter(|&at| text.is_char_boundary(at) && pretokenizer.is_cut(text, at));
        let mut found = 0;
        for at in cuts {
            let (left, right) = text.split_at(at);
            let mut parts = pretokenizer.split(left).unwrap();
            parts.extend(pretokenizer.split(right).unwrap());
            assert_eq!(parts, whole, "{pretokenizer:?}: {text:?} cut at {at}");
            found += 1;
        }
        found
    }

    #[test]
    fn every_short_text_may_be_cut_where_it_is_said() {
        for pretokenizer in all() {
            let mut found = 0;
            for length in 0..=5_u32 {
                for number in (0..CHARACTERS.len().pow(length)).step_by(if length < 5 { 1 } else { 23 }) {
                    let place = |index| number / CHARACTERS.len().pow(index) % CHARACTERS.len();
                    let text: String = (0..length).map(|index| CHARACTERS[place(index)]).collect();
                    found += check(&pretokenizer, &text);
                }
            }
            assert!(found > 100_000, "{pretokenizer:?}: {found}");
        }
    }

    #[test]
    fn prose_is_full_of_places_to_cut() {
        let text = "It's 1999, isn't it?\n\nThe end.\tWe’re done; 漢字 and\r\n\r\n    code();\n";
        for pretokenizer in all() {
            assert!(check(&pretokenizer, text) > 15, "{pretokenizer:?}");
        }
    }

    #[test]
    fn an_unknown_pattern_is_never_cut() {
        assert!(!Pretokenizer::from_pattern("[a-z]+|[^a-z]+").unwrap().is_cut("a b", 1));
    }
}
