//! Text → spans that byte-pair encoding then treats one by one.
//!
//! Tokenizer files describe the split by a regular expression. The well-known ones are recognised by their text
//! and served by a scanner written for them; every other one runs on a regex engine.

mod classes;
mod generic;
mod grammar;
mod known;
mod scalar;

use std::fmt;
use std::sync::Arc;

use crate::error::TokenizeError;
use generic::GenericPattern;
use grammar::{Cl100k, Gpt2, Grammar, Llama3, O200k, Qwen2};
use known::Known;

/// What happens to text between two matches of the pattern. The known patterns match everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unmatched {
    /// It is a span of its own, as in `tokenizers` (`Split` with behaviour `Isolated`).
    #[default]
    Keep,
    /// It is left out, as in tiktoken.
    Drop,
}

/// Splits text into spans. Cheap to clone; one instance serves any number of threads.
///
/// ```
/// use infer_accel_tokenize::pretokenize::Pretokenizer;
///
/// let pretokenizer = Pretokenizer::preset("cl100k").unwrap();
/// assert_eq!(pretokenizer.split("I'm 1234!").unwrap(), ["I", "'m", " ", "123", "4", "!"]);
/// ```
#[derive(Clone)]
pub struct Pretokenizer {
    engine: Engine,
    unmatched: Unmatched,
}

#[derive(Clone)]
enum Engine {
    Known(Known),
    Generic(Arc<GenericPattern>),
}

impl Pretokenizer {
    /// A pretokenizer for `pattern`: a scanner where the pattern is a known one (GPT-2, cl100k and Llama 3, o200k,
    /// Qwen 2 and 3, each in its usual spellings), the regex engine otherwise. Unmatched text is kept; see
    /// [`Self::with_unmatched`].
    ///
    /// The syntax is that of `fancy-regex`, which is what tiktoken uses. Oniguruma, which `tokenizers` uses, gives
    /// another meaning to some constructs (`^`, `$`, `\h`, …): ask [`Self::is_known`] before trusting a pattern
    /// that was written for it.
    pub fn from_pattern(pattern: &str) -> Result<Self, TokenizeError> {
        let engine = match Known::from_pattern(pattern) {
            Some(known) => Engine::Known(known),
            None => Engine::Generic(Arc::new(GenericPattern::new(pattern)?)),
        };
        Ok(Self { engine, unmatched: Unmatched::Keep })
    }

    /// One of `gpt2`, `cl100k`, `llama3`, `qwen2`, `o200k`.
    pub fn preset(name: &str) -> Option<Self> {
        let known = Known::ALL.into_iter().find(|known| known.name() == name)?;
        Some(Self { engine: Engine::Known(known), unmatched: Unmatched::Keep })
    }

    /// The same pretokenizer with another policy for text that the pattern does not match.
    #[must_use]
    pub fn with_unmatched(self, unmatched: Unmatched) -> Self {
        Self { unmatched, ..self }
    }

    /// Whether a scanner of our own serves this pattern, proven equal to both references.
    pub fn is_known(&self) -> bool {
        matches!(self.engine, Engine::Known(_))
    }

    /// The pattern of a preset in its best-known spelling.
    pub fn preset_pattern(name: &str) -> Option<&'static str> {
        Known::ALL.into_iter().find(|known| known.name() == name).map(Known::pattern)
    }

    /// Calls `f` with each span, in order. O(length) for the known patterns.
    ///
    /// # Errors
    /// [`TokenizeError::PatternGaveUp`] where the regex engine reaches its backtracking limit; spans before that
    /// place have been handed out. Never for a known pattern.
    pub fn for_each<'t>(&self, text: &'t str, f: impl FnMut(&'t str)) -> Result<(), TokenizeError> {
        match &self.engine {
            Engine::Generic(generic) => generic.try_for_each(text, self.unmatched == Unmatched::Keep, f)?,
            Engine::Known(Known::Gpt2) => scan::<Gpt2>(text, f),
            Engine::Known(Known::Cl100k) => scan::<Cl100k>(text, f),
            Engine::Known(Known::Llama3) => scan::<Llama3>(text, f),
            Engine::Known(Known::Qwen2) => scan::<Qwen2>(text, f),
            Engine::Known(Known::O200k) => scan::<O200k>(text, f),
        }
        Ok(())
    }

    /// All spans of `text`.
    ///
    /// # Errors
    /// As [`Self::for_each`].
    pub fn split<'t>(&self, text: &'t str) -> Result<Vec<&'t str>, TokenizeError> {
        let mut spans = Vec::new();
        self.for_each(text, |span| spans.push(span))?;
        Ok(spans)
    }
}

impl fmt::Debug for Pretokenizer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let engine = match &self.engine {
            Engine::Known(known) => known.name(),
            Engine::Generic(_) => "regex",
        };
        formatter
            .debug_struct("Pretokenizer")
            .field("engine", &engine)
            .field("unmatched", &self.unmatched)
            .finish()
    }
}

fn scan<'t, G: Grammar>(text: &'t str, mut f: impl FnMut(&'t str)) {
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let end = scalar::next_end::<G>(bytes, at);
        f(&text[at..end]);
        at = end;
    }
}
