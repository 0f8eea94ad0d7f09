//! Ids to text.

use std::str::Utf8Error;

use crate::buffers::{Buffer, Buffers};
use crate::error::{Result, TokenizeError};
use crate::spacing::Spacing;
use crate::tasks::in_tasks;
use crate::tokenizer::{Pipeline, Tokenizer};

/// What to do with decoded bytes that are not UTF-8, as Python's `bytes.decode` names it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum InvalidUtf8 {
    /// Put U+FFFD in their place, one for each longest beginning of a character (what every reference does).
    #[default]
    Replace,
    /// Leave them out.
    Ignore,
    /// Fail with [`TokenizeError::InvalidUtf8`].
    Strict,
}

/// The texts of many lists of ids.
#[derive(Clone, Debug, Default)]
pub struct TextBatch {
    /// Texts, one after the other, in as many pieces as threads made them.
    pieces: Vec<String>,
    /// Texts that follow each other: the piece where they lie, and where each ends; the first begins where the second
    /// number says.
    runs: Vec<(usize, usize, Vec<usize>)>,
}

impl TextBatch {
    /// The texts, in order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.runs.iter().flat_map(|(piece, start, ends)| {
            let piece = self.pieces.get(*piece).map_or("", String::as_str);
            let mut start = *start;
            ends.iter().map(move |&end| {
                let text = piece.get(start..end).unwrap_or_default();
                start = end;
                text
            })
        })
    }

    /// The number of texts.
    pub fn len(&self) -> usize {
        self.runs.iter().map(|(_, _, ends)| ends.len()).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What tasks have written: the texts of a part lie side by side, and have these lengths.
    fn of(buffers: Vec<Buffer<String>>, lengths: &[usize]) -> Self {
        let mut batch = Self::default();
        let mut parts = Vec::new();
        for (piece, Buffer { memory, parts: places }) in buffers.into_iter().enumerate() {
            batch.pieces.push(memory);
            parts.extend(places.into_iter().map(|(first, place)| (first, piece, place)));
        }
        parts.sort_unstable_by_key(|(first, ..)| *first);
        let mut ends = parts.iter().skip(1).map(|(first, ..)| *first).chain([lengths.len()]);
        for (first, piece, place) in &parts {
            let last = ends.next().unwrap_or(*first);
            let mut end = place.start;
            let run = lengths.get(*first..last).unwrap_or_default().iter().map(|length| {
                end += length;
                end
            });
            batch.runs.push((*piece, place.start, run.collect()));
        }
        batch
    }
}

