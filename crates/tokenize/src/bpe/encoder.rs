//! Text → ids: split, then encode each span.

use super::{Bpe, BpeParts, Scratch};
use crate::error::TokenizeError;
use crate::pretokenize::Pretokenizer;

/// A pretokenizer and a byte-pair model. One instance serves any number of threads.
pub struct BytePairEncoder {
    pretokenizer: Pretokenizer,
    bpe: Bpe,
}

impl BytePairEncoder {
    /// Checks the parts and builds the tables.
    ///
    /// # Errors
    /// As [`Bpe::new`].
    pub fn new(pretokenizer: Pretokenizer, parts: BpeParts) -> Result<Self, TokenizeError> {
        Ok(Self { pretokenizer, bpe: Bpe::new(parts)? })
    }

    /// The pretokenizer that was given.
    pub fn pretokenizer(&self) -> &Pretokenizer {
        &self.pretokenizer
    }

    /// Appends the ids of `text` to `out`.
    ///
    /// # Errors
    /// As [`Pretokenizer::for_each`]; `out` is then as it was.
    pub fn encode_into(&self, text: &str, out: &mut Vec<u32>) -> Result<(), TokenizeError> {
        let before = out.len();
        let mut scratch = Scratch::default();
        let spans = self
            .pretokenizer
            .for_each(text, |span| self.bpe.encode_span(span.as_bytes(), &mut scratch, |id| out.push(id)));
        if spans.is_err() {
            out.truncate(before);
        }
        spans
    }

    /// Number of ids of `text`. Once more than `limit` are found the answer is some number above `limit`.
    ///
    /// # Errors
    /// As [`Pretokenizer::for_each`].
    pub fn count(&self, text: &str, limit: usize) -> Result<usize, TokenizeError> {
        let mut scratch = Scratch::default();
        let mut count = 0;
        self.pretokenizer.for_each(text, |span| {
            if count <= limit {
                self.bpe.encode_span(span.as_bytes(), &mut scratch, |_| count += 1);
            }
        })?;
        Ok(count)
    }

    /// Appends each id and the byte at which its token ends, counted from the start of `text`. A token begins
    /// where the one before ends, except after text that the pattern drops.
    ///
    /// # Errors
    /// As [`Pretokenizer::for_each`], and [`TokenizeError::TextTooLong`] from 4 GiB on; `out` is then as it was.
    pub fn encode_with_ends(&self, text: &str, out: &mut Vec<(u32, u32)>) -> Result<(), TokenizeError> {
        let limit = u32::MAX as usize;
        if text.len() > limit {
            return Err(TokenizeError::TextTooLong { length: text.len(), limit });
        }
        let before = out.len();
        let mut scratch = Scratch::default();
        let spans = self.pretokenizer.for_each(text, |span| {
            let mut end = span.as_ptr().addr() - text.as_ptr().addr();
            self.bpe.encode_span(span.as_bytes(), &mut scratch, |id| {
                end += self.bpe.token_length(id);
                out.push((id, end as u32));
            });
        });
        if spans.is_err() {
            out.truncate(before);
        }
        spans
    }
}
