//! Patterns without a scanner of their own: the `fancy-regex` engine.

use std::ops::ControlFlow;

use fancy_regex::Regex;

use crate::error::TokenizeError;

/// Steps back that the engine may take for one span before it gives up.
const BACKTRACK_LIMIT: usize = 10_000_000;

/// Any regular expression that `fancy-regex` accepts.
pub(crate) struct GenericPattern {
    regex: Regex,
}

impl GenericPattern {
    pub(crate) fn new(pattern: &str) -> Result<Self, TokenizeError> {
        let mut builder = fancy_regex::RegexBuilder::new(pattern);
        let built = builder.backtrack_limit(BACKTRACK_LIMIT).build();
        let regex = built.map_err(|error| TokenizeError::Pattern {
            pattern: pattern.to_owned(),
            reason: error.to_string(),
        })?;
        Ok(Self { regex })
    }

    /// Calls `f` for each match until it breaks, and with `keep_unmatched` for each stretch of text between matches.
    pub(crate) fn try_for_each<'t>(
        &self,
        text: &'t str,
        keep_unmatched: bool,
        mut f: impl FnMut(&'t str) -> ControlFlow<()>,
    ) -> Result<(), TokenizeError> {
        let mut covered = 0;
        for found in self.regex.find_iter(text) {
            let found = found.map_err(|error| TokenizeError::PatternGaveUp {
                length: text.len(),
                reason: error.to_string(),
            })?;
            let unmatched = if keep_unmatched { &text[covered..found.start()] } else { "" };
            for span in [unmatched, found.as_str()] {
                if !span.is_empty() && f(span).is_break() {
                    return Ok(());
                }
            }
            covered = found.end();
        }
        if keep_unmatched && covered < text.len() {
            let _ = f(&text[covered..]);
        }
        Ok(())
    }
}
