//! The pipeline of byte-level BPE: added tokens, normalization, the split, the merges, the frame.

use std::borrow::Cow;
use std::ops::{ControlFlow, Range};

use unicode_normalization_alignments::{IsNormalized, UnicodeNormalization, is_nfc_quick};

use crate::borders::Borders;
use crate::bpe::BytePairEncoder;
use crate::error::Result;
use crate::frame::Frame;
use crate::load::spaced;
use crate::spacing::Spacing;
use crate::special::{AddedToken, Matcher, Part};

/// What is done to a text before it is split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Normalization {
    None,
    /// Unicode's canonical composition, by the same tables (Unicode 9) as the reference.
    Nfc,
    /// U+2581 is a space, and a space may be put before the text.
    Spaces(PrefixSpace),
}

/// Where a space is put before a text that is not empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PrefixSpace {
    Never,
    /// Before every part between added tokens.
    Always,
    /// The same, unless one stands there.
    UnlessThere,
    /// Only at the beginning of the whole text, unless one stands there.
    AtStart,
}

impl PrefixSpace {
    /// Whether this part of a text gets one.
    fn is_put(self, text: &str, at_start: bool) -> bool {
        let there = || text.starts_with([' ', spaced::MARK]);
        !text.is_empty()
            && match self {
                Self::Never => false,
                Self::Always => true,
                Self::UnlessThere => !there(),
                Self::AtStart => at_start && !there(),
            }
    }
}

impl Normalization {
    /// The same for text that goes on after a cut.
    fn continued(self) -> Self {
        match self {
            Self::Spaces(_) => Self::Spaces(PrefixSpace::Never),
            other => other,
        }
    }

    /// The normalized text; `at_start` says whether it is the beginning of the whole text.
    pub(crate) fn apply(self, text: &str, at_start: bool) -> Cow<'_, str> {
        match self {
            Self::None => Cow::Borrowed(text),
            Self::Spaces(prefix) => {
                let text_without = spaced::without_marks(text);
                if prefix.is_put(text, at_start) {
                    Cow::Owned([" ", &text_without].concat())
                } else {
                    text_without
                }
            }
            // Below U+0300 nothing composes or decomposes; its first byte in UTF-8 is 0xCC.
            Self::Nfc if text.bytes().all(|byte| byte < 0xcc) => Cow::Borrowed(text),
            Self::Nfc if is_nfc_quick(text.chars()) == IsNormalized::Yes => Cow::Borrowed(text),
            Self::Nfc => Cow::Owned(text.nfc().map(|(character, _)| character).collect()),
        }
    }
}

/// How a text, or a part of one that was cut, is read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reading {
    pub(crate) parse_special: bool,
    /// Whether this is the beginning of the text: a part that goes on after a cut gets no space put before it.
    pub(crate) begins: bool,
}

impl Reading {
    pub(crate) fn whole(parse_special: bool) -> Self {
        Self { parse_special, begins: true }
    }
}

/// A part of a text as the encoder gets it.
pub(crate) enum Piece<'p> {
    /// Text to split and merge, after normalization.
    Text(&'p str),
    /// An added token.
    Token(u32),
}

pub(crate) struct NativePipeline {
    encoder: BytePairEncoder,
    /// Tokens looked for in the text as it came.
    exact: Matcher,
    /// Tokens looked for after normalization.
    normalized: Matcher,
    normalization: Normalization,
    prefix_space: bool,
    /// Bytes without a token, which are left out of a text once it is split.
    left_out: Option<Box<[bool; 256]>>,
    /// How texts are put together, where tokens are not just bytes one after the other.
    pub(crate) spacing: Option<Spacing>,
    pub(crate) frame: Frame,
    /// Where added tokens may lie.
    borders: Borders,
}

impl NativePipeline {
    pub(crate) fn new(encoder: BytePairEncoder, added: Vec<AddedToken>, frame: Frame) -> Result<Self> {
        let borders = Borders::new(added.iter());
        let (normalized, exact) = added.into_iter().partition(|token| token.normalized);
        Ok(Self {
            encoder,
            exact: Matcher::new(exact)?,
            normalized: Matcher::new(normalized)?,
            normalization: Normalization::None,
            prefix_space: false,
            left_out: None,
            spacing: None,
            frame,
            borders,
        })
    }

    pub(crate) fn with_normalization(mut self, normalization: Normalization) -> Self {
        self.normalization = normalization;
        self
    }

    pub(crate) fn with_prefix_space(mut self, prefix_space: bool) -> Self {
        self.prefix_space = prefix_space;
        self
    }

    pub(crate) fn leaving_out(mut self, bytes: Option<Box<[bool; 256]>>) -> Self {
        self.left_out = bytes;
        self
    }

    pub(crate) fn with_spacing(mut self, spacing: Spacing) -> Self {
        self.spacing = Some(spacing);
        self
    }

    /// Added tokens that are looked for in the text as it came, and those that are looked for after normalization.
    pub(crate) fn matchers(&self) -> [&Matcher; 2] {
        [&self.exact, &self.normalized]
    }

