//! Ids to text where tokens are not just bytes one after the other: SentencePiece's vocabularies.
//!
//! Tokens that stand for a byte are put together to characters, run by run, and a space at the beginning, which
//! encoding has put there, is taken away.

use crate::decode::InvalidUtf8;
use crate::error::{Result, TokenizeError};
use crate::vocabulary::Vocabulary;

/// What becomes of a run of bytes that is not UTF-8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Runs {
    /// U+FFFD for every byte of the run, as in the `tokenizers` library.
    Whole,
    /// U+FFFD for every byte that belongs to no character, as in SentencePiece.
    ByCharacter,
}

/// Which space at the beginning of a text is taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Strip {
    None,
    /// One, whatever it came from.
    One,
    /// One that a token begins with.
    OneOfToken,
    /// One that a token begins with, and again until there is text.
    EachOfToken,
}

/// How the tokens of a vocabulary are put together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Spacing {
    pub(crate) runs: Runs,
    pub(crate) strip: Strip,
    /// The token for what has no token, and what it is shown as.
    pub(crate) unknown: Option<(u32, String)>,
}

/// A text that is being put together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Joining {
    /// Whether nothing more is taken away from the beginning.
    started: bool,
    /// Bytes that are no text yet.
    run: Vec<u8>,
    /// How many of these were shown before.
    shown: usize,
}

impl Spacing {
    /// The text of these ids.
    pub(crate) fn decode(
        &self,
        vocabulary: &Vocabulary,
        ids: &[u32],
        skip_special_tokens: bool,
        invalid: InvalidUtf8,
    ) -> Result<String> {
        let (mut joining, mut text) = (Joining::default(), String::with_capacity(ids.len() * 4));
        for &id in ids {
            if skip_special_tokens && vocabulary.is_special(id) {
                self.skip(&mut joining, invalid, &mut text)?;
            } else {
                self.step(vocabulary, &mut joining, id, invalid, &mut text)?;
            }
        }
        self.finish(&mut joining, invalid, &mut text)?;
        Ok(text)
    }

    /// A text that goes on after these ids. O(1) where they begin with text and end with it.
    pub(crate) fn joining_after(
        &self,
        vocabulary: &Vocabulary,
        ids: &[u32],
        skip_special_tokens: bool,
    ) -> Result<Joining> {
        let is_skipped = |id: u32| skip_special_tokens && vocabulary.is_special(id);
        let mut joining = Joining::default();
        for id in ids.iter().copied().filter(|&id| !is_skipped(id)) {
            let token = self.token(vocabulary, id)?;
            self.shown(&mut joining, id, token, vocabulary.is_byte(id));
            if joining.started {
                break;
            }
        }
        let mut run = Vec::new();
        for &id in ids.iter().rev() {
            let token = self.token(vocabulary, id)?;
            match (vocabulary.is_byte(id), is_skipped(id)) {
                (_, true) if self.runs == Runs::Whole => {}
                (true, false) => run.extend_from_slice(token),
                _ => break,
            }
        }
        run.reverse();
        joining.shown = std::str::from_utf8(&run).map_or_else(|error| error.valid_up_to(), |_| run.len());
        if self.runs == Runs::ByCharacter {
            run.drain(..certain(&run));
            joining.shown = 0;
        }
        joining.run = run;
        Ok(joining)
    }

    /// The bytes of these ids.
    pub(crate) fn bytes(&self, vocabulary: &Vocabulary, ids: impl Iterator<Item = u32>) -> Result<Vec<u8>> {
        let (mut joining, mut bytes) = (Joining::default(), Vec::new());
        for id in ids {
            let token = self.token(vocabulary, id)?;
            let is_byte = vocabulary.is_byte(id);
            bytes.extend_from_slice(self.shown(&mut joining, id, token, is_byte));
        }
        Ok(bytes)
    }

    fn token<'v>(&'v self, vocabulary: &'v Vocabulary, id: u32) -> Result<&'v [u8]> {
        match &self.unknown {
            Some((unknown, shown)) if *unknown == id => Ok(shown.as_bytes()),
            _ => vocabulary.bytes(id),
        }
    }

