//! Prompts that begin like earlier ones: only what is new is encoded.
//!
//! A text is divided where it may be cut (`NativePipeline::is_cut`): the ids of a part do not depend on what stands
//! around it, so that they may be kept and put together again, exactly. Parts of the lowest level end at the first
//! such place after every [`SMALLEST`] bytes, counted from the end of the part before: two texts that begin alike
//! have the same parts as far as they are alike. Parts that were all found are kept joined as well ([`JOINED`] of
//! them as one of the next level), so that the long beginning of a prompt is a few long parts, and each prompt that
//! comes but once is kept once. What is left at the end is not kept, since it is what the next prompt goes on from.

mod part;
mod store;

use std::sync::Arc;

use crate::error::Result;
use crate::native::{NativePipeline, Reading};
use crate::tokenizer::{EncodeOptions, Pipeline, Tokenizer};

use part::{JOINED, Kind, LEVELS, Part, SMALLEST};
pub use store::PromptCacheStats;
use store::Store;

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
    /// Text to encode whose ids the cache wants.
    fn encode(&mut self, pipeline: &NativePipeline, text: &str, reading: Reading) -> Result<&[u32]>;
    /// Text that is not kept.
    fn finish(&mut self, pipeline: &NativePipeline, text: &str, reading: Reading) -> Result<()>;
}

impl Sink for Vec<u32> {
    fn take(&mut self, ids: &[u32]) {
        self.extend_from_slice(ids);
    }

    fn encode(&mut self, pipeline: &NativePipeline, text: &str, reading: Reading) -> Result<&[u32]> {
        let start = self.len();
        pipeline.encode_part_into(text, reading, self)?;
        Ok(self.get(start..).unwrap_or_default())
    }

    fn finish(&mut self, pipeline: &NativePipeline, text: &str, reading: Reading) -> Result<()> {
        pipeline.encode_part_into(text, reading, self)
    }
}

/// The number of ids, and memory for those of one part.
#[derive(Default)]
struct Count {
    count: usize,
    ids: Vec<u32>,
}

impl Sink for Count {
    fn take(&mut self, ids: &[u32]) {
        self.count += ids.len();
    }

    fn encode(&mut self, pipeline: &NativePipeline, text: &str, reading: Reading) -> Result<&[u32]> {
        self.ids.clear();
        pipeline.encode_part_into(text, reading, &mut self.ids)?;
        self.count += self.ids.len();
        Ok(&self.ids)
    }

    fn finish(&mut self, pipeline: &NativePipeline, text: &str, reading: Reading) -> Result<()> {
        self.count += pipeline.count_part(text, reading, usize::MAX)?;
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
            self.walk(pipeline, text, options.parse_special, ids)
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
        let mut count = Count::default();
        self.walk(pipeline, text, options.parse_special, &mut count)?;
        Ok(count.count + if options.add_special_tokens { pipeline.frame.len() } else { 0 })
    }

    /// What the cache holds and has done.
    pub fn stats(&self) -> PromptCacheStats {
        self.store.stats()
    }

    /// Forgets everything.
    pub fn clear(&self) {
        self.store.clear();
    }

    fn walk(
        &self,
        pipeline: &NativePipeline,
        text: &str,
        parse_special: bool,
        sink: &mut impl Sink,
    ) -> Result<()> {
        let mut walk =
            Walk { store: &self.store, pipeline, text, parse_special, sink, at: 0, reused: 0, encoded: 0 };
        for level in (0..LEVELS).rev() {
            while walk.part(level)?.is_some() {}
        }
        let rest = text.get(walk.at..).unwrap_or_default();
        self.store.record(walk.reused, walk.encoded + rest.len());
        let reading = walk.reading();
        sink.finish(pipeline, rest, reading)
    }
}

/// A way through a text, part by part.
struct Walk<'w, S> {
    store: &'w Store,
    pipeline: &'w NativePipeline,
    text: &'w str,
    parse_special: bool,
    sink: &'w mut S,
    /// Where the next part begins.
    at: usize,
    reused: usize,
    encoded: usize,
}

/// How the cache came to a part.
enum Seen {
    /// It was there.
    Before(Arc<Part>),
    /// It, or some of what it is made of, was not.
    Now,
}

impl<S: Sink> Walk<'_, S> {
    /// Goes past the next part of this level; `None` where the text has no more of them, though some of what it is
    /// made of may be behind us then.
    fn part(&mut self, level: u8) -> Result<Option<Seen>> {
        let begins = self.at == 0 && self.pipeline.puts_prefix();
        let kind = Kind { level, parse_special: self.parse_special, begins };
        let rest = self.text.as_bytes().get(self.at..).unwrap_or_default();
        if rest.len() <= kind.window() {
            return Ok(None);
        }
        if let Some(part) = self.store.find(kind, rest)
            && self.is_cut(self.at + part.text().len())
        {
            self.sink.take(part.ids());
            self.at += part.text().len();
            self.reused += part.text().len();
            return Ok(Some(Seen::Before(part)));
        }
        if level > 0 { self.several(kind) } else { self.new_part(kind) }
    }

    /// Goes past what a part of a higher level is made of, and keeps it as one if all of it was there.
    fn several(&mut self, kind: Kind) -> Result<Option<Seen>> {
        let mut parts = Vec::with_capacity(JOINED);
        for _ in 0..JOINED {
            match self.part(kind.level - 1)? {
                None => return Ok(None),
                Some(Seen::Before(part)) => parts.push(part),
                Some(Seen::Now) => {}
            }
        }
        if parts.len() == JOINED {
            self.store.insert_joined(kind, &parts);
        }
        Ok(Some(Seen::Now))
    }

    /// Goes past a part that has to be encoded.
    fn new_part(&mut self, kind: Kind) -> Result<Option<Seen>> {
        let last = self.text.len().min(self.at + SMALLEST + LONGEST);
        let Some(end) = (self.at + SMALLEST..last).find(|&at| self.is_cut(at)) else { return Ok(None) };
        let part = self.text.get(self.at..end).unwrap_or_default();
        let reading = self.reading();
        let ids = self.sink.encode(self.pipeline, part, reading)?;
        self.store.insert(Part::new(kind, part.as_bytes(), ids));
        self.at = end;
        self.encoded += part.len();
        Ok(Some(Seen::Now))
    }

    /// How what comes next is read.
    fn reading(&self) -> Reading {
        Reading { parse_special: self.parse_special, begins: self.at == 0 }
    }

    fn is_cut(&self, at: usize) -> bool {
        self.pipeline.is_cut(self.text, at, self.parse_special)
    }
}
