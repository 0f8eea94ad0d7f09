//! Several texts at a time: copied one after the other, so that the spans of short texts are looked up as many together as
//! those of a long one, and what must be merged waits for company.

use std::ops::{ControlFlow, Range};

use super::ahead::{Ahead, SPANS, Sources, parts};
use super::encoder::BytePairEncoder;
use crate::error::TokenizeError;
use crate::pretokenize::{Pretokenizer, Starts};
use crate::workers::Worker;

/// Bytes that are gathered before they are looked up; a text of so many is not copied.
const FULL: usize = 8 * 1024;

/// Gets the ids of one text after the other.
pub(crate) trait Sink {
    /// Looks up as much as the sink wants to know.
    fn look_up(&self, ahead: &mut Ahead, sources: &mut Sources<'_>, text: &[u8], bounds: &[usize]);
    /// The next ids of the text: those of some spans that were looked up last.
    fn take(&mut self, ahead: &Ahead, spans: Range<usize>);
    /// The next id of the text: an added token.
    fn take_token(&mut self, id: u32);
    /// The text has no more ids; the next one begins.
    fn end_text(&mut self);
}

/// Adds up the ids of each text.
pub(crate) struct Counts<'c> {
    counts: std::slice::IterMut<'c, usize>,
    count: usize,
}

impl<'c> Counts<'c> {
    /// Counts go into `counts`, in order.
    pub(crate) fn new(counts: &'c mut [usize]) -> Self {
        Self { counts: counts.iter_mut(), count: 0 }
    }
}

impl Sink for Counts<'_> {
    fn look_up(&self, ahead: &mut Ahead, sources: &mut Sources<'_>, text: &[u8], bounds: &[usize]) {
        ahead.look_up::<false>(sources, text, bounds);
    }

    fn take(&mut self, ahead: &Ahead, spans: Range<usize>) {
        self.count += ahead.count_of(spans);
    }

    fn take_token(&mut self, _: u32) {
        self.count += 1;
    }

    fn end_text(&mut self) {
        if let Some(count) = self.counts.next() {
            *count = self.count;
        }
        self.count = 0;
    }
}

/// Appends the ids of each text, and calls `end` behind each.
pub(crate) struct Ids<'i, F> {
    pub(crate) ids: &'i mut Vec<u32>,
    pub(crate) end: F,
}

impl<F: FnMut(&mut Vec<u32>)> Sink for Ids<'_, F> {
    fn look_up(&self, ahead: &mut Ahead, sources: &mut Sources<'_>, text: &[u8], bounds: &[usize]) {
        ahead.look_up::<true>(sources, text, bounds);
    }

    fn take(&mut self, ahead: &Ahead, spans: Range<usize>) {
        ahead.append_ids(spans, self.ids);
    }

    fn take_token(&mut self, id: u32) {
        self.ids.push(id);
    }

    fn end_text(&mut self) {
        (self.end)(self.ids);
    }
}

/// Text that waits, split.
#[derive(Default)]
pub(crate) struct Gathered {
    text: Vec<u8>,
    /// Where spans start; where the last one ends is added before they are looked up.
    starts: Vec<usize>,
    /// What comes before the span of this number, in order.
    marks: Vec<(usize, Mark)>,
}

#[derive(Clone, Copy)]
enum Mark {
    TextEnds,
    Token(u32),
}

impl Gathered {
    fn clear(&mut self) {
        self.text.clear();
        self.starts.clear();
        self.marks.clear();
    }
}

/// Takes texts, and hands their ids to a sink.
pub(crate) struct Together<'t, S> {
    pretokenizer: &'t Pretokenizer,
    sources: Sources<'t>,
    ahead: &'t mut Ahead,
    starts: &'t mut Starts,
    gathered: &'t mut Gathered,
    sink: &'t mut S,
}

impl BytePairEncoder {
    /// Calls `gather` with what takes texts; `sink` has got all their ids in the end.
    ///
    /// # Errors
    /// Those of `gather`; the sink has then got some of the ids.
    pub(crate) fn together<S: Sink>(
        &self,
        sink: &mut S,
        gather: impl FnOnce(&mut Together<'_, S>) -> Result<(), TokenizeError>,
    ) -> Result<(), TokenizeError> {
        self.pool.with(|worker| {
            let Worker { tables, scratch, ahead, starts, gathered, .. } = worker;
            gathered.clear();
            let sources = Sources { tables, scratch, bpe: &self.bpe };
            let pretokenizer = &self.pretokenizer;
            let mut together = Together { pretokenizer, sources, ahead, starts, gathered, sink };
            gather(&mut together)?;
            together.flush();
            Ok(())
        })
    }
}

impl<S: Sink> Together<'_, S> {
    /// The next part of the text: it is split and merged by itself.
    ///
    /// # Errors
    /// As [`Pretokenizer::for_each`].
    pub(crate) fn add(&mut self, text: &str) -> Result<(), TokenizeError> {
        if text.len() >= FULL {
            self.flush();
            return self.look_up_in_place(text);
        }
        let Gathered { text: copied, starts: gathered, .. } = &mut *self.gathered;
        self.pretokenizer.for_each_batch_in(self.starts, text, |text, bounds| {
            if let Some((end, starts)) = bounds.split_last() {
                let before = copied.len();
                gathered.extend(starts.iter().map(|start| before + start));
                copied.extend_from_slice(text.as_bytes().get(..*end).unwrap_or_default());
            }
            ControlFlow::Continue(())
        })?;
        if self.gathered.text.len() >= FULL {
            self.flush();
        }
        Ok(())
    }

    /// The next part of the text: an added token.
    pub(crate) fn add_token(&mut self, id: u32) {
        self.gathered.marks.push((self.gathered.starts.len(), Mark::Token(id)));
    }

    /// The text ends here.
    pub(crate) fn end_text(&mut self) {
        self.gathered.marks.push((self.gathered.starts.len(), Mark::TextEnds));
    }

    fn look_up_in_place(&mut self, text: &str) -> Result<(), TokenizeError> {
        let Self { pretokenizer, sources, ahead, starts, sink, .. } = self;
        pretokenizer.for_each_batch_in(starts, text, |text, bounds| {
            for bounds in parts(bounds, SPANS) {
                sink.look_up(ahead, sources, text.as_bytes(), bounds);
                sink.take(ahead, ahead.spans());
            }
            ControlFlow::Continue(())
        })
    }

    /// Hands over all that was gathered.
    fn flush(&mut self) {
        let Self { sources, ahead, gathered, sink, .. } = self;
        let Gathered { text, starts, marks } = &mut **gathered;
        starts.push(text.len());
        let mut marks = marks.iter().peekable();
        let mut before = 0;
        for bounds in parts(starts, SPANS) {
            sink.look_up(ahead, sources, text, bounds);
            let spans = ahead.spans().end;
            let mut first = 0;
            while let Some((place, mark)) = marks.next_if(|(place, _)| *place <= before + spans) {
                let end = place - before;
                sink.take(ahead, first..end);
                first = end;
                take_mark(*sink, *mark);
            }
            sink.take(ahead, first..spans);
            before += spans;
        }
        marks.for_each(|(_, mark)| take_mark(*sink, *mark));
        gathered.clear();
    }
}

fn take_mark(sink: &mut impl Sink, mark: Mark) {
    match mark {
        Mark::TextEnds => sink.end_text(),
        Mark::Token(id) => sink.take_token(id),
    }
}
