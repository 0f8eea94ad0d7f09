//! Text → ids: split, then encode each span.

use std::ops::ControlFlow;

use super::key::{Key, key_at};
use super::{Bpe, BpeParts};
use crate::cache::{Encoded, Pool, Worker};
use crate::error::TokenizeError;
use crate::kernels::BLOCK;
use crate::pretokenize::Pretokenizer;

/// Spans whose keys are made, and whose memory is asked for, before the first of them is looked up.
const AHEAD: usize = BLOCK;

/// A pretokenizer and a byte-pair model, with a bounded cache. One instance serves any number of threads.
pub struct BytePairEncoder {
    pretokenizer: Pretokenizer,
    bpe: Bpe,
    pool: Pool,
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
            self.pretokenizer.for_each_batch(text, |text, bounds| {
                self.encode_batch(worker, text.as_bytes(), bounds, out);
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
            self.pretokenizer.for_each_batch(text, |text, bounds| {
                count += self.count_batch(worker, text.as_bytes(), bounds);
                if count > limit { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })
        })?;
        Ok(count)
    }

    fn count_batch(&self, worker: &mut Worker, text: &[u8], bounds: &[usize]) -> usize {
        let mut count = 0;
        for bounds in parts(bounds) {
            let spans = Ahead::look(worker, text, bounds);
            count += spans.counted;
            for (key, pair) in spans.unknown() {
                count += match worker.find(key) {
                    Some(encoded) => encoded.count(),
                    None => worker.encode(&self.bpe, &text[pair[0]..pair[1]], key).len(),
                };
            }
        }
        count
    }

    fn encode_batch(&self, worker: &mut Worker, text: &[u8], bounds: &[usize], out: &mut Vec<u32>) {
        for bounds in parts(bounds) {
            let spans = Ahead::look(worker, text, bounds);
            // Four ids are copied whatever the count, the superfluous ones overwritten by the next.
            let mut buffer = [0; 4 * AHEAD];
            let mut filled = 0;
            for (&(key, hot), pair) in spans.keys.iter().zip(bounds.windows(2)) {
                if hot >> 24 == 1 {
                    buffer[filled] = hot & Encoded::ID;
                    filled += 1;
                } else if let Some((ids, count)) = worker.find(key).and_then(Encoded::ids) {
                    if let Some(room) = buffer.get_mut(filled..filled + ids.len()) {
                        room.copy_from_slice(&ids);
                    }
                    filled += count;
                } else {
                    out.extend_from_slice(&buffer[..filled]);
                    filled = 0;
                    out.extend_from_slice(worker.encode(&self.bpe, &text[pair[0]..pair[1]], key));
                }
            }
            out.extend_from_slice(&buffer[..filled]);
        }
    }

    /// Appends each id and the byte at which its token ends, counted from the start of `text`. A token begins
    /// where the one before ends, except after text that the pattern drops.
    ///
    /// # Errors
    /// As [`Pretokenizer::for_each`], and [`TokenizeError::TextTooLong`] from 4 GiB on; `out` is then as it was.
    pub fn encode_with_ends(&self, text: &str, out: &mut Vec<(u32, u32)>) -> Result<(), TokenizeError> {
        let limit = u32::MAX as usize;
        if text.len() > limit {
            return Err(TokenizeError::TextTooLong { length: text.len(), limit });
        }
        let (before, start) = (out.len(), text.as_ptr().addr());
        let split = self.pool.with(|worker| {
            self.pretokenizer.for_each_batch(text, |text, bounds| {
                let part = text.as_ptr().addr() - start;
                let text = text.as_bytes();
                for pair in bounds.windows(2) {
                    let key = key_at(text, pair[0], pair[1]);
                    let mut end = part + pair[0];
                    let mut push = |id| {
                        end += self.bpe.token_length(id);
                        out.push((id, end as u32));
                    };
                    if let Some((ids, count)) = worker.find(key).and_then(Encoded::ids) {
                        ids.iter().take(count).for_each(|&id| push(id));
                    } else {
                        worker
                            .encode(&self.bpe, &text[pair[0]..pair[1]], key)
                            .iter()
                            .for_each(|&id| push(id));
                    }
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

/// Bounds of at most [`AHEAD`] spans at a time; each part begins with the last bound of the one before.
fn parts(bounds: &[usize]) -> impl Iterator<Item = &[usize]> {
    let firsts = (0..bounds.len().saturating_sub(1)).step_by(AHEAD);
    firsts.map(|first| &bounds[first..bounds.len().min(first + AHEAD + 1)])
}

/// Keys of some spans with what the hot table knows of them; memory of the others is on its way.
struct Ahead<'b> {
    keys: [(Key, u32); AHEAD],
    bounds: &'b [usize],
    /// Places in `keys` that the hot table does not know.
    unknown: [u8; AHEAD],
    unknown_count: usize,
    /// Ids of the spans that it knows.
    counted: usize,
}

impl<'b> Ahead<'b> {
    #[inline(always)]
    fn look(worker: &Worker, text: &[u8], bounds: &'b [usize]) -> Self {
        let mut ahead = Self {
            keys: [(Key::default(), 0); AHEAD],
            bounds,
            unknown: [0; AHEAD],
            unknown_count: 0,
            counted: 0,
        };
        for (place, (slot, pair)) in ahead.keys.iter_mut().zip(bounds.windows(2)).enumerate() {
            let key = key_at(text, pair[0], pair[1]);
            let hot = worker.hot.get(key);
            *slot = (key, hot);
            ahead.counted += (hot >> 24) as usize;
            // Written always, kept only if unknown: no branch to predict.
            ahead.unknown[ahead.unknown_count % AHEAD] = place as u8;
            ahead.unknown_count += usize::from(hot == 0);
        }
        for (key, _) in ahead.unknown() {
            worker.prefetch(key);
        }
        ahead
    }

    #[inline(always)]
    fn unknown(&self) -> impl Iterator<Item = (Key, [usize; 2])> {
        self.unknown.iter().take(self.unknown_count).map(|&place| {
            let place = usize::from(place) % AHEAD;
            (self.keys[place].0, [self.bounds[place], self.bounds[place + 1]])
        })
    }
}
