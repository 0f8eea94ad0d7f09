//! Text → ids: split, then encode each span.

use std::ops::{ControlFlow, Range};

use super::ahead::{SPANS, Sources, parts};
use super::key::key_at;
use super::{Bpe, BpeParts};
use crate::error::TokenizeError;
use crate::pretokenize::Pretokenizer;
use crate::workers::{Pool, Worker};

/// An id and the bytes of the text, from `start` to before `end`, that its token stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // said above
pub struct TokenSpan {
    pub id: u32,
    pub start: u32,
    pub end: u32,
}

/// A pretokenizer and a byte-pair model, with a bounded cache. One instance serves any number of threads.
pub struct BytePairEncoder {
    pub(super) pretokenizer: Pretokenizer,
    pub(super) bpe: Bpe,
    pub(super) pool: Pool,
}

impl BytePairEncoder {
    /// Checks the parts and builds the tables.
    ///
    /// # Errors
    /// As [`Bpe::new`].
    pub fn new(pretokenizer: Pretokenizer, parts: BpeParts) -> Result<Self, TokenizeError> {
        Ok(Self { pretokenizer, bpe: Bpe::new(parts)?, pool: Pool::new() })
    }

    /// The pretokenizer that was given.
    pub fn pretokenizer(&self) -> &Pretokenizer {
        &self.pretokenizer
    }

    /// Appends the ids of `text` to `out`. O(length), for spans of n bytes that no token covers O(n log n).
    ///
    /// # Errors
    /// As [`Pretokenizer::for_each`]; `out` is then as it was.
    pub fn encode_into(&self, text: &str, out: &mut Vec<u32>) -> Result<(), TokenizeError> {
        let before = out.len();
        let split = self.pool.with(|worker| {
            let Worker { tables, scratch, ahead, starts, .. } = worker;
            let mut sources = Sources { tables, scratch, bpe: &self.bpe };
            self.pretokenizer.for_each_batch_in(starts, text, |text, bounds| {
                for bounds in parts(bounds, SPANS) {
                    ahead.look_up::<true>(&mut sources, text.as_bytes(), bounds);
                    ahead.append_ids(ahead.spans(), out);
                }
                ControlFlow::Continue(())
            })
        });
        if split.is_err() {
            out.truncate(before);
        }
        split
    }

    /// Number of ids of `text`. Once more than `limit` are found the answer is some number above `limit`. Makes no
    /// ids where the cache knows a span.
    ///
    /// # Errors
    /// As [`Pretokenizer::for_each`].
    pub fn count(&self, text: &str, limit: usize) -> Result<usize, TokenizeError> {
        let mut count = 0;
        self.pool.with(|worker| {
            let Worker { tables, scratch, ahead, starts, .. } = worker;
            let mut sources = Sources { tables, scratch, bpe: &self.bpe };
            self.pretokenizer.for_each_batch_in(starts, text, |text, bounds| {
                for bounds in parts(bounds, SPANS) {
                    count += ahead.look_up::<false>(&mut sources, text.as_bytes(), bounds);
                }
                if count > limit { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })
        })?;
        Ok(count)
    }

    /// Calls `emit` with each id of a text from which these bytes are left out once it is split, and with the part of
    /// `text` that its token stands for.
    ///
    /// # Errors
    /// As [`Pretokenizer::for_each`]; ids before that place have been handed out.
    pub(crate) fn encode_without(
        &self,
        text: &str,
        left_out: &[bool; 256],
        mut emit: impl FnMut(u32, Range<usize>),
    ) -> Result<(), TokenizeError> {
        let start = text.as_ptr().addr();
        let (mut kept, mut places, mut ids) = (Vec::new(), Vec::new(), Vec::new());
        self.pool.with(|worker| {
            self.pretokenizer.for_each_batch(text, |text, bounds| {
                let part = text.as_ptr().addr() - start;
                for pair in bounds.windows(2) {
                    kept.clear();
                    places.clear();
                    ids.clear();
                    let span = text.as_bytes().get(pair[0]..pair[1]).unwrap_or_default();
                    for (place, &byte) in (part + pair[0]..).zip(span) {
                        if !left_out[usize::from(byte)] {
                            kept.push(byte);
                            places.push(place);
                        }
                    }
                    if kept.is_empty() {
                        continue;
                    }
                    worker.encode_into(&self.bpe, &kept, key_at(&kept, 0, kept.len()), &mut ids);
                    let mut rest = places.as_slice();
                    for &id in &ids {
                        let (own, after) = rest.split_at(self.bpe.token_length(id).min(rest.len()));
                        rest = after;
                        let end = own.last().map_or(part, |last| last + 1);
                        emit(id, own.first().copied().unwrap_or(end)..end);
                    }
                }
                ControlFlow::Continue(())
            })
        })
    }

    /// Appends each id and the bytes of `text` that its token stands for.
    ///
    /// # Errors
    /// As [`Pretokenizer::for_each`], and [`TokenizeError::TextTooLong`] from 4 GiB on; `out` is then as it was.
    pub fn encode_with_spans(&self, text: &str, out: &mut Vec<TokenSpan>) -> Result<(), TokenizeError> {
        let limit = u32::MAX as usize;
        if text.len() > limit {
            return Err(TokenizeError::TextTooLong { length: text.len(), limit });
        }
        let (before, start) = (out.len(), text.as_ptr().addr());
        let mut ids = Vec::new();
        let split = self.pool.with(|worker| {
            self.pretokenizer.for_each_batch(text, |text, bounds| {
                let part = text.as_ptr().addr() - start;
                let text = text.as_bytes();
                for pair in bounds.windows(2) {
                    let span = text.get(pair[0]..pair[1]).unwrap_or_default();
                    ids.clear();
                    worker.encode_into(&self.bpe, span, key_at(text, pair[0], pair[1]), &mut ids);
                    let mut end = part + pair[0];
                    out.extend(ids.iter().map(|&id| {
                        let start = end;
                        end += self.bpe.token_length(id);
                        TokenSpan { id, start: start as u32, end: end as u32 }
                    }));
                }
                ControlFlow::Continue(())
            })
        });
        if split.is_err() {
            out.truncate(before);
        }
        split
    }
}