    pub(crate) fn normalization(&self) -> Normalization {
        self.normalization
    }

    /// Whether every byte of a text has a token, so that none is left out.
    pub(crate) fn keeps_all(&self) -> bool {
        self.left_out.is_none()
    }

    pub(crate) fn encoder(&self) -> &BytePairEncoder {
        &self.encoder
    }

    /// The bytes to leave out, if this text has any.
    fn left_out_of(&self, text: &str) -> Option<&[bool; 256]> {
        let left_out = self.left_out.as_deref()?;
        text.bytes().any(|byte| left_out[usize::from(byte)]).then_some(left_out)
    }

    /// How many times as many bytes as its tokens, all together, a text may have; `None` where that is unlimited.
    pub(crate) fn most_shrinking(&self) -> Option<usize> {
        match self.normalization {
            _ if self.left_out.is_some() => None,
            // Three characters of Hangul, nine bytes, become one of three; nothing shrinks more.
            Normalization::Nfc => Some(3),
            _ => Some(1),
        }
    }

    /// The ids of text that needs nothing but the split and the merges.
    fn encode_plain_into(&self, text: &str, ids: &mut Vec<u32>) -> Result<()> {
        match self.left_out_of(text) {
            None => self.encoder.encode_into(text, ids),
            Some(left_out) => self.encoder.encode_without(text, left_out, |id, _| ids.push(id)),
        }
    }

    /// The number of ids of such text, as [`Self::count`] has it.
    fn count_plain(&self, text: &str, limit: usize) -> Result<usize> {
        let Some(left_out) = self.left_out_of(text) else { return self.encoder.count(text, limit) };
        let mut count = 0;
        self.encoder.encode_without(text, left_out, |_, _| count += 1)?;
        Ok(count)
    }

    /// The ids of such text, and the bytes of it that each stands for.
    pub(crate) fn spans_of_plain(&self, text: &str) -> Result<Vec<(u32, Range<usize>)>> {
        let mut found = Vec::new();
        if let Some(left_out) = self.left_out_of(text) {
            self.encoder.encode_without(text, left_out, |id, part| found.push((id, part)))?;
        } else {
            let mut spans = Vec::new();
            self.encoder.encode_with_spans(text, &mut spans)?;
            found.extend(spans.iter().map(|span| (span.id, span.start as usize..span.end as usize)));
        }
        Ok(found)
    }

