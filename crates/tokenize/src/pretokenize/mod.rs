//! Text → spans that byte-pair encoding then treats one by one.
//!
//! Tokenizer files describe the split by a regular expression. The well-known ones are recognised by their text
//! and served by a scanner written for them; every other one runs on a regex engine.

pub(crate) mod block;
mod classes;
mod cuts;
mod generic;
pub(crate) mod grammar;
mod joins;
mod known;
mod rules;
mod scalar;

use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;

use crate::error::TokenizeError;
use crate::kernels;
pub(crate) use block::Starts;
use generic::GenericPattern;
use grammar::{Cl100k, DeepSeek, Gpt2, Gpt2Digits, Llama3, O200k, Qwen2, Qwen35, Tekken};
pub(crate) use joins::Joins;
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

/// One of the steps by which a `tokenizer.json` cuts text, each applied to what the one before has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step<'p> {
    /// By a pattern in Oniguruma's syntax, what lies between its matches kept (`Split` with behaviour `Isolated`).
    Split(&'p str),
    /// Every number a piece of its own (`Digits` with `individual_digits`).
    Digits,
    /// By GPT-2's pattern (`ByteLevel` with `use_regex`).
    Gpt2,
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
    Joins(Arc<Joins>),
}

impl Pretokenizer {
    /// A pretokenizer for `pattern`: a scanner where the pattern is a known one (GPT-2, cl100k and Llama 3, o200k,
    /// Qwen 2, 3 and 3.5, Mistral's tekken, each in its usual spellings), the regex engine otherwise. Unmatched text is kept; see
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

    /// A pretokenizer for the steps of a `tokenizer.json`; `None` where no scanner of ours serves them: the patterns of
    /// [`Self::from_pattern`], GPT-2's after [`Step::Digits`], and the three splits of `DeepSeek`.
    pub fn from_steps(steps: &[Step<'_>]) -> Option<Self> {
        let known = Known::from_steps(steps)?;
        Some(Self { engine: Engine::Known(known), unmatched: Unmatched::Keep })
    }

    /// Every sequence of steps that has a scanner, by name and in its best-known spelling; all scanners but cl100k's.
    pub fn all_steps() -> impl Iterator<Item = (&'static str, &'static [Step<'static>])> {
        Known::ALL
            .into_iter()
            .map(|known| (known.name(), known.steps()))
            .filter(|(_, steps)| !steps.is_empty())
    }

    /// One of `gpt2`, `cl100k`, `llama3`, `qwen2`, `qwen3.5`, `o200k`, `tekken`.
    pub fn preset(name: &str) -> Option<Self> {
        let presets = Known::ALL.into_iter().filter(|known| known.pattern().is_some());
        let known = presets.into_iter().find(|known| known.name() == name)?;
        Some(Self { engine: Engine::Known(known), unmatched: Unmatched::Keep })
    }

    /// No pattern: text is cut where no token lies across.
    pub(crate) fn from_joins(joins: Joins) -> Self {
        Self { engine: Engine::Joins(Arc::new(joins)), unmatched: Unmatched::Keep }
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
        Known::ALL.into_iter().find(|known| known.name() == name).and_then(Known::pattern)
    }

    /// Calls `f` with each span, in order. O(length) for the known patterns.
    ///
    /// # Errors
    /// [`TokenizeError::PatternGaveUp`] where the regex engine reaches its backtracking limit; spans before that
    /// place have been handed out. Never for a known pattern.
    pub fn for_each<'t>(&self, text: &'t str, mut f: impl FnMut(&'t str)) -> Result<(), TokenizeError> {
        self.for_each_batch(text, |text, bounds| {
            for pair in bounds.windows(2) {
                f(&text[pair[0]..pair[1]]);
            }
            ControlFlow::Continue(())
        })
    }

    /// Calls `f` with a part of the text and where spans start in it; the last number is the end of the last span.
    /// Stops when `f` breaks.
    pub(crate) fn for_each_batch<'t>(
        &self,
        text: &'t str,
        f: impl FnMut(&'t str, &[usize]) -> ControlFlow<()>,
    ) -> Result<(), TokenizeError> {
        self.for_each_batch_in(&mut Starts::new(), text, f)
    }

    /// [`Self::for_each_batch`] in memory that was used before: clearing it costs a short text something.
    pub(crate) fn for_each_batch_in<'t>(
        &self,
        starts: &mut Starts,
        text: &'t str,
        mut f: impl FnMut(&'t str, &[usize]) -> ControlFlow<()>,
    ) -> Result<(), TokenizeError> {
        match &self.engine {
            Engine::Generic(generic) => {
                generic
                    .try_for_each(text, self.unmatched == Unmatched::Keep, |span| f(span, &[0, span.len()]))
            }
            Engine::Known(known) => {
                scan(starts, text, f, known_fill(*known));
                Ok(())
            }
            Engine::Joins(joins) => {
                scan(starts, text, f, |text, starts| joins.fill(text, starts));
                Ok(())
            }
        }
    }

    /// Whether the spans of `text` are those of its part before `at`, then those of its part from `at` on. `at` is a
    /// boundary between two characters; false where the answer is not known, as for patterns without a scanner.
    pub(crate) fn is_cut(&self, text: &str, at: usize) -> bool {
        let decide = match &self.engine {
            Engine::Generic(_) => return false,
            Engine::Joins(joins) => return joins.is_cut(text.as_bytes(), at),
            Engine::Known(known) => known,
        };
        let decide = match decide {
            Known::Gpt2 => cuts::is_cut::<Gpt2>,
            Known::Gpt2Digits => cuts::is_cut::<Gpt2Digits>,
            Known::Cl100k => cuts::is_cut::<Cl100k>,
            Known::Llama3 => cuts::is_cut::<Llama3>,
            Known::Qwen2 => cuts::is_cut::<Qwen2>,
            Known::Qwen35 => cuts::is_cut::<Qwen35>,
            Known::O200k => cuts::is_cut::<O200k>,
            Known::Tekken => cuts::is_cut::<Tekken>,
            Known::DeepSeek => cuts::is_cut::<DeepSeek>,
        };
        decide(text.as_bytes(), at)
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
            Engine::Joins(_) => "tokens",
        };
        formatter
            .debug_struct("Pretokenizer")
            .field("engine", &engine)
            .field("unmatched", &self.unmatched)
            .finish()
    }
}

/// Finds the next spans of a text that begins where a span begins.
type Fill = fn(&[u8], &mut Starts);

fn known_fill(known: Known) -> Fill {
    match known {
        Known::Gpt2 => kernels::fill::<Gpt2>,
        Known::Gpt2Digits => kernels::fill::<Gpt2Digits>,
        Known::Cl100k => kernels::fill::<Cl100k>,
        Known::Llama3 => kernels::fill::<Llama3>,
        Known::Qwen2 => kernels::fill::<Qwen2>,
        Known::Qwen35 => kernels::fill::<Qwen35>,
        Known::O200k => kernels::fill::<O200k>,
        Known::Tekken => kernels::fill::<Tekken>,
        Known::DeepSeek => kernels::fill::<DeepSeek>,
    }
}

fn scan<'t>(
    starts: &mut Starts,
    text: &'t str,
    mut f: impl FnMut(&'t str, &[usize]) -> ControlFlow<()>,
    fill: impl Fn(&[u8], &mut Starts),
) {
    let mut rest = text;
    while !rest.is_empty() {
        fill(rest.as_bytes(), starts);
        let bounds = starts.bounds();
        if f(rest, bounds).is_break() {
            return;
        }
        rest = &rest[bounds.last().copied().unwrap_or(rest.len())..];
    }
}
