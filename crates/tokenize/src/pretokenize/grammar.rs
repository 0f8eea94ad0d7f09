//! What tells the known split patterns apart.

/// How a pattern forms words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Words {
    /// GPT-2: one space may precede letters, digits or other characters; contractions in lower case only.
    AfterSpace,
    /// cl100k: any one character but a letter, number or line break may precede letters.
    AfterAny,
    /// o200k: as cl100k, but a word is upper case, then lower case, then perhaps a contraction.
    Cased,
}

/// One known pattern, as constants, so that each gets its own compiled scanner.
pub(crate) trait Grammar {
    /// How words are formed.
    const WORDS: Words;
    /// Most numbers in one span.
    const DIGITS: usize;
    /// Whether words take contractions (`'s`, `'re`) along, or apart.
    const CONTRACTIONS: bool = true;
    /// Whether white space at the very end of the text is one span even where it has line breaks (`\s++$`).
    const WHOLE_TRAILING_SPACE: bool;
}

/// GPT-2 (`r50k`, `p50k`).
pub(crate) struct Gpt2;
impl Grammar for Gpt2 {
    const WORDS: Words = Words::AfterSpace;
    const DIGITS: usize = usize::MAX;
    const WHOLE_TRAILING_SPACE: bool = false;
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
    const WHOLE_TRAILING_SPACE: bool = false;
}

/// Qwen 2 and 3: every number alone.
pub(crate) struct Qwen2;
impl Grammar for Qwen2 {
    const WORDS: Words = Words::AfterAny;
    const DIGITS: usize = 1;
    const WHOLE_TRAILING_SPACE: bool = false;
}

/// o200k.
pub(crate) struct O200k;
impl Grammar for O200k {
    const WORDS: Words = Words::Cased;
    const DIGITS: usize = 3;
    const WHOLE_TRAILING_SPACE: bool = false;
}

/// Mistral's tekken: o200k without contractions, every number alone.
pub(crate) struct Tekken;
impl Grammar for Tekken {
    const WORDS: Words = Words::Cased;
    const DIGITS: usize = 1;
    const CONTRACTIONS: bool = false;
    const WHOLE_TRAILING_SPACE: bool = false;
}
