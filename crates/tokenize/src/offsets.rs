//! Where in a text its tokens lie.

use std::borrow::Cow;
use std::ops::{ControlFlow, Range};

use tokenizers::NormalizedString;
use tokenizers::tokenizer::normalizer::Range as Referential;

use crate::error::Result;
use crate::native::{NativePipeline, Normalization};
use crate::tokenizer::{EncodeOptions, Pipeline, Tokenizer};

/// An id and the part of the text that its token stands for, in bytes; empty for tokens that stand around a text.
pub type Located = (u32, Range<usize>);

impl Tokenizer {
    /// The ids of a text and where each token lies in it, in bytes; the file's truncation and padding left out.
    ///
    /// White space that belongs to a token belongs to its part of the text. Where normalization has changed the
    /// text, parts are what the `tokenizers` crate says: whole characters of the text as it came, and what was
    /// composed away (an accent) belongs to no token. Tokens of the pipeline's frame have an empty part at 0.
    ///
    /// # Errors
    /// As for [`Tokenizer::encode`], and [`crate::TokenizeError::TextTooLong`] from 4 GiB on.
    pub fn offsets(&self, text: &str, options: EncodeOptions) -> Result<Vec<Located>> {
        let EncodeOptions { add_special_tokens, parse_special } = options;
        let pipeline = match &self.pipeline {
            Pipeline::Fallback(pipeline) => return pipeline.offsets(text, add_special_tokens, parse_special),
            Pipeline::Native(pipeline) => pipeline,
        };
        let framed = |ids: &[u32]| ids.iter().map(|&id| (id, 0..0)).collect::<Vec<_>>();
        let mut located = if add_special_tokens { framed(&pipeline.frame.before) } else { Vec::new() };
        pipeline.locate(text, parse_special, &mut located)?;
        if add_special_tokens {
            located.extend(framed(&pipeline.frame.after));
        }
        Ok(located)
    }
}

/// The same parts in characters; a part that begins or ends inside a character takes it in.
pub fn in_characters(text: &str, parts: impl Iterator<Item = Range<usize>>) -> Vec<Range<usize>> {
    if text.is_ascii() {
        return parts.collect();
    }
    // Characters that begin at or before each byte: one more than the number of the character that it belongs to.
    let begun: Vec<u32> = text
        .bytes()
        .scan(0, |begun, byte| {
            *begun += u32::from(byte & 0xc0 != 0x80);
            Some(*begun)
        })
        .collect();
    let up_to =
        |end: usize| end.checked_sub(1).and_then(|last| begun.get(last)).map_or(0, |&begun| begun as usize);
    let characters = |part: Range<usize>| {
        let end = up_to(part.end);
        let start = begun.get(part.start).map_or(end, |&begun| begun as usize - 1);
        start.min(end)..if part.is_empty() { start.min(end) } else { end }
    };
    parts.map(characters).collect()
}

/// A part of a text after normalization, which knows where it came from.
struct Normalized<'t> {
    text: Cow<'t, str>,
    /// `None` where nothing was changed.
    alignment: Option<NormalizedString>,
}

impl<'t> Normalized<'t> {
    fn new(normalization: Normalization, text: &'t str, at_start: bool) -> Self {
        let normalized = normalization.apply(text, at_start);
        let alignment = matches!(normalized, Cow::Owned(_)).then(|| {
            let mut alignment = NormalizedString::from(text);
            match normalization {
                Normalization::None => {}
                Normalization::Nfc => {
                    alignment.nfc();
                }
                Normalization::Spaces(_) => align_spaces(&mut alignment, &normalized),
            }
            alignment
        });
        Self { text: normalized, alignment }
    }

    /// Where this part of the normalized text lies in the text as it came.
    fn original(&self, part: Range<usize>) -> Range<usize> {
        let Some(alignment) = &self.alignment else { return part };
        let found = alignment.convert_offsets(Referential::Normalized(part.clone()));
        found.unwrap_or(part)
    }
}

/// Makes the alignment's text the normalized one, which has a space for each mark and perhaps one more before it.
fn align_spaces(alignment: &mut NormalizedString, normalized: &str) {
    let characters = alignment.get().chars().count();
    let replaced: Vec<(char, isize)> = normalized
        .chars()
        .skip(normalized.chars().count() - characters)
        .map(|character| (character, 0))
        .collect();
    alignment.transform(replaced, 0);
    if alignment.get().len() < normalized.len() {
        alignment.prepend(" ");
    }
}

impl NativePipeline {
    /// Appends the ids of the text itself and where their tokens lie in it.
    fn locate(&self, text: &str, parse_special: bool, located: &mut Vec<Located>) -> Result<()> {
        let [exact, _] = self.matchers();
        let (mut done, mut outcome) = (0, Ok(()));
        let _ = exact.each(text, parse_special, |found| {
            outcome = self.locate_text(text, done..found.start.max(done), parse_special, located);
            located.push((found.token.id, found.start..found.end));
            done = found.end;
            if outcome.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        outcome?;
        self.locate_text(text, done..text.len(), parse_special, located)
    }

    /// [`Self::locate`] for a part of the text in which tokens are looked for after normalization only.
    fn locate_text(
        &self,
        text: &str,
        part: Range<usize>,
        parse_special: bool,
        located: &mut Vec<Located>,
    ) -> Result<()> {
        let start = part.start;
        let normalized =
            Normalized::new(self.normalization(), text.get(part).unwrap_or_default(), start == 0);
        let moved = |part: Range<usize>| {
            let original = normalized.original(part);
            start + original.start..start + original.end
        };
        let [_, matcher] = self.matchers();
        let (mut done, mut outcome) = (0, Ok(()));
        let _ = matcher.each(&normalized.text, parse_special, |found| {
            outcome = self.locate_plain(&normalized.text, done..found.start.max(done), &moved, located);
            located.push((found.token.id, moved(found.start..found.end)));
            done = found.end;
            if outcome.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        outcome?;
        self.locate_plain(&normalized.text, done..normalized.text.len(), &moved, located)
    }

    /// [`Self::locate`] for normalized text without added tokens.
    fn locate_plain(
        &self,
        text: &str,
        part: Range<usize>,
        moved: &dyn Fn(Range<usize>) -> Range<usize>,
        located: &mut Vec<Located>,
    ) -> Result<()> {
        let start = part.start;
        let plain = text.get(part).unwrap_or_default();
        if plain.is_empty() {
            return Ok(());
        }
        let (encoded, spaces) = self.with_prefix(plain);
        let first = plain.chars().next().map_or(0, char::len_utf8);
        located.extend(self.spans_of_plain(&encoded)?.into_iter().map(|(id, span)| {
            // A space that was put before the text is no part of it; alone, it stands where the first character does.
            let place = |at: usize| at.saturating_sub(spaces);
            let end = if place(span.end) == 0 { first } else { place(span.end) };
            (id, moved(start + place(span.start)..start + end))
        }));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_are_counted_and_taken_in_whole() {
        let text = "aé漢b";
        let parts = [0..1, 1..2, 2..3, 1..3, 3..4, 4..7, 5..5, 6..7, 0..7, 7..7, 0..0];
        let found = in_characters(text, parts.into_iter());
        assert_eq!(found, [0..1, 1..2, 1..2, 1..2, 2..3, 2..4, 2..2, 3..4, 0..4, 4..4, 0..0]);
        assert_eq!(in_characters("abc", std::iter::once(1..3)), vec![1..3]);
    }
}
