//! What tells the known split patterns apart.

use super::classes::{ANY, ClassSet, LATER_NUMBER, LETTER, MARK, NUMBER, SPACE};

/// How a pattern forms words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Words {
    /// GPT-2: one space may precede letters, digits or other characters; contractions in lower case only.
    AfterSpace,
    /// cl100k: any one character but a letter, number or line break may precede letters.
    AfterAny,
    /// o200k: as cl100k, but a word is upper case, then lower case, then perhaps a contraction.
    Cased,
    /// `DeepSeek`: ASCII punctuation may precede ASCII letters, white space and unassigned or control characters any
    /// letters; Han characters and kana are cut out first.
    AfterPunctuation,
}

/// One known pattern, as constants, so that each gets its own compiled scanner.
pub(crate) trait Grammar {
    /// How words are formed.
    const WORDS: Words;
    /// What words are made of.
    const LETTERS: ClassSet = LETTER;
    /// What counts as a number.
    const NUMBERS: ClassSet = NUMBER;
    /// Most numbers in one span.
    const DIGITS: usize;
    /// Whether numbers are cut out before the pattern is applied, which then takes their places for the text's ends.
    const NUMBERS_APART: bool = false;
    /// Whether words take contractions (`'s`, `'re`) along, or apart.
    const CONTRACTIONS: bool = true;
    /// Whether white space at the very end of the text is one span even where it has line breaks (`\s++$`).
    const WHOLE_TRAILING_SPACE: bool = false;
    /// Everything that is no letter, number or white space.
    const OTHERS: ClassSet = ANY & !(Self::LETTERS | Self::NUMBERS | SPACE);
}

/// GPT-2 (`r50k`, `p50k`).
pub(crate) struct Gpt2;
impl Grammar for Gpt2 {
    const WORDS: Words = Words::AfterSpace;
    const DIGITS: usize = usize::MAX;
}

/// GPT-2 after the step `Digits` with every digit alone: `StarCoder`, `SmolLM2`.
pub(crate) struct Gpt2Digits;
impl Grammar for Gpt2Digits {
    const WORDS: Words = Words::AfterSpace;
    const NUMBERS: ClassSet = NUMBER | LATER_NUMBER;
    const DIGITS: usize = 1;
    const NUMBERS_APART: bool = true;
}

/// cl100k as tiktoken spells it since 0.7.
pub(crate) struct Cl100k;
impl Grammar for Cl100k {
    const WORDS: Words = Words::AfterAny;
    const DIGITS: usize = 3;
    const WHOLE_TRAILING_SPACE: bool = true;
}

/// cl100k as it was before, which Llama 3 uses.
pub(crate) struct Llama3;
impl Grammar for Llama3 {
    const WORDS: Words = Words::AfterAny;
    const DIGITS: usize = 3;
}

/// Qwen 2 and 3: every number alone.
pub(crate) struct Qwen2;
impl Grammar for Qwen2 {
    const WORDS: Words = Words::AfterAny;
    const DIGITS: usize = 1;
}

/// Qwen 3.5: marks belong to words.
pub(crate) struct Qwen35;
impl Grammar for Qwen35 {
    const WORDS: Words = Words::AfterAny;
    const LETTERS: ClassSet = LETTER | MARK;
    const DIGITS: usize = 1;
}

/// o200k.
pub(crate) struct O200k;
impl Grammar for O200k {
    const WORDS: Words = Words::Cased;
    const DIGITS: usize = 3;
}

/// Mistral's tekken: o200k without contractions, every number alone.
pub(crate) struct Tekken;
impl Grammar for Tekken {
    const WORDS: Words = Words::Cased;
    const DIGITS: usize = 1;
    const CONTRACTIONS: bool = false;
}

/// `DeepSeek` V3 and V4: three splits, one after the other.
pub(crate) struct DeepSeek;
impl Grammar for DeepSeek {
    const WORDS: Words = Words::AfterPunctuation;
    const LETTERS: ClassSet = LETTER | MARK;
    const DIGITS: usize = 3;
    const NUMBERS_APART: bool = true;
    const CONTRACTIONS: bool = false;
}
