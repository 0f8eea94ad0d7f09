//! The known patterns, in the spellings in which tokenizer files carry them.

use super::Step;

/// A pattern, or several that are applied one after the other, with a scanner of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Known {
    Gpt2,
    Gpt2Digits,
    Cl100k,
    Llama3,
    Qwen2,
    Qwen35,
    O200k,
    Tekken,
    DeepSeek,
}

const GPT2: &str = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const GPT2_FIRST: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const GPT2_CLASSES: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?[\p{L}]+| ?[\p{N}]+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const GPT2_POSSESSIVE: &str =
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s";
const CL100K: &str = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s";
const CL100K_PLAIN: &str = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+$|\s*[\r\n]|\s+(?!\S)|\s";
const CL100K_2023: &str = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const O200K: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The three splits of `DeepSeek` V3 and V4; the last one has its line breaks as they are, not as escapes.
const DEEPSEEK: [Step<'static>; 3] = [
    Step::Split(r"\p{N}{1,3}"),
    Step::Split("[\u{4e00}-\u{9fa5}\u{3040}-\u{309f}\u{30a0}-\u{30ff}]+"),
    Step::Split(concat!(
        r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^"##,
        "\r\n",
        r"\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[",
        "\r\n",
        r"]*|\s*[",
        "\r\n",
        r"]+|\s+(?!\S)|\s+"
    )),
];

/// Every spelling that is known to mean the same as a scanner.
const SPELLINGS: &[(&str, Known)] = &[
    (GPT2, Known::Gpt2),
    (GPT2_FIRST, Known::Gpt2),
    (GPT2_CLASSES, Known::Gpt2),
    (GPT2_POSSESSIVE, Known::Gpt2),
    (CL100K, Known::Cl100k),
    (CL100K_PLAIN, Known::Cl100k),
    (CL100K_2023, Known::Llama3),
    (LLAMA3, Known::Llama3),
    (QWEN2, Known::Qwen2),
    (QWEN35, Known::Qwen35),
    (O200K, Known::O200k),
    (TEKKEN, Known::Tekken),
];

impl Known {
    pub(crate) const ALL: [Self; 9] = [
        Self::Gpt2,
        Self::Gpt2Digits,
        Self::Cl100k,
        Self::Llama3,
        Self::Qwen2,
        Self::Qwen35,
        Self::O200k,
        Self::Tekken,
        Self::DeepSeek,
    ];

    /// The scanner that means the same as `pattern` in the syntax of `fancy-regex`, if there is one.
    pub(crate) fn from_pattern(pattern: &str) -> Option<Self> {
        SPELLINGS.iter().find(|(spelling, _)| *spelling == pattern).map(|&(_, known)| known)
    }

    /// The scanner that means the same as these steps one after the other, if there is one. Their patterns are read by
    /// Oniguruma, to which cl100k's own spellings mean something else: `{1,3}+` is not possessive there but a
    /// repetition, and `$` is the end of any line.
    pub(crate) fn from_steps(steps: &[Step<'_>]) -> Option<Self> {
        match steps {
            [Step::Split(pattern)] => Self::from_pattern(pattern).filter(|known| *known != Self::Cl100k),
            [Step::Gpt2] => Some(Self::Gpt2),
            [Step::Digits, rest @ ..] if Self::from_steps(rest) == Some(Self::Gpt2) => Some(Self::Gpt2Digits),
            _ if steps == DEEPSEEK => Some(Self::DeepSeek),
            _ => None,
        }
    }

    /// The pattern in its best-known spelling; `None` where it takes several steps.
    pub(crate) fn pattern(self) -> Option<&'static str> {
        match self {
            Self::Gpt2 => Some(GPT2),
            Self::Cl100k => Some(CL100K),
            Self::Llama3 => Some(LLAMA3),
            Self::Qwen2 => Some(QWEN2),
            Self::Qwen35 => Some(QWEN35),
            Self::O200k => Some(O200K),
            Self::Tekken => Some(TEKKEN),
            Self::Gpt2Digits | Self::DeepSeek => None,
        }
    }

    /// The steps in their best-known spelling; none where steps cannot say it.
    pub(crate) fn steps(self) -> &'static [Step<'static>] {
        match self {
            Self::Gpt2 => &[Step::Split(GPT2)],
            Self::Cl100k => &[],
            Self::Llama3 => &[Step::Split(LLAMA3)],
            Self::Qwen2 => &[Step::Split(QWEN2)],
            Self::Qwen35 => &[Step::Split(QWEN35)],
            Self::O200k => &[Step::Split(O200K)],
            Self::Tekken => &[Step::Split(TEKKEN)],
            Self::Gpt2Digits => &[Step::Digits, Step::Split(GPT2)],
            Self::DeepSeek => &DEEPSEEK,
        }
    }

    /// The name under which [`Pretokenizer::preset`](super::Pretokenizer::preset) finds it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Gpt2 => "gpt2",
            Self::Gpt2Digits => "gpt2_digits",
            Self::Cl100k => "cl100k",
            Self::Llama3 => "llama3",
            Self::Qwen2 => "qwen2",
            Self::Qwen35 => "qwen3.5",
            Self::O200k => "o200k",
            Self::Tekken => "tekken",
            Self::DeepSeek => "deepseek",
        }
    }
}