    /// What is shown of the token with this id.
    fn shown<'t>(&self, joining: &mut Joining, id: u32, token: &'t [u8], is_byte: bool) -> &'t [u8] {
        if self.unknown.as_ref().is_some_and(|(unknown, _)| *unknown == id) {
            joining.started |= !token.is_empty();
            return token;
        }
        self.stripped(joining, token, is_byte)
    }

    /// What is shown of the next token that is known.
    fn stripped<'t>(&self, joining: &mut Joining, token: &'t [u8], is_byte: bool) -> &'t [u8] {
        if joining.started || token.is_empty() {
            return token;
        }
        let strips = match self.strip {
            Strip::None => false,
            Strip::One => true,
            Strip::OneOfToken | Strip::EachOfToken => !is_byte,
        };
        let shown = token.strip_prefix(b" ").filter(|_| strips).unwrap_or(token);
        joining.started = self.strip != Strip::EachOfToken || !shown.is_empty();
        shown
    }

    /// Appends the text that this id makes certain; on an error all is as it was.
    pub(crate) fn step(
        &self,
        vocabulary: &Vocabulary,
        joining: &mut Joining,
        id: u32,
        invalid: InvalidUtf8,
        text: &mut String,
    ) -> Result<()> {
        let token = self.token(vocabulary, id)?;
        if vocabulary.is_byte(id) {
            if self.runs == Runs::Whole {
                joining.run.extend_from_slice(token);
                return Ok(());
            }
            let run = [joining.run.as_slice(), token].concat();
            let (certain, open) = run.split_at(certain(&run));
            if !certain.is_empty() {
                self.show_run(joining, certain, 0, invalid, text)?;
            }
            joining.run = open.to_vec();
            return Ok(());
        }
        self.finish(joining, invalid, text)?;
        let shown = self.shown(joining, id, token, false);
        match std::str::from_utf8(shown) {
            Ok(shown) => text.push_str(shown),
            Err(_) => text.push_str(&String::from_utf8_lossy(shown)),
        }
        Ok(())
    }

    /// Goes past a token that is not shown. The `tokenizers` library leaves it out before it puts bytes together,
    /// so that a run goes on after it; in SentencePiece it is a piece like any other, and ends the run.
    pub(crate) fn skip(&self, joining: &mut Joining, invalid: InvalidUtf8, text: &mut String) -> Result<()> {
        match self.runs {
            Runs::Whole => Ok(()),
            Runs::ByCharacter => self.finish(joining, invalid, text),
        }
    }

    /// Ends a run of bytes; on an error all is as it was.
    pub(crate) fn finish(
        &self,
        joining: &mut Joining,
        invalid: InvalidUtf8,
        text: &mut String,
    ) -> Result<()> {
        if joining.run.is_empty() {
            return Ok(());
        }
        let (run, shown) = (std::mem::take(&mut joining.run), std::mem::take(&mut joining.shown));
        self.show_run(joining, &run, shown, invalid, text).inspect_err(|_| {
            joining.run = run;
            joining.shown = shown;
        })
    }

    /// Appends the text of a run of bytes of which the first `shown` are not to be shown again.
    fn show_run(
        &self,
        joining: &mut Joining,
        run: &[u8],
        shown: usize,
        invalid: InvalidUtf8,
        text: &mut String,
    ) -> Result<()> {
        let error = std::str::from_utf8(run).err();
        if let Some(error) = error.filter(|_| invalid == InvalidUtf8::Strict) {
            return Err(TokenizeError::InvalidUtf8 { valid_up_to: error.valid_up_to() });
        }
        let new = run.get(shown..).unwrap_or_default();
        if error.is_some() && invalid == InvalidUtf8::Replace && self.runs == Runs::Whole {
            joining.started |= !new.is_empty();
            text.extend(new.iter().map(|_| char::REPLACEMENT_CHARACTER));
            return Ok(());
        }
        for chunk in self.stripped(joining, new, true).utf8_chunks() {
            text.push_str(chunk.valid());
            if invalid == InvalidUtf8::Replace {
                text.extend(chunk.invalid().iter().map(|_| char::REPLACEMENT_CHARACTER));
            }
        }
        Ok(())
    }
}

