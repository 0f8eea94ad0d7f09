//! A text of trusted and untrusted parts: templates and user input in one prompt.

use std::ops::{ControlFlow, Range};

use crate::error::{Result, TokenizeError};
use crate::native::NativePipeline;
use crate::special::Matcher;
use crate::tokenizer::{EncodeOptions, Pipeline, Tokenizer};

/// A part of a text, and whether special tokens may be found in it.
pub type Segment<'t> = (&'t str, bool);

/// A special token in a text, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Barrier {
    range: Range<usize>,
    id: u32,
}

impl Tokenizer {
    /// The ids of segments as of one text, with the file's truncation and padding.
    ///
    /// The text is what the segments give together, and is split as one: a word may begin in one segment and end in
    /// the next. Trust decides only where special tokens are found: in trusted segments (neighbours count as one),
    /// never in others, and never across a border between the two. If all are trusted the ids are those of
    /// [`Tokenizer::encode`] with `parse_special`; if none is, those without.
    ///
    /// # Errors
    /// As for [`Tokenizer::encode`]; and [`TokenizeError::UntrustedSpecial`] where the pipeline is that of the
    /// `tokenizers` crate and untrusted text holds the text of a special token beside trusted ones.
    pub fn encode_segments(&self, segments: &[Segment<'_>], add_special_tokens: bool) -> Result<Vec<u32>> {
        let joined: String = segments.iter().map(|(text, _)| *text).collect();
        let filled = || segments.iter().filter(|(text, _)| !text.is_empty());
        let options = |parse_special| EncodeOptions { add_special_tokens, parse_special };
        if filled().all(|(_, trusted)| *trusted) || filled().all(|(_, trusted)| !trusted) {
            return self.encode(&joined, options(filled().any(|(_, trusted)| *trusted)));
        }
        let meant = barriers(&self.matchers(), &joined, &trusted_runs(segments));
        match &self.pipeline {
            Pipeline::Native(pipeline) => {
                let mut ids = Vec::new();
                self.encode_with(pipeline, add_special_tokens, &mut ids, |ids| {
                    encode_between(pipeline, &joined, &meant, ids)
                })?;
                Ok(ids)
            }
            Pipeline::Fallback(_) => {
                let parse_special = self.finds_only(&joined, &meant)?;
                self.encode(&joined, EncodeOptions { add_special_tokens, parse_special })
            }
        }
    }

    /// The ids of a text whose special tokens may begin only where `masked`, of as many bytes, shows them; nothing
    /// around it, truncation and padding left out.
    pub(crate) fn encode_masked(&self, text: &str, masked: &str) -> Result<Vec<u32>> {
        let meant = barriers(&self.matchers(), masked, std::slice::from_ref(&(0..masked.len())));
        match &self.pipeline {
            Pipeline::Native(pipeline) => {
                let mut ids = Vec::new();
                encode_between(pipeline, text, &meant, &mut ids)?;
                Ok(ids)
            }
            Pipeline::Fallback(_) => {
                let parse_special = self.finds_only(text, &meant)?;
                self.encode_whole(text, EncodeOptions { add_special_tokens: false, parse_special })
            }
        }
    }

    /// The number of ids that [`Tokenizer::encode_masked`] gives.
    pub(crate) fn count_masked(&self, text: &str, masked: &str) -> Result<usize> {
        let Pipeline::Native(pipeline) = &self.pipeline else {
            return self.encode_masked(text, masked).map(|ids| ids.len());
        };
        let meant = barriers(&self.matchers(), masked, std::slice::from_ref(&(0..masked.len())));
        let mut count = meant.len();
        for part in between(text, &meant) {
            count += pipeline.count(part, false, usize::MAX)?;
        }
        Ok(count)
    }

    /// The texts of all special tokens.
    pub(crate) fn special_contents(&self) -> Vec<&str> {
        self.matchers().into_iter().flat_map(Matcher::special_contents).collect()
    }

    fn matchers(&self) -> Vec<&Matcher> {
        match &self.pipeline {
            Pipeline::Native(pipeline) => pipeline.matchers().to_vec(),
            Pipeline::Fallback(pipeline) => vec![pipeline.matcher()],
        }
    }

    /// Whether the `tokenizers` crate, which finds special tokens everywhere or nowhere, must find them everywhere
    /// for exactly these to be found.
    fn finds_only(&self, text: &str, meant: &[Barrier]) -> Result<bool> {
        if meant.is_empty() {
            return Ok(false);
        }
        let all = barriers(&self.matchers(), text, std::slice::from_ref(&(0..text.len())));
        if meant == all {
            return Ok(true);
        }
        let forged = all.iter().find(|barrier| !meant.contains(barrier));
        let content = forged.and_then(|barrier| text.get(barrier.range.clone()));
        Err(TokenizeError::UntrustedSpecial { content: content.unwrap_or_default().to_owned() })
    }
}

/// The parts of a text before, between and after these tokens.
fn between<'t>(text: &'t str, barriers: &[Barrier]) -> impl Iterator<Item = &'t str> {
    let starts = std::iter::once(0).chain(barriers.iter().map(|barrier| barrier.range.end));
    let ends = barriers.iter().map(|barrier| barrier.range.start).chain(std::iter::once(text.len()));
    let part = |(start, end)| text.get(start..end).unwrap_or_default();
    starts.zip(ends).map(part).collect::<Vec<_>>().into_iter()
}

