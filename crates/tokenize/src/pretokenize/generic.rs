//! Patterns without a scanner of their own: the `fancy-regex` engine.

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

    /// Calls `f` for each match, and with `keep_unmatched` for each stretch of text between matches.
    pub(crate) fn try_for_each<'t>(
        &self,
        text: &'t str,
        keep_unmatched: bool,
        mut f: impl FnMut(&'t str),
    ) -> Result<(), TokenizeError> {
        let mut covered = 0;
        for found in self.regex.find_iter(text) {
            let found = found.map_err(|error| TokenizeError::PatternGaveUp {
                length: text.len(),
                reason: error.to_string(),
            })?;
            if keep_unmatched && found.start() > covered {
                f(&text[covered..found.start()]);
            }
            if found.end() > found.start() {
                f(found.as_str());
            }
            covered = found.end();
        }
        if keep_unmatched && covered < text.len() {
            f(&text[covered..]);
        }
        Ok(())
    }
}
