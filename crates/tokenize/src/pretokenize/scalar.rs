//! One span at a time, for any text: the specification of the block scanner and its way out of hard places.

use super::classes::{
    CASELESS, Character, ClassSet, LETTER, LOWER, MARK, PUNCTUATION, SPACE, SYMBOL, UPPER, character_at,
    is_ideograph, skip_while,
};
use super::grammar::{Grammar, Words};

/// End of the span that starts at `at`, which must lie before the end of `text`.
#[inline]
pub(crate) fn next_end<G: Grammar>(text: &[u8], at: usize) -> usize {
    match G::WORDS {
        Words::AfterSpace => next_after_space::<G>(text, at),
        Words::AfterAny => next_after_any::<G>(text, at),
        Words::Cased => next_cased::<G>(text, at),
        Words::AfterPunctuation => next_after_punctuation::<G>(text, at),
    }
}

/// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
fn next_after_space<G: Grammar>(text: &[u8], at: usize) -> usize {
    if let Some(end) = contraction_end(text, at, false) {
        return end;
    }
    let start = at + usize::from(text.get(at) == Some(&b' '));
    match character_at(text, start) {
        Some(next) if next.is(G::LETTERS) => skip_while(text, start, G::LETTERS),
        Some(next) if next.is(G::NUMBERS) && (start == at || !G::NUMBERS_APART) => {
            numbers_end::<G>(text, start)
        }
        Some(next) if next.is(G::OTHERS) => skip_while(text, start, G::OTHERS),
        _ => white_space_end::<G>(text, at),
    }
}

/// `(?i:'s|…)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
fn next_after_any<G: Grammar>(text: &[u8], at: usize) -> usize {
    if let Some(end) = contraction_end(text, at, true) {
        return end;
    }
    let Some(first) = character_at(text, at) else { return at };
    if first.is(G::LETTERS) {
        return skip_while(text, at, G::LETTERS);
    }
    if first.is(G::NUMBERS) {
        return numbers_end::<G>(text, at);
    }
    let next = at + first.width;
    if !is_line_break(text, at) && character_at(text, next).is_some_and(|c| c.is(G::LETTERS)) {
        return skip_while(text, next, G::LETTERS);
    }
    other_end::<G>(text, at).unwrap_or_else(|| white_space_end::<G>(text, at))
}

/// o200k, whose words depend on case; see [`lower_word_end`].
fn next_cased<G: Grammar>(text: &[u8], at: usize) -> usize {
    let Some(first) = character_at(text, at) else { return at };
    if first.is(G::NUMBERS) {
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

/// `DeepSeek`: `\p{N}{1,3}` is cut out first, then `[一-龥぀-ゟ゠-ヿ]+`, and each piece is cut by ASCII punctuation with ASCII
/// letters after it, or else `[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`;
/// what none of these matches is left together.
fn next_after_punctuation<G: Grammar>(text: &[u8], at: usize) -> usize {
    let Some(first) = character_at(text, at) else { return at };
    if first.is(G::NUMBERS) {
        return numbers_end::<G>(text, at);
    }
    let piece = Piece { text, ideographs: is_ideograph(text, at) };
    let next = at + first.width;
    if first.is(PUNCTUATION | SYMBOL) && first.width == 1 {
        let letters = text[next..].iter().take_while(|byte| byte.is_ascii_alphabetic()).count();
        if letters > 0 {
            return next + letters;
        }
    }
    if first.is(G::LETTERS) {
        return piece.skip_while(at, G::LETTERS);
    }
    if !first.is(PUNCTUATION | SYMBOL) && !is_line_break(text, at) && piece.has(next, G::LETTERS) {
        return piece.skip_while(next, G::LETTERS);
    }
    let start = at + usize::from(text.get(at) == Some(&b' '));
    let mut end = piece.skip_while(start, PUNCTUATION | SYMBOL);
    if end > start {
        while !piece.ideographs && is_line_break(text, end) {
            end += 1;
        }
        return end;
    }
    if first.is(SPACE) {
        return white_space_end::<G>(text, at);
    }
    end = next;
    while let Some(character) = piece.character_at(end) {
        let matched = !character.is(G::OTHERS) || character.is(PUNCTUATION | SYMBOL);
        if matched || piece.has(end + character.width, G::LETTERS) {
            break;
        }
        end += character.width;
    }
    end
}

/// A stretch of text without numbers: ideographs only, or none.
struct Piece<'t> {
    text: &'t [u8],
    ideographs: bool,
}

impl Piece<'_> {
    /// The character at `at`, unless the piece ends there.
    fn character_at(&self, at: usize) -> Option<Character> {
        character_at(self.text, at).filter(|_| is_ideograph(self.text, at) == self.ideographs)
    }

    fn has(&self, at: usize, set: ClassSet) -> bool {
        self.character_at(at).is_some_and(|character| character.is(set))
    }

    fn skip_while(&self, mut at: usize, set: ClassSet) -> usize {
        while let Some(character) = self.character_at(at).filter(|character| character.is(set)) {
            at += character.width;
        }
        at
    }
}

/// End of `\p{N}{1,n}`.
fn numbers_end<G: Grammar>(text: &[u8], at: usize) -> usize {
    let mut end = at;
    for _ in 0..G::DIGITS {
        match character_at(text, end) {
            Some(character) if character.is(G::NUMBERS) => end += character.width,
            _ => break,
        }
    }
    end
}

/// End of ` ?[^\s\p{L}\p{N}]+[\r\n]*` (o200k: `[\r\n/]*`), if it matches at `at`.
fn other_end<G: Grammar>(text: &[u8], at: usize) -> Option<usize> {
    let start = at + usize::from(text.get(at) == Some(&b' '));
    let mut end = skip_while(text, start, G::OTHERS);
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
    let at_text_end = end == text.len() || is_apart::<G>(text, end);
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

/// Whether what is at `at` was cut out before the pattern is applied, so that a text ends there for it.
fn is_apart<G: Grammar>(text: &[u8], at: usize) -> bool {
    let number = || character_at(text, at).is_some_and(|character| character.is(G::NUMBERS));
    G::NUMBERS_APART && (number() || (G::WORDS == Words::AfterPunctuation && is_ideograph(text, at)))
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