impl Tokenizer {
    /// The text of these ids.
    ///
    /// # Errors
    /// [`TokenizeError::IdOutOfRange`], [`TokenizeError::UnassignedId`], [`TokenizeError::InvalidUtf8`].
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool, invalid: InvalidUtf8) -> Result<String> {
        if let Some(spacing) = self.spacing() {
            return spacing.decode(&self.vocabulary, ids, skip_special_tokens, invalid);
        }
        let bytes = self.decode_bytes(ids, skip_special_tokens)?;
        String::from_utf8(bytes).or_else(|error| {
            let mut text = String::new();
            append_invalid(error.as_bytes(), error.utf8_error(), invalid, &mut text)?;
            Ok(text)
        })
    }

    /// The bytes of these ids, which need not be UTF-8: a token may end inside a character.
    ///
    /// Pipelines of the `tokenizers` crate decode to text only; their bytes are those of that text.
    ///
    /// # Errors
    /// [`TokenizeError::IdOutOfRange`], [`TokenizeError::UnassignedId`].
    pub fn decode_bytes(&self, ids: &[u32], skip_special_tokens: bool) -> Result<Vec<u8>> {
        if let Some(spacing) = self.spacing() {
            return spacing.bytes(&self.vocabulary, self.shown(ids, skip_special_tokens));
        }
        if let Pipeline::Fallback(pipeline) = &self.pipeline {
            for &id in ids {
                self.vocabulary.bytes(id)?;
            }
            return Ok(pipeline.decode(ids, skip_special_tokens)?.into_bytes());
        }
        let mut bytes = Vec::with_capacity(ids.len() * 5); // a token of English has four to five bytes
        self.vocabulary.append(ids, skip_special_tokens, &mut bytes)?;
        Ok(bytes)
    }

    /// Appends the text of these ids; `bytes` is memory to use again.
    fn decode_into(
        &self,
        ids: &[u32],
        skip_special_tokens: bool,
        invalid: InvalidUtf8,
        bytes: &mut Vec<u8>,
        text: &mut String,
    ) -> Result<()> {
        if self.spacing().is_some() || matches!(self.pipeline, Pipeline::Fallback(_)) {
            text.push_str(&self.decode(ids, skip_special_tokens, invalid)?);
            return Ok(());
        }
        bytes.clear();
        self.vocabulary.append(ids, skip_special_tokens, bytes)?;
        match std::str::from_utf8(bytes) {
            Ok(decoded) => text.push_str(decoded),
            Err(error) => append_invalid(bytes, error, invalid, text)?,
        }
        Ok(())
    }

    /// How texts are put together, where tokens are not just bytes one after the other.
    pub(crate) fn spacing(&self) -> Option<&Spacing> {
        match &self.pipeline {
            Pipeline::Native(pipeline) => pipeline.spacing.as_ref(),
            Pipeline::Fallback(pipeline) => pipeline.spacing(),
        }
    }

    fn shown(&self, ids: &[u32], skip_special_tokens: bool) -> impl Iterator<Item = u32> {
        ids.iter().copied().filter(move |&id| !(skip_special_tokens && self.vocabulary.is_special(id)))
    }

    /// The texts of many lists of ids, one after the other in `ids`: list `i` is `ids[offsets[i]..offsets[i + 1]]`,
    /// as [`crate::TokenBatch`] has them. `threads` and `stop` as for [`Tokenizer::encode_batch`].
    ///
    /// # Errors
    /// [`TokenizeError::Offsets`], and as for [`Tokenizer::decode`].
    pub fn decode_batch(
        &self,
        ids: &[u32],
        offsets: &[i64],
        skip_special_tokens: bool,
        invalid: InvalidUtf8,
        threads: usize,
        stop: &dyn Fn() -> bool,
    ) -> Result<TextBatch> {
        let lists = cut(ids, offsets)?;
        let buffers = Buffers::new(ids.len() * 5 / threads.clamp(1, lists.len().max(1)));
        let decode = |first: usize, lists: &[&[u32]], lengths: &mut [usize]| {
            let mut bytes = Vec::new();
            buffers.with(first, |text: &mut String| {
                for (list, length) in lists.iter().zip(lengths) {
                    let start = text.len();
                    self.decode_into(list, skip_special_tokens, invalid, &mut bytes, text)?;
                    *length = text.len() - start;
                }
                Ok(())
            })
        };
        let lengths = in_tasks(&lists, |list| list.len() * 8, threads, stop, decode)?;
        Ok(TextBatch::of(buffers.into_inner(), &lengths))
    }

    /// The error for an id that came from outside and is not even a number of the right kind.
    pub fn no_such_id(&self, id: i64) -> TokenizeError {
        self.vocabulary.no_such_id(id)
    }
}

/// Appends bytes that are not UTF-8 in the way that was asked for.
#[cold]
fn append_invalid(bytes: &[u8], error: Utf8Error, invalid: InvalidUtf8, text: &mut String) -> Result<()> {
    match invalid {
        InvalidUtf8::Replace => text.push_str(&String::from_utf8_lossy(bytes)),
        InvalidUtf8::Ignore => text.extend(bytes.utf8_chunks().map(|chunk| chunk.valid())),
        InvalidUtf8::Strict => {
            return Err(TokenizeError::InvalidUtf8 { valid_up_to: error.valid_up_to() });
        }
    }
    Ok(())
}

/// The lists that the offsets cut `ids` into.
fn cut<'i>(ids: &'i [u32], offsets: &[i64]) -> Result<Vec<&'i [u32]>> {
    let bad = |position: usize| TokenizeError::Offsets { position, length: ids.len() };
    if offsets.is_empty() {
        return Err(bad(0));
    }
    let list = |(position, pair): (usize, &[i64])| {
        let range = usize::try_from(pair[0]).ok().zip(usize::try_from(pair[1]).ok());
        range.and_then(|(start, end)| ids.get(start..end)).ok_or_else(|| bad(position + 1))
    };
    offsets.windows(2).enumerate().map(list).collect()
}
