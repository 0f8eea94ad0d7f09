//! Ids to text.

use crate::encode::in_tasks;
use crate::error::{Result, TokenizeError};
use crate::spacing::Spacing;
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
        match String::from_utf8(bytes) {
            Ok(text) => Ok(text),
            Err(error) => match invalid {
                InvalidUtf8::Replace => Ok(String::from_utf8_lossy(error.as_bytes()).into_owned()),
                InvalidUtf8::Ignore => {
                    Ok(error.as_bytes().utf8_chunks().map(|chunk| chunk.valid()).collect())
                }
                InvalidUtf8::Strict => {
                    Err(TokenizeError::InvalidUtf8 { valid_up_to: error.utf8_error().valid_up_to() })
                }
            },
        }
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
        for &id in ids {
            let token = self.vocabulary.bytes(id)?;
            if !(skip_special_tokens && self.vocabulary.is_special(id)) {
                bytes.extend_from_slice(token);
            }
        }
        Ok(bytes)
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
    ) -> Result<Vec<String>> {
        let lists = cut(ids, offsets)?;
        let parts = in_tasks(
            &lists,
            |list| list.len() * 8,
            threads,
            stop,
            |lists| {
                let decode = |list: &&[u32]| self.decode(list, skip_special_tokens, invalid);
                lists.iter().map(decode).collect::<Result<Vec<String>>>()
            },
        )?;
        Ok(parts.into_iter().flatten().collect())
    }

    /// The error for an id that came from outside and is not even a number of the right kind.
    pub fn no_such_id(&self, id: i64) -> TokenizeError {
        self.vocabulary.no_such_id(id)
    }
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
