//! Text to ids.

use std::sync::{Mutex, PoisonError};

use infer_accel_tensor::threads;

use crate::error::{Result, TokenizeError};
use crate::frame::Frame;
use crate::native::NativePipeline;
use crate::tokenizer::{EncodeOptions, Pipeline, Tokenizer};

/// The ids of many texts, one after the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenBatch {
    /// All ids.
    pub ids: Vec<u32>,
    /// Where each text's ids begin; the last entry is `ids.len()`. One longer than the number of texts.
    pub offsets: Vec<usize>,
}

/// A task of a batch has at least this much text, so that handing it out costs nothing beside it, and no more than
/// this and one text, so that two threads end together and a signal is heeded soon.
const TASK_BYTES: usize = 64 * 1024;

impl Tokenizer {
    /// The ids of a text, with the file's truncation and padding.
    ///
    /// # Errors
    /// [`TokenizeError::Pipeline`] where the fallback gives up.
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

    fn encode_unpadded(&self, text: &str, options: EncodeOptions, ids: &mut Vec<u32>) -> Result<()> {
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
    /// [`TokenizeError::Interrupted`], or the first error of [`Tokenizer::encode`] by position.
    pub fn encode_batch(
        &self,
        texts: &[&str],
        options: EncodeOptions,
        threads: usize,
        stop: &dyn Fn() -> bool,
    ) -> Result<TokenBatch> {
        let parts = in_tasks(
            texts,
            |text| text.len(),
            threads,
            stop,
            |texts| {
                let mut part = TokenBatch::default();
                for text in texts {
                    self.encode_unpadded(text, options, &mut part.ids)?;
                    part.offsets.push(part.ids.len());
                }
                Ok(part)
            },
        )?;
        let batch = join(parts, texts.len());
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

/// Runs `work` over parts of the items, each of [`TASK_BYTES`] or so by `bytes`, on at most `threads` threads, and
/// returns its results in order.
pub(crate) fn in_tasks<I: Sync, T: Send>(
    items: &[I],
    bytes: impl Fn(&I) -> usize,
    threads: usize,
    stop: &dyn Fn() -> bool,
    work: impl Fn(&[I]) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let tasks = divide(items, bytes);
    let results: Vec<Mutex<Option<Result<T>>>> = tasks.iter().map(|_| Mutex::new(None)).collect();
    let run = |index: usize| {
        if let (Some(task), Some(result)) = (tasks.get(index), results.get(index)) {
            let outcome = work(task);
            *result.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
        }
    };
    threads::parallel_for_interruptible(threads, tasks.len(), stop, run)
        .map_err(|threads::Interrupted| TokenizeError::Interrupted)?;
    let finished = |result: Mutex<Option<Result<T>>>| {
        let outcome = result.into_inner().unwrap_or_else(PoisonError::into_inner);
        outcome.unwrap_or(Err(TokenizeError::Interrupted))
    };
    results.into_iter().map(finished).collect()
}

/// Consecutive parts of the items.
fn divide<I>(items: &[I], bytes: impl Fn(&I) -> usize) -> Vec<&[I]> {
    let mut tasks = Vec::new();
    let (mut start, mut size) = (0, 0);
    for (index, item) in items.iter().enumerate() {
        size += bytes(item) + 64; // an item costs something even where it is empty
        if size >= TASK_BYTES || index + 1 == items.len() {
            tasks.push(&items[start..=index]);
            (start, size) = (index + 1, 0);
        }
    }
    tasks
}

/// Joins parts, whose offsets are the ends of their texts, into one batch.
pub(crate) fn join(mut parts: Vec<TokenBatch>, texts: usize) -> TokenBatch {
    let mut offsets = Vec::with_capacity(texts + 1);
    offsets.push(0);
    if parts.len() == 1 {
        let only = parts.swap_remove(0);
        offsets.extend_from_slice(&only.offsets);
        return TokenBatch { ids: only.ids, offsets };
    }
    let mut ids = Vec::with_capacity(parts.iter().map(|part| part.ids.len()).sum());
    for part in parts {
        offsets.extend(part.offsets.iter().map(|end| ids.len() + end));
        ids.extend_from_slice(&part.ids);
    }
    TokenBatch { ids, offsets }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_cover_all_texts_once_and_in_order() {
        let long = "x".repeat(3 * TASK_BYTES);
        let short = vec!["abc"; 5000];
        for texts in [&[][..], &["a"], &[&long, "", &long], &short] {
            let tasks = divide(texts, |text| text.len());
            assert_eq!(tasks.concat(), texts);
            assert!(tasks.iter().all(|task| !task.is_empty()));
        }
    }

    #[test]
    fn parts_join_to_one_batch() {
        let part = |ids: &[u32], ends: &[usize]| TokenBatch { ids: ids.to_vec(), offsets: ends.to_vec() };
        let joined = join(vec![part(&[1, 2, 3], &[1, 1, 3]), part(&[], &[0]), part(&[4], &[1])], 5);
        assert_eq!(joined, part(&[1, 2, 3, 4], &[0, 1, 1, 3, 3, 4]));
        assert_eq!(join(vec![part(&[7], &[1])], 1), part(&[7], &[0, 1]));
        assert_eq!(join(vec![], 0), part(&[], &[0]));
    }
}
