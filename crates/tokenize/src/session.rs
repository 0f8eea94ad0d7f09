//! A text that grows: ids that no more text can change are made once.

use std::sync::Arc;

use crate::error::Result;
use crate::native::Reading;
use crate::tokenizer::{EncodeOptions, Pipeline, Tokenizer};

/// The ids of a text to which more is appended. They are always those of the whole text, the file's truncation and
/// padding left out.
///
/// A native pipeline keeps the text after the last place where it may be cut (see [`crate::Tokenizer::encode`] of
/// both parts: their ids, one after the other, are the whole's), mostly the last word, and encodes that part again
/// when text is appended. Other pipelines encode the whole text each time.
#[derive(Clone)]
pub struct Session {
    tokenizer: Arc<Tokenizer>,
    options: EncodeOptions,
    /// The text whose ids may still change.
    tail: String,
    /// Whether there is text before it.
    goes_on: bool,
    ids: Vec<u32>,
    /// How many of the ids no text can change.
    settled: usize,
}

impl Session {
    /// A session of the empty text.
    ///
    /// # Errors
    /// As for [`Tokenizer::encode`].
    pub fn new(tokenizer: Arc<Tokenizer>, options: EncodeOptions) -> Result<Self> {
        let (tail, ids) = (String::new(), Vec::new());
        let mut session = Self { tokenizer, options, tail, goes_on: false, ids, settled: 0 };
        let mut ids = Vec::new();
        if let Pipeline::Native(pipeline) = &session.tokenizer.pipeline
            && options.add_special_tokens
        {
            ids.extend_from_slice(&pipeline.frame.before);
        }
        session.settled = ids.len();
        session.encode_tail("", false, &mut ids)?;
        session.ids = ids;
        Ok(session)
    }

    /// Appends text. Returns how many of the ids from before are still there: those from that place on are new.
    ///
    /// O(text appended and the part of the text before that may still change).
    ///
    /// # Errors
    /// As for [`Tokenizer::encode`]; the session is then as it was.
    pub fn append(&mut self, text: &str) -> Result<usize> {
        let mut tail = String::with_capacity(self.tail.len() + text.len());
        tail.push_str(&self.tail);
        tail.push_str(text);
        let cut = self.last_cut(&tail);
        let (certain, open) = tail.split_at(cut);
        let mut ids = Vec::new();
        if let Pipeline::Native(pipeline) = &self.tokenizer.pipeline {
            pipeline.encode_part_into(certain, self.reading(self.goes_on), &mut ids)?;
        }
        let newly_settled = ids.len();
        let goes_on = self.goes_on || cut > 0;
        self.encode_tail(open, goes_on, &mut ids)?;
        let old = self.ids.get(self.settled..).unwrap_or_default();
        let kept = self.settled + old.iter().zip(&ids).take_while(|(old, new)| old == new).count();
        self.ids.truncate(self.settled);
        self.ids.append(&mut ids);
        self.settled += newly_settled;
        tail.drain(..cut);
        self.tail = tail;
        self.goes_on = goes_on;
        Ok(kept)
    }

    /// The ids of the text so far.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// How many of the ids, from the first on, no text that is appended can change.
    pub fn settled(&self) -> usize {
        self.settled
    }

    /// The tokenizer that the session was made of.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    /// The last place in `tail` where it may be cut, whatever comes after it.
    fn last_cut(&self, tail: &str) -> usize {
        let Pipeline::Native(pipeline) = &self.tokenizer.pipeline else { return 0 };
        // Two bytes after a cut are looked at: both must be there already.
        let places = (1..tail.len().saturating_sub(1)).rev();
        let mut cuts = places.filter(|&at| pipeline.is_cut(tail, at, self.options.parse_special));
        cuts.next().unwrap_or(0)
    }

    fn reading(&self, goes_on: bool) -> Reading {
        Reading { parse_special: self.options.parse_special, begins: !goes_on }
    }

    /// Appends the ids of the part that may still change, with what stands after the text.
    fn encode_tail(&self, tail: &str, goes_on: bool, ids: &mut Vec<u32>) -> Result<()> {
        let EncodeOptions { add_special_tokens, parse_special } = self.options;
        match &self.tokenizer.pipeline {
            Pipeline::Native(pipeline) => {
                pipeline.encode_part_into(tail, self.reading(goes_on), ids)?;
                if add_special_tokens {
                    ids.extend_from_slice(&pipeline.frame.after);
                }
                Ok(())
            }
            Pipeline::Fallback(pipeline) => {
                pipeline.encode_into(tail, add_special_tokens, parse_special, false, ids)
            }
        }
    }
}
