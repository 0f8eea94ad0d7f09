//! One span at a time, for any text: the specification of the block scanner and its way out of hard places.

use super::classes::{
    CASELESS, LETTER, LOWER, MARK, NEITHER, NUMBER, SPACE, UPPER, character_at, skip_while,
};
use super::grammar::{Grammar, Words};

/// End of the span that starts at `at`, which must lie before the end of `text`.
#[inline]
pub(crate) fn next_end<G: Grammar>(text: &[u8], at: usize) -> usize {
    match G::WORDS {
        Words::AfterSpace => next_after_space::<G>(text, at),
        Words::AfterAny => next_after_any::<G>(text, at),
        Words::Cased => next_cased::<G>(text, at),
    }
}

/// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
fn next_after_space<G: Grammar>(text: &[u8], at: usize) -> usize {
    if let Some(end) = contraction_end(text, at, false) {
        return end;
    }
    let start = at + usize::from(text.get(at) == Some(&b' '));
    match character_at(text, start) {
        Some(next) if next.is(LETTER) => skip_while(text, start, LETTER),
        Some(next) if next.is(NUMBER) => skip_while(text, start, NUMBER),
        Some(next) if next.is(NEITHER) => skip_while(text, start, NEITHER),
        _ => white_space_end::<G>(text, at),
    }
}

/// `(?i:'s|…)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
fn next_after_any<G: Grammar>(text: &[u8], at: usize) -> usize {
    if let Some(end) = contraction_end(text, at, true) {
        return end;
    }
    let Some(first) = character_at(text, at) else { return at };
    if first.is(LETTER) {
        return skip_while(text, at, LETTER);
    }
    if first.is(NUMBER) {
        return numbers_end::<G>(text, at);
    }
    let next = at + first.width;
    if !is_line_break(text, at) && character_at(text, next).is_some_and(|c| c.is(LETTER)) {
        return skip_while(text, next, LETTER);
    }
    other_end::<G>(text, at).unwrap_or_else(|| white_space_end::<G>(text, at))
}

/// o200k, whose words depend on case; see [`lower_word_end`].
fn next_cased<G: Grammar>(text: &[u8], at: usize) -> usize {
    let Some(first) = character_at(text, at) else { return at };
    if first.is(NUMBER) {
        return numbers_end::<G>(text, at);
    }
    // The optional character before a word is taken where that lets the word match, and a mark, which is also a
    // word character, is tried in both roles.
    let after_prefix =
        if first.is(LETTER) || is_line_break(text, at) { None } else { Some(at + first.width) };
    let word = after_prefix.and_then(|start| lower_word_end(text, start));
    let word = word.or_else(|| if first.is(LETTER | MARK) { lower_word_end(text, at) } else { None });
    let word = word.or_else(|| after_prefix.and_then(|start| upper_word_end(text, start)));
    let word = word.or_else(|| if first.is(LETTER) { upper_word_end(text, at) } else { None });
    if let Some(end) = word {
        return if G::CONTRACTIONS { contraction_end(text, end, true).unwrap_or(end) } else { end };
    }
    other_end::<G>(text, at).unwrap_or_else(|| white_space_end::<G>(text, at))
}

/// `[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+`: with the star as long as the plus allows.
fn lower_word_end(text: &[u8], start: usize) -> Option<usize> {
    let mut at = start;
    let mut after_both = None;
    while let Some(character) = character_at(text, at) {
        if !character.is(UPPER | CASELESS | MARK) {
            break;
        }
        at += character.width;
        if character.is(CASELESS | MARK) {
            after_both = Some(at);
        }
    }
    let end = skip_while(text, at, LOWER | CASELESS | MARK);
    if end > at { Some(end) } else { after_both }
}

/// `[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*`, asked only where [`lower_word_end`] found nothing.
fn upper_word_end(text: &[u8], start: usize) -> Option<usize> {
    let end = skip_while(text, start, UPPER);
    (end > start).then_some(end)
}

/// End of `\p{N}{1,n}`.
fn numbers_end<G: Grammar>(text: &[u8], at: usize) -> usize {
    let mut end = at;
    for _ in 0..G::DIGITS {
        match character_at(text, end) {
            Some(character) if character.is(NUMBER) => end += character.width,
            _ => break,
        }
    }
    end
}

/// End of ` ?[^\s\p{L}\p{N}]+[\r\n]*` (o200k: `[\r\n/]*`), if it matches at `at`.
fn other_end<G: Grammar>(text: &[u8], at: usize) -> Option<usize> {
    let start = at + usize::from(text.get(at) == Some(&b' '));
    let mut end = skip_while(text, start, NEITHER);
    if end == start {
        return None;
    }
    while let Some(byte) = text.get(end) {
        let slash = G::WORDS == Words::Cased && *byte == b'/';
        if !(slash || matches!(byte, b'\r' | b'\n')) {
            break;
        }
        end += 1;
    }
    Some(end)
}

/// End of `\s++$|\s*[\r\n]+|\s+(?!\S)|\s+`, each part where the grammar has it.
fn white_space_end<G: Grammar>(text: &[u8], at: usize) -> usize {
    let (mut end, mut last_start, mut after_line_break) = (at, at, None);
    while let Some(character) = character_at(text, end) {
        if !character.is(SPACE) {
            break;
        }
        last_start = end;
        end += character.width;
        if matches!(text[last_start], b'\r' | b'\n') {
            after_line_break = Some(end);
        }
    }
    let at_text_end = end == text.len();
    if G::WHOLE_TRAILING_SPACE && at_text_end {
        return end;
    }
    if G::WORDS != Words::AfterSpace
        && let Some(after) = after_line_break
    {
        return after;
    }
    if at_text_end || last_start == at { end } else { last_start }
}

fn is_line_break(text: &[u8], at: usize) -> bool {
    matches!(text.get(at), Some(b'\r' | b'\n'))
}

/// End of the contraction that starts with an apostrophe at `at`. Ignoring case, the long s (U+017F) is an s too.
#[inline]
fn contraction_end(text: &[u8], at: usize, ignore_case: bool) -> Option<usize> {
    if text.get(at) != Some(&b'\'') {
        return None;
    }
    let fold = |byte: u8| if ignore_case { byte.to_ascii_lowercase() } else { byte };
    let first = *text.get(at + 1)?;
    let second = text.get(at + 2).copied();
    match (fold(first), second.map(fold)) {
        (b's' | b'd' | b'm' | b't', _) => Some(at + 2),
        (b'l', Some(b'l')) | (b'v' | b'r', Some(b'e')) => Some(at + 3),
        (0xc5, _) if ignore_case && second == Some(0xbf) => Some(at + 3),
        _ => None,
    }
}