/// How many of these bytes no more bytes can make anything else of.
fn certain(run: &[u8]) -> usize {
    let mut at = 0;
    loop {
        let rest = run.get(at..).unwrap_or_default();
        match std::str::from_utf8(rest) {
            Ok(_) => return run.len(),
            Err(error) => match error.error_len() {
                Some(length) => at += error.valid_up_to() + length,
                None => return at + error.valid_up_to(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vocabulary::{Entry, Kind};

    fn vocabulary() -> Vocabulary {
        let words = [" a", "b", " ", "", "<unk>", "漢"];
        let words = words.iter().zip(256..).map(|(word, id)| Entry {
            id,
            bytes: word.as_bytes().to_vec(),
            kind: Kind::Spaced,
            special: id == 259,
        });
        let bytes = (0..=u8::MAX).map(|byte| Entry {
            id: u32::from(byte),
            bytes: vec![byte],
            kind: Kind::Byte,
            special: false,
        });
        Vocabulary::new(words.chain(bytes).collect()).unwrap()
    }

    fn spacing(runs: Runs, strip: Strip) -> Spacing {
        Spacing { runs, strip, unknown: Some((260, " ? ".to_owned())) }
    }

    const LISTS: [&[u32]; 12] = [
        &[],
        &[256, 256],
        &[258, 258, 256],
        &[32, 256],
        &[259, 258, 257],
        &[0xe6, 0xbc, 0xa2, 257],
        &[0xe6, 0xbc, 257],
        &[0x41, 0xe6, 0xbc, 0x41],
        &[0xff, 258, 0xf0, 0x9f],
        &[260, 260],
        &[10, 256],
        &[259, 32, 32],
    ];

    #[test]
    fn the_beginning_and_bytes_are_shown_as_each_library_does() {
        let vocabulary = vocabulary();
        let text = |runs, strip, ids: &[u32]| {
            spacing(runs, strip).decode(&vocabulary, ids, false, InvalidUtf8::Replace).unwrap()
        };
        let hugging_face = ["", "a a", "  a".get(1..).unwrap_or(""), " a", "b", "漢b", "\u{fffd}\u{fffd}b"];
        for (ids, expected) in LISTS.iter().zip(hugging_face) {
            assert_eq!(
                text(Runs::Whole, Strip::One, ids),
                if ids == &[258, 258, 256] { "  a" } else { expected }
            );
        }
        assert_eq!(text(Runs::Whole, Strip::None, LISTS[7]), "\u{fffd}".repeat(4));
        assert_eq!(text(Runs::ByCharacter, Strip::None, LISTS[7]), "A\u{fffd}\u{fffd}A");
        assert_eq!(text(Runs::ByCharacter, Strip::OneOfToken, LISTS[2]), "  a");
        assert_eq!(text(Runs::ByCharacter, Strip::EachOfToken, LISTS[2]), "a");
        assert_eq!(text(Runs::ByCharacter, Strip::EachOfToken, LISTS[3]), "  a");
        assert_eq!(text(Runs::ByCharacter, Strip::OneOfToken, LISTS[9]), " ?  ? ");
    }

    #[test]
    fn a_skipped_token_ends_a_run_in_sentencepiece_only() {
        let (vocabulary, ids) = (vocabulary(), [0xe6, 0xbc, 259, 0xa2, 257]);
        for (runs, expected) in [(Runs::Whole, "漢b"), (Runs::ByCharacter, "\u{fffd}\u{fffd}\u{fffd}b")] {
            let spacing = spacing(runs, Strip::None);
            let whole = spacing.decode(&vocabulary, &ids, true, InvalidUtf8::Replace).unwrap();
            assert_eq!(whole, expected);
            for cut in 0..ids.len() {
                let (before, after) = ids.split_at(cut);
                let mut joining = spacing.joining_after(&vocabulary, before, true).unwrap();
                let mut text = String::new();
                for &id in after {
                    if id == 259 {
                        spacing.skip(&mut joining, InvalidUtf8::Replace, &mut text).unwrap();
                    } else {
                        spacing.step(&vocabulary, &mut joining, id, InvalidUtf8::Replace, &mut text).unwrap();
                    }
                }
                assert!(expected.ends_with(&text) && text.ends_with('b'), "{runs:?} after {cut}: {text:?}");
            }
        }
    }

    #[test]
    fn steps_show_what_the_whole_shows_and_errors_change_nothing() {
        let vocabulary = vocabulary();
        for runs in [Runs::Whole, Runs::ByCharacter] {
            for strip in [Strip::None, Strip::One, Strip::OneOfToken, Strip::EachOfToken] {
                let spacing = spacing(runs, strip);
                for ids in LISTS {
                    let whole = spacing.bytes(&vocabulary, ids.iter().copied()).unwrap();
                    let strict = spacing.decode(&vocabulary, ids, false, InvalidUtf8::Strict);
                    assert_eq!(strict.ok(), String::from_utf8(whole).ok(), "{ids:?}");
                }
                let (mut joining, mut text) = (Joining::default(), String::new());
                for &id in LISTS[8] {
                    let before = text.clone();
                    if spacing.step(&vocabulary, &mut joining, id, InvalidUtf8::Strict, &mut text).is_err() {
                        assert_eq!(text, before);
                    }
                }
                assert!(spacing.finish(&mut joining, InvalidUtf8::Strict, &mut text).is_err());
            }
        }
    }
}