fn encode_between(
    pipeline: &NativePipeline,
    text: &str,
    barriers: &[Barrier],
    ids: &mut Vec<u32>,
) -> Result<()> {
    for (index, part) in between(text, barriers).enumerate() {
        pipeline.encode_into(part, false, ids)?;
        ids.extend(barriers.get(index).map(|barrier| barrier.id));
    }
    Ok(())
}

/// Where in the joined text its trusted parts lie, neighbours joined.
fn trusted_runs(segments: &[Segment<'_>]) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    let mut end = 0;
    for (text, trusted) in segments.iter().filter(|(text, _)| !text.is_empty()) {
        let start = end;
        end += text.len();
        match runs.last_mut().filter(|run| run.end == start) {
            _ if !trusted => {}
            Some(run) => run.end = end,
            None => runs.push(start..end),
        }
    }
    runs
}

/// The special tokens of these parts of a text, in order. What one matcher leaves over the next one looks through.
fn barriers(matchers: &[&Matcher], text: &str, parts: &[Range<usize>]) -> Vec<Barrier> {
    let Some((matcher, others)) = matchers.split_first() else { return Vec::new() };
    let mut found = Vec::new();
    for part in parts {
        let mut done = part.start;
        let _ = matcher.each(text.get(part.clone()).unwrap_or_default(), true, |token| {
            let range = part.start + token.start..part.start + token.end;
            found.extend(barriers(others, text, std::slice::from_ref(&(done..range.start.max(done)))));
            done = range.end;
            if token.token.special {
                found.push(Barrier { range, id: token.token.id });
            }
            ControlFlow::Continue(())
        });
        found.extend(barriers(others, text, std::slice::from_ref(&(done..part.end.max(done)))));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::special::AddedToken;

    #[test]
    fn neighbours_of_equal_trust_are_one_run() {
        let segments = [("ab", true), ("", false), ("c", true), ("dé", false), ("x", true)];
        assert_eq!(trusted_runs(&segments), [0..3, 6..7]);
        assert!(trusted_runs(&[]).is_empty());
    }

    #[test]
    fn tokens_are_found_inside_trusted_runs_only() {
        let mut later = AddedToken::special("<b>", 2);
        later.normalized = true;
        let first =
            Matcher::new(vec![AddedToken::special("<a>", 1), AddedToken::special("<a><a>", 3)]).unwrap();
        let second = Matcher::new(vec![later]).unwrap();
        let barriers = |parts: &[Range<usize>]| {
            let found = barriers(&[&first, &second], "<b><a>x<b><a><a>", parts);
            found.into_iter().map(|barrier| (barrier.range.start, barrier.id)).collect::<Vec<_>>()
        };
        assert_eq!(barriers(std::slice::from_ref(&(0..16))), [(0, 2), (3, 1), (7, 2), (10, 3)]);
        assert_eq!(barriers(std::slice::from_ref(&(0..13))), [(0, 2), (3, 1), (7, 2), (10, 1)]);
        assert_eq!(barriers(&[1..9, 13..16]), [(3, 1), (13, 1)]);
    }
}
