//! The texts of a task, which are encoded together.

use crate::bpe::together::{Counts, Ids, Sink};
use crate::error::Result;
use crate::native::{NativePipeline, Piece, Reading};
use crate::tokenizer::{EncodeOptions, Pipeline, Tokenizer};

impl NativePipeline {
    /// Hands the ids of each text, without the frame, to `sink`.
    ///
    /// # Errors
    /// As for [`Self::encode_into`].
    fn encode_together(&self, texts: &[&str], parse_special: bool, sink: &mut impl Sink) -> Result<()> {
        let direct = self.is_direct(parse_special);
        self.encoder().together(sink, |together| {
            for text in texts {
                if direct {
                    together.add(text)?;
                } else {
                    self.for_each_piece(text, Reading::whole(parse_special), |piece| {
                        match piece {
                            Piece::Text(text) => together.add(text)?,
                            Piece::Token(id) => together.add_token(id),
                        }
                        Ok(true)
                    })?;
                }
                together.end_text();
            }
            Ok(())
        })
    }
}

impl Tokenizer {
    /// The pipeline that takes many texts together, if it does.
    fn together(&self) -> Option<&NativePipeline> {
        match &self.pipeline {
            Pipeline::Native(pipeline) if pipeline.keeps_all() => Some(pipeline),
            _ => None,
        }
    }

    /// Writes what [`Self::count`] returns for each text.
    ///
    /// # Errors
    /// As for [`Self::count`].
    pub(crate) fn count_together(
        &self,
        texts: &[&str],
        options: EncodeOptions,
        counts: &mut [usize],
    ) -> Result<()> {
        let EncodeOptions { add_special_tokens, parse_special } = options;
        let Some(pipeline) = self.together() else {
            for (text, count) in texts.iter().zip(counts) {
                *count = self.count(text, options)?;
            }
            return Ok(());
        };
        pipeline.encode_together(texts, parse_special, &mut Counts::new(counts))?;
        if add_special_tokens {
            for count in counts {
                *count += pipeline.frame.len();
            }
        }
        Ok(())
    }

    /// Appends what [`Self::encode_unpadded`] appends for each text, and writes how many ids that is.
    ///
    /// # Errors
    /// As for [`Self::encode`].
    pub(crate) fn encode_together(
        &self,
        texts: &[&str],
        options: EncodeOptions,
        ids: &mut Vec<u32>,
        lengths: &mut [usize],
    ) -> Result<()> {
        let EncodeOptions { add_special_tokens, parse_special } = options;
        let Some(pipeline) = self.together().filter(|_| self.limits.truncation.is_none()) else {
            for (text, length) in texts.iter().zip(lengths) {
                let start = ids.len();
                self.encode_unpadded(text, options, ids)?;
                *length = ids.len() - start;
            }
            return Ok(());
        };
        let frame = add_special_tokens.then_some(&pipeline.frame);
        let before = frame.map_or(&[][..], |frame| &frame.before);
        let after = frame.map_or(&[][..], |frame| &frame.after);
        let (mut start, mut lengths) = (ids.len(), lengths.iter_mut());
        ids.extend_from_slice(before);
        let end = |ids: &mut Vec<u32>| {
            ids.extend_from_slice(after);
            if let Some(length) = lengths.next() {
                *length = ids.len() - start;
            }
            start = ids.len();
            ids.extend_from_slice(before);
        };
        pipeline.encode_together(texts, parse_special, &mut Ids { ids, end })?;
        // What was put there for a text that does not come.
        ids.truncate(ids.len() - before.len());
        Ok(())
    }
}
