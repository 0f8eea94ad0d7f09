//! Text to ids.

use crate::buffers::Buffers;
use crate::error::Result;
use crate::frame::Frame;
use crate::native::NativePipeline;
use crate::tasks::in_tasks;
use crate::tokenizer::{EncodeOptions, Pipeline, Tokenizer};

/// The ids of many texts, one after the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenBatch {
    /// All ids.
    pub ids: Vec<u32>,
    /// Where each text's ids begin; the last entry is `ids.len()`. One longer than the number of texts.
    pub offsets: Vec<usize>,
}

/// A token of most texts has more bytes than this: memory for fewer ids would have to grow.
const BYTES_PER_ID: usize = 3;

impl Tokenizer {
    /// The ids of a text, with the file's truncation and padding.
    ///
    /// # Errors
    /// [`crate::TokenizeError::Pipeline`] where the fallback gives up.
    pub fn encode(&self, text: &str, options: EncodeOptions) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        self.encode_into(text, options, &mut ids)?;
        Ok(ids)
    }

    /// As [`Tokenizer::encode`], appended to `ids`; on an error `ids` is as it was.
    ///
    /// # Errors
    /// As for [`Tokenizer::encode`].
    pub fn encode_into(&self, text: &str, options: EncodeOptions, ids: &mut Vec<u32>) -> Result<()> {
        let start = ids.len();
        let outcome = self.encode_unpadded(text, options, ids);
        self.finish(outcome, start, ids)
    }

    /// As [`Tokenizer::encode_into`], without the file's padding; on an error something may have been appended.
    pub(crate) fn encode_unpadded(
        &self,
        text: &str,
        options: EncodeOptions,
        ids: &mut Vec<u32>,
    ) -> Result<()> {
        let EncodeOptions { add_special_tokens, parse_special } = options;
        match &self.pipeline {
            Pipeline::Native(pipeline) => self.framed(pipeline, add_special_tokens, ids, |ids| {
                pipeline.encode_into(text, parse_special, ids)
            }),
            Pipeline::Fallback(pipeline) => {
                pipeline.encode_into(text, add_special_tokens, parse_special, true, ids)
            }
        }
    }

    /// The ids of a text, the file's truncation and padding left out.
    pub(crate) fn encode_whole(&self, text: &str, options: EncodeOptions) -> Result<Vec<u32>> {
        let EncodeOptions { add_special_tokens, parse_special } = options;
        let mut ids = Vec::new();
        match &self.pipeline {
            Pipeline::Native(pipeline) => {
                let frame = add_special_tokens.then_some(&pipeline.frame);
                ids.extend_from_slice(frame.map_or(&[], |frame| &frame.before));
                pipeline.encode_into(text, parse_special, &mut ids)?;
                ids.extend_from_slice(frame.map_or(&[], |frame| &frame.after));
            }
            Pipeline::Fallback(pipeline) => {
                pipeline.encode_into(text, add_special_tokens, parse_special, false, &mut ids)?;
            }
        }
        Ok(ids)
    }

    /// Appends what `encode` appends, cut to what the file allows, between the tokens that stand around a text.
    fn framed(
        &self,
        pipeline: &NativePipeline,
        add_special_tokens: bool,
        ids: &mut Vec<u32>,
        encode: impl FnOnce(&mut Vec<u32>) -> Result<()>,
    ) -> Result<()> {
        let frame = add_special_tokens.then_some(&pipeline.frame);
        ids.extend_from_slice(frame.map_or(&[], |frame| &frame.before));
        let start = ids.len();
        encode(ids)?;
        if let Some(truncation) = &self.limits.truncation {
            truncation.apply(ids, start, truncation.room(frame.map_or(0, Frame::len)))?;
        }
        ids.extend_from_slice(frame.map_or(&[], |frame| &frame.after));
        Ok(())
    }

    /// Appends ids as [`Tokenizer::encode_into`] does, the text's own made by `encode`.
    pub(crate) fn encode_with(
        &self,
        pipeline: &NativePipeline,
        add_special_tokens: bool,
        ids: &mut Vec<u32>,
        encode: impl FnOnce(&mut Vec<u32>) -> Result<()>,
    ) -> Result<()> {
        let start = ids.len();
        let outcome = self.framed(pipeline, add_special_tokens, ids, encode);
        self.finish(outcome, start, ids)
    }

    /// Pads what was appended from `start` on as the file asks; on an error takes it away again.
    fn finish(&self, outcome: Result<()>, start: usize, ids: &mut Vec<u32>) -> Result<()> {
        if outcome.is_err() {
            ids.truncate(start);
        } else if let Some(padding) = &self.limits.padding {
            padding.apply(ids, start, padding.target(ids.len() - start));
        }
        outcome
    }

    /// The ids of many texts, on at most `threads` threads. `stop` is asked now and then on the calling thread;
    /// once it answers true the call ends.
    ///
    /// Where the file pads to the longest of a batch, all texts get the length of the longest.
    ///
    /// # Errors
    /// [`crate::TokenizeError::Interrupted`], or the first error of [`Tokenizer::encode`] by position.
    pub fn encode_batch(
        &self,
        texts: &[&str],
        options: EncodeOptions,
        threads: usize,
        stop: &dyn Fn() -> bool,
    ) -> Result<TokenBatch> {
        let bytes: usize = texts.iter().map(|text| text.len()).sum();
        let buffers = Buffers::new(bytes / BYTES_PER_ID / threads.clamp(1, texts.len().max(1)));
        let encode = |first: usize, texts: &[&str], lengths: &mut [usize]| {
            buffers.with(first, |ids: &mut Vec<u32>| self.encode_together(texts, options, ids, lengths))
        };
        let lengths = in_tasks(texts, |text| text.len(), threads, stop, encode)?;
        let batch = TokenBatch { ids: buffers.join(), offsets: offsets(&lengths) };
        Ok(match &self.limits.padding {
            None => batch,
            Some(padding) => {
                let longest = batch.offsets.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0);
                let target = padding.target(longest);
                let mut padded = TokenBatch { ids: Vec::new(), offsets: vec![0] };
                for pair in batch.offsets.windows(2) {
                    let start = padded.ids.len();
                    padded.ids.extend_from_slice(&batch.ids[pair[0]..pair[1]]);
                    padding.apply(&mut padded.ids, start, target);
                    padded.offsets.push(padded.ids.len());
                }
                padded
            }
        })
    }
}

/// Where each text's ids begin, and where the last one's end.
pub(crate) fn offsets(lengths: &[usize]) -> Vec<usize> {
    let mut offsets = Vec::with_capacity(lengths.len() + 1);
    let mut end = 0;
    offsets.push(end);
    offsets.extend(lengths.iter().map(|length| {
        end += length;
        end
    }));
    offsets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_sums() {
        assert_eq!((offsets(&[2, 0, 1]), offsets(&[])), (vec![0, 2, 2, 3], vec![0]));
    }
}
