//! Prompts that begin like earlier ones: only what is new is encoded.
//!
//! A text is divided where it may be cut (`NativePipeline::is_cut`): the ids of a part do not depend on what stands
//! around it, so that they may be kept and put together again, exactly. Parts end at the first such place after
//! every [`PART`] bytes, counted from the end of the part before: two texts that begin alike have the same parts as
//! far as they are alike. The last part is not kept, since it is the one that the next prompt goes on from.

mod store;

use std::sync::Arc;

use crate::error::Result;
use crate::native::NativePipeline;
use crate::tokenizer::{EncodeOptions, Pipeline, Tokenizer};

pub use store::PromptCacheStats;
use store::{Key, Store};

/// Least bytes of a part. Shorter parts save more of a prompt's end and cost more look-ups; at this size a look-up
/// costs about as much as the comparison of the part's bytes.
const PART: usize = 1024;
/// Where no cut is found in this many bytes, the rest of the text is encoded without the cache.
const LONGEST: usize = 64 * 1024;

/// Ids of parts of prompts, bounded in bytes and shared by all threads.
///
/// Equal to [`Tokenizer::encode`] and [`Tokenizer::count`] for every text. Tokenizers without a native pipeline, or
/// with a pattern that has no scanner, encode as ever: for them no place to cut is known.
pub struct PromptCache {
    tokenizer: Arc<Tokenizer>,
    store: Store,
}

/// What becomes of a part's ids.
trait Sink {
    /// Ids that the cache has.
    fn take(&mut self, ids: &[u32]);
    /// Text that is not kept.
    fn encode(&mut self, pipeline: &NativePipeline, text: &str, parse_special: bool) -> Result<()>;
}

impl Sink for &mut Vec<u32> {
    fn take(&mut self, ids: &[u32]) {
        self.extend_from_slice(ids);
    }

    fn encode(&mut self, pipeline: &NativePipeline, text: &str, parse_special: bool) -> Result<()> {
        pipeline.encode_into(text, parse_special, self)
    }
}

struct Count(usize);

impl Sink for &mut Count {
    fn take(&mut self, ids: &[u32]) {
        self.0 += ids.len();
    }

    fn encode(&mut self, pipeline: &NativePipeline, text: &str, parse_special: bool) -> Result<()> {
        self.0 += pipeline.count(text, parse_special, usize::MAX)?;
        Ok(())
    }
}

impl PromptCache {
    /// A cache that holds at most `capacity_bytes`, what it needs for itself included.
    pub fn new(tokenizer: Arc<Tokenizer>, capacity_bytes: usize) -> Self {
        Self { tokenizer, store: Store::new(capacity_bytes) }
    }

    /// The tokenizer whose ids it holds.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    /// As [`Tokenizer::encode`].
    ///
    /// # Errors
    /// As for [`Tokenizer::encode`].
    pub fn encode(&self, text: &str, options: EncodeOptions) -> Result<Vec<u32>> {
        let Pipeline::Native(pipeline) = &self.tokenizer.pipeline else {
            return self.tokenizer.encode(text, options);
        };
        // A token of English has four to five bytes; a second allocation would copy everything.
        let mut ids = Vec::with_capacity(text.len() / 3 + 16);
        self.tokenizer.encode_with(pipeline, options.add_special_tokens, &mut ids, |ids| {
            self.each_part(pipeline, text, options.parse_special, ids)
        })?;
        Ok(ids)
    }

    /// As [`Tokenizer::count`].
    ///
    /// # Errors
    /// As for [`Tokenizer::count`].
    pub fn count(&self, text: &str, options: EncodeOptions) -> Result<usize> {
        let Pipeline::Native(pipeline) = &self.tokenizer.pipeline else {
            return self.tokenizer.count(text, options);
        };
        let mut count = Count(if options.add_special_tokens { pipeline.frame.len() } else { 0 });
        self.each_part(pipeline, text, options.parse_special, &mut count)?;
        Ok(count.0)
    }

    /// What the cache holds and has done.
    pub fn stats(&self) -> PromptCacheStats {
        self.store.stats()
    }

    /// Forgets everything.
    pub fn clear(&self) {
        self.store.clear();
    }

    fn each_part(
        &self,
        pipeline: &NativePipeline,
        text: &str,
        parse_special: bool,
        mut sink: impl Sink,
    ) -> Result<()> {
        let mut rest = text;
        while let Some(end) = part_end(pipeline, rest, parse_special) {
            let (part, after) = rest.split_at(end);
            rest = after;
            let key = Key::new(part, parse_special);
            if self.store.with(&key, part, |ids| sink.take(ids)).is_none() {
                let mut ids = Vec::with_capacity(part.len() / 3);
                pipeline.encode_into(part, parse_special, &mut ids)?;
                sink.take(&ids);
                self.store.insert(key, part, &ids);
            }
        }
        self.store.passed(rest.len());
        sink.encode(pipeline, rest, parse_special)
    }
}

/// Where the first part of the text ends; `None` where it is the last one.
fn part_end(pipeline: &NativePipeline, text: &str, parse_special: bool) -> Option<usize> {
    let last = text.len().min(PART + LONGEST);
    (PART..last).find(|&at| pipeline.is_cut(text, at, parse_special))
}
