//! The pipeline of byte-level BPE: added tokens, normalization, the split, the merges, the frame.

use std::borrow::Cow;
use std::ops::ControlFlow;

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

    pub(crate) fn encoder(&self) -> &BytePairEncoder {
        &self.encoder
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
    fn is_direct(&self, parse_special: bool) -> bool {
        self.normalization == Normalization::None
            && !self.prefix_space
            && self.exact.is_idle(parse_special)
            && self.normalized.is_idle(parse_special)
    }

    /// Calls `visit` with the pieces of the text in order, until it answers `false` or fails.
    fn for_each_piece(
        &self,
        text: &str,
        parse_special: bool,
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
        let _ = self.exact.split(text, parse_special, |part| match part {
            Part::Token(id) => step(Piece::Token(id)),
            Part::Text(text) => {
                let at_start = text.as_ptr() == start;
                let text = self.normalization.apply(text, at_start);
                self.normalized.split(&text, parse_special, |part| match part {
                    Part::Token(id) => step(Piece::Token(id)),
                    Part::Text("") => ControlFlow::Continue(()),
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
        if self.is_direct(parse_special) {
            return self.encoder.encode_into(text, ids);
        }
        self.for_each_piece(text, parse_special, |piece| {
            match piece {
                Piece::Text(text) => self.encoder.encode_into(text, ids)?,
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
        if self.is_direct(parse_special) {
            return self.encoder.count(text, limit);
        }
        let mut count = 0;
        self.for_each_piece(text, parse_special, |piece| {
            count += match piece {
                Piece::Text(text) => self.encoder.count(text, limit - count)?,
                Piece::Token(_) => 1,
            };
            Ok(count <= limit)
        })?;
        Ok(count)
    }

    /// Whether the ids of the text are those of its part before `at`, then those of its part from `at` on, as seen
    /// from the next characters on both sides. False where it is not known.
    ///
    /// The pattern allows the cut; no added token lies across it or looks across it; normalization composes nothing
    /// across it and leaves its neighbours as they are (they are ASCII, and what follows is); and no space would be
    /// put before the right part.
    pub(crate) fn is_cut(&self, text: &str, at: usize, parse_special: bool) -> bool {
        let bytes = text.as_bytes();
        let (Some(&before), Some(&after)) = (at.checked_sub(1).and_then(|at| bytes.get(at)), bytes.get(at))
        else {
            return false;
        };
        let plain = || before.is_ascii() && after.is_ascii() && bytes.get(at + 1).is_none_or(u8::is_ascii);
        let idle = self.exact.is_idle(parse_special) && self.normalized.is_idle(parse_special);
        let alone = match self.normalization {
            Normalization::Spaces(PrefixSpace::Always) => false,
            Normalization::Spaces(PrefixSpace::UnlessThere | PrefixSpace::AtStart) => after == b' ',
            _ => !self.prefix_space || after == b' ',
        };
        text.is_char_boundary(at)
            && alone
            && (self.normalization == Normalization::None || plain())
            && (idle || self.borders.are_clear(before, after))
            && self.encoder.pretokenizer().is_cut(text, at)
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
        let mut spans = Vec::new();
        let encoded = if prefixed { self.normalization.apply(text, true) } else { Cow::Borrowed(text) };
        self.encoder.encode_with_spans(&encoded, &mut spans).ok()?;
        match limit.checked_sub(1) {
            None => Some(0),
            Some(last) => Some(
                spans
                    .get(last)
                    .map_or(text.len(), |span| (span.end as usize).saturating_sub(usize::from(prefixed))),
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