    /// The text as the encoder gets it, and how many spaces were put before it.
    pub(crate) fn with_prefix<'t>(&self, text: &'t str) -> (Cow<'t, str>, usize) {
        if self.prefix_space && !text.starts_with(' ') {
            (Cow::Owned(format!(" {text}")), 1)
        } else {
            (Cow::Borrowed(text), 0)
        }
    }

    /// Whether the encoder gets the text as it came, whatever it holds.
    pub(crate) fn is_direct(&self, parse_special: bool) -> bool {
        self.normalization == Normalization::None
            && !self.prefix_space
            && self.exact.is_idle(parse_special)
            && self.normalized.is_idle(parse_special)
    }

    /// Calls `visit` with the pieces of the text in order, until it answers `false` or fails.
    pub(crate) fn for_each_piece(
        &self,
        text: &str,
        reading: Reading,
        mut visit: impl FnMut(Piece<'_>) -> Result<bool>,
    ) -> Result<()> {
        let mut outcome = Ok(());
        let mut step = |piece: Piece<'_>| match visit(piece) {
            Ok(true) => ControlFlow::Continue(()),
            Ok(false) => ControlFlow::Break(()),
            Err(error) => {
                outcome = Err(error);
                ControlFlow::Break(())
            }
        };
        let start = text.as_ptr();
        let Reading { parse_special, begins } = reading;
        let _ = self.exact.split(text, parse_special, |part| match part {
            Part::Token(id) => step(Piece::Token(id)),
            Part::Text(text) => {
                let at_start = text.as_ptr() == start;
                let goes_on = at_start && !begins;
                let normalization = if goes_on { self.normalization.continued() } else { self.normalization };
                let text = normalization.apply(text, at_start);
                let start = text.as_ptr();
                self.normalized.split(&text, parse_special, |part| match part {
                    Part::Token(id) => step(Piece::Token(id)),
                    Part::Text("") => ControlFlow::Continue(()),
                    Part::Text(text) if goes_on && text.as_ptr() == start => step(Piece::Text(text)),
                    Part::Text(text) => step(Piece::Text(&self.with_prefix(text).0)),
                })
            }
        });
        outcome
    }

    /// Appends the ids of the text itself, without the frame.
    ///
    /// # Errors
    /// [`crate::TokenizeError::PatternGaveUp`], for patterns without a scanner of their own.
    pub(crate) fn encode_into(&self, text: &str, parse_special: bool, ids: &mut Vec<u32>) -> Result<()> {
        self.encode_part_into(text, Reading::whole(parse_special), ids)
    }

    /// As [`Self::encode_into`], for what [`Self::is_cut`] has cut apart, too.
    ///
    /// # Errors
    /// As for [`Self::encode_into`].
    pub(crate) fn encode_part_into(&self, text: &str, reading: Reading, ids: &mut Vec<u32>) -> Result<()> {
        if self.is_direct(reading.parse_special) {
            return self.encode_plain_into(text, ids);
        }
        self.for_each_piece(text, reading, |piece| {
            match piece {
                Piece::Text(text) => self.encode_plain_into(text, ids)?,
                Piece::Token(id) => ids.push(id),
            }
            Ok(true)
        })
    }

    /// The number of ids of the text itself. Once more than `limit` are certain, some number above it.
    ///
    /// # Errors
    /// As for [`Self::encode_into`].
    pub(crate) fn count(&self, text: &str, parse_special: bool, limit: usize) -> Result<usize> {
        self.count_part(text, Reading::whole(parse_special), limit)
    }

    /// As [`Self::count`], for what [`Self::is_cut`] has cut apart, too.
    ///
    /// # Errors
    /// As for [`Self::encode_into`].
    pub(crate) fn count_part(&self, text: &str, reading: Reading, limit: usize) -> Result<usize> {
        if self.is_direct(reading.parse_special) {
            return self.count_plain(text, limit);
        }
        let mut count = 0;
        self.for_each_piece(text, reading, |piece| {
            count += match piece {
                Piece::Text(text) => self.count_plain(text, limit - count)?,
                Piece::Token(_) => 1,
            };
            Ok(count <= limit)
        })?;
        Ok(count)
    }

    /// Whether the ids of the text are those of its part before `at`, then those of its part from `at` on (read as one
    /// that does not begin the text), as seen from the next characters on both sides. False where it is not known.
    ///
    /// The pattern allows the cut; no added token lies across it or looks across it; normalization composes nothing
    /// across it and leaves its neighbours as they are (they are ASCII, and what follows is); and where a space is put
    /// before what comes after an added token, none ends there.
    pub(crate) fn is_cut(&self, text: &str, at: usize, parse_special: bool) -> bool {
        let bytes = text.as_bytes();
        let (Some(&before), Some(&after)) = (at.checked_sub(1).and_then(|at| bytes.get(at)), bytes.get(at))
        else {
            return false;
        };
        let plain = || before.is_ascii() && after.is_ascii() && bytes.get(at + 1).is_none_or(u8::is_ascii);
        let idle = self.exact.is_idle(parse_special) && self.normalized.is_idle(parse_special);
        let after_token = self.prefix_space
            || matches!(
                self.normalization,
                Normalization::Spaces(PrefixSpace::Always | PrefixSpace::UnlessThere)
            );
        text.is_char_boundary(at)
            && (idle || !after_token || !self.borders.may_end(before))
            && (self.normalization == Normalization::None || plain())
            && (idle || self.borders.are_clear(before, after))
            && self.encoder.pretokenizer().is_cut(text, at)
    }

    /// Whether the ids of a text depend on what stands before it: a space is put there if it is the beginning.
    pub(crate) fn puts_prefix(&self) -> bool {
        self.prefix_space
            || matches!(self.normalization, Normalization::Spaces(prefix) if prefix != PrefixSpace::Never)
    }

    /// Where in the text its first `limit` ids end, in bytes; `None` where ids do not end at places of the text as
    /// it came (it was normalized, or a space was put before it, or an added token took space along).
    pub(crate) fn end_of(&self, text: &str, limit: usize) -> Option<usize> {
        let idle = self.exact.is_idle(false) && self.normalized.is_idle(false);
        if self.prefix_space || !idle {
            return None;
        }
        let prefixed = match self.normalization {
            Normalization::None => false,
            Normalization::Spaces(prefix) if !text.contains(spaced::MARK) => prefix.is_put(text, true),
            _ => return None,
        };
        let encoded = if prefixed { self.normalization.apply(text, true) } else { Cow::Borrowed(text) };
        let spans = self.spans_of_plain(&encoded).ok()?;
        match limit.checked_sub(1) {
            None => Some(0),
            Some(last) => Some(
                spans
                    .get(last)
                    .map_or(text.len(), |(_, span)| span.end.saturating_sub(usize::from(prefixed))),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn composition_leaves_composed_text_alone() {
        for text in ["", "plain", "h\u{e9}llo", "漢字 かな", "\u{1e0b}\u{323}"] {
            let composed: String = text.nfc().map(|(character, _)| character).collect();
            let applied = Normalization::Nfc.apply(text, true);
            assert_eq!(applied, composed, "{text:?}");
            assert_eq!(matches!(applied, Cow::Borrowed(_)), text == composed, "{text:?}");
        }
        assert_eq!(Normalization::Nfc.apply("e\u{301}", true), "\u{e9}");
        assert_eq!(Normalization::None.apply("e\u{301}", true), "e\u{301}");
    }
}
