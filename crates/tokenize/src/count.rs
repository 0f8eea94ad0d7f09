//! How many ids a text has, without making them.

use crate::error::Result;
use crate::tasks::in_tasks;
use crate::tokenizer::{EncodeOptions, Pipeline, Tokenizer};

impl Tokenizer {
    /// The number of ids of a text, the file's truncation and padding left out.
    ///
    /// # Errors
    /// [`crate::TokenizeError::Pipeline`] where the fallback gives up.
    pub fn count(&self, text: &str, options: EncodeOptions) -> Result<usize> {
        self.count_up_to(text, options, usize::MAX)
    }

    /// As [`Tokenizer::count`], but may stop once the count is above `limit` and then returns some number above it.
    ///
    /// # Errors
    /// As for [`Tokenizer::count`].
    pub fn count_up_to(&self, text: &str, options: EncodeOptions, limit: usize) -> Result<usize> {
        let EncodeOptions { add_special_tokens, parse_special } = options;
        match &self.pipeline {
            Pipeline::Native(pipeline) => {
                let framed = if add_special_tokens { pipeline.frame.len() } else { 0 };
                if framed > limit {
                    return Ok(framed);
                }
                Ok(framed.saturating_add(pipeline.count(text, parse_special, limit - framed)?))
            }
            Pipeline::Fallback(pipeline) => {
                let mut ids = Vec::new();
                pipeline.encode_into(text, add_special_tokens, parse_special, false, &mut ids)?;
                Ok(ids.len())
            }
        }
    }

    /// The number of ids that [`Tokenizer::encode`] returns: the file's truncation and padding included.
    ///
    /// # Errors
    /// As for [`Tokenizer::encode`].
    pub fn count_encoded(&self, text: &str, options: EncodeOptions) -> Result<usize> {
        if self.limits.truncation.is_none() && self.limits.padding.is_none() {
            return self.count(text, options);
        }
        self.encode(text, options).map(|ids| ids.len())
    }

    /// Whether the text has at most `limit` ids; looks no further than it must.
    ///
    /// # Errors
    /// As for [`Tokenizer::count`].
    pub fn fits(&self, text: &str, options: EncodeOptions, limit: usize) -> Result<bool> {
        Ok(self.count_up_to(text, options, limit)? <= limit)
    }

    /// The counts of many texts, on at most `threads` threads; `stop` as for [`Tokenizer::encode_batch`].
    ///
    /// # Errors
    /// [`crate::TokenizeError::Interrupted`], or the first error of [`Tokenizer::count`] by position.
    pub fn count_batch(
        &self,
        texts: &[&str],
        options: EncodeOptions,
        truncation: bool,
        threads: usize,
        stop: &dyn Fn() -> bool,
    ) -> Result<Vec<usize>> {
        in_tasks(
            texts,
            |text| text.len(),
            threads,
            stop,
            |_, texts: &[&str], counts: &mut [usize]| {
                if !truncation || (self.limits.truncation.is_none() && self.limits.padding.is_none()) {
                    return self.count_together(texts, options, counts);
                }
                for (text, count) in texts.iter().zip(counts) {
                    *count = self.count_encoded(text, options)?;
                }
                Ok(())
            },
        )
    }

    /// A beginning of the text that has at most `limit` ids, and is as long as the ids allow: it ends where one of
    /// the text's own tokens ends, moved back to a character's boundary.
    ///
    /// Returns the length of that beginning in bytes. Where not even the empty text fits (the pipeline's special
    /// tokens alone are more), it is 0 all the same.
    ///
    /// # Errors
    /// As for [`Tokenizer::count`].
    pub fn truncate(&self, text: &str, options: EncodeOptions, limit: usize) -> Result<usize> {
        let widest = self.widest(limit);
        let head = &text[..floor_char_boundary(text, widest)];
        if head.len() == text.len() && self.fits(text, options, limit)? {
            return Ok(text.len());
        }
        let mut end = self.first_guess(head, options, limit);
        while let Some(guess) = end {
            // A cut can change how the last piece is split, so the beginning is counted as a text of its own.
            if self.fits(&text[..guess], options, limit)? {
                return Ok(guess);
            }
            end = guess.checked_sub(1).map(|shorter| floor_char_boundary(text, shorter));
            if guess == 0 {
                return Ok(0);
            }
        }
        self.truncate_by_halves(head, options, limit)
    }

    /// No text of more bytes has so few ids, as far as it is known: no token is longer than the longest.
    fn widest(&self, limit: usize) -> usize {
        let Pipeline::Native(pipeline) = &self.pipeline else { return usize::MAX };
        let Some(times) = pipeline.most_shrinking() else { return usize::MAX };
        self.vocabulary.longest().max(1).saturating_mul(times).saturating_mul(limit.saturating_add(1))
    }

    fn first_guess(&self, head: &str, options: EncodeOptions, limit: usize) -> Option<usize> {
        let Pipeline::Native(pipeline) = &self.pipeline else { return None };
        if options.parse_special {
            return None;
        }
        let framed = if options.add_special_tokens { pipeline.frame.len() } else { 0 };
        let end = pipeline.end_of(head, limit.saturating_sub(framed))?;
        Some(floor_char_boundary(head, end))
    }

    /// For pipelines that cannot say where in the text a token ends: bisection, with a count at each step.
    fn truncate_by_halves(&self, head: &str, options: EncodeOptions, limit: usize) -> Result<usize> {
        let (mut fitting, mut failing) = (0_usize, head.len() + 1);
        loop {
            let middle = floor_char_boundary(head, fitting.midpoint(failing));
            // Between two boundaries there is nothing left to try, unless the upper one is still open.
            let next = if middle > fitting { middle } else { ceil_char_boundary(head, fitting + 1) };
            if next >= failing || next > head.len() {
                return Ok(fitting);
            }
            if self.fits(&head[..next], options, limit)? { fitting = next } else { failing = next }
        }
    }
}

fn floor_char_boundary(text: &str, index: usize) -> usize {
    let mut index = index.min(text.len());
    while !text.is_char_boundary(index) {
        index -= 1;
    }
    index
}

fn ceil_char_boundary(text: &str, index: usize) -> usize {
    let mut index = index;
    while index < text.len() && !text.is_char_boundary(index) {
        index += 1;
    }
    index
}
