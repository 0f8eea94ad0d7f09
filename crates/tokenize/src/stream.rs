//! Ids to text one at a time, as a model makes them.

use std::sync::Arc;

use crate::decode::InvalidUtf8;
use crate::error::{Result, TokenizeError};
use crate::load::spaced;
use crate::spacing::Joining;
use crate::tokenizer::{Pipeline, Tokenizer};

/// Ids before the stream that can change its first text: enough to hold the beginning of a character.
const CONTEXT: usize = 8;
/// Ids that may be decoded for each id of a stream, on average: what makes it linear. Text needs two or three; only
/// long runs of ids that give no text come here, and then wait a while before they are looked at again.
const ALLOWANCE: usize = 16;

/// Turns ids into text as they come. What the steps and [`StreamDecoder::finish`] return, put together, is what
/// [`Tokenizer::decode`] returns for all ids at once.
///
/// Text comes out as soon as no later id can change it: a character that a token ends inside is held back until it
/// is whole. A byte-level step is O(bytes of the token). Where the `tokenizers` crate decodes, a step decodes a
/// window of the last few ids; the work of all steps together is linear in their number, whatever comes. Decoders whose
/// last step may change text far back (no published model has one) show everything at the end.
pub struct StreamDecoder {
    tokenizer: Arc<Tokenizer>,
    skip_special_tokens: bool,
    invalid: InvalidUtf8,
    pending: Pending,
    window: Window,
    joining: Joining,
}

/// The beginning of a character: at most three bytes.
#[derive(Clone, Copy, Default)]
struct Pending {
    bytes: [u8; 3],
    len: u8,
}

impl Pending {
    fn bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or_default()
    }
}

/// Ids of a pipeline that decodes to text only: those already shown, as context, then those still to be shown.
#[derive(Clone, Default)]
struct Window {
    ids: Vec<u32>,
    shown: usize,
    steps: usize,
    /// Ids that were decoded so far.
    decoded: usize,
    /// Whether the last token is a byte whose run may go on: all of it changes where it turns out to be no character.
    in_run: bool,
}

impl StreamDecoder {
    /// A stream that begins now; O(1).
    pub fn new(tokenizer: Arc<Tokenizer>, skip_special_tokens: bool, invalid: InvalidUtf8) -> Self {
        let (pending, window, joining) = (Pending::default(), Window::default(), Joining::default());
        Self { tokenizer, skip_special_tokens, invalid, pending, window, joining }
    }

    /// This stream as it goes on after these ids, whose own text is not returned. O(1), since only the last few
    /// matter, but for the decoders that show everything at the end.
    ///
    /// # Errors
    /// As for [`StreamDecoder::step`].
    pub fn after(mut self, ids: &[u32]) -> Result<Self> {
        if let Some(spacing) = self.tokenizer.spacing() {
            self.joining =
                spacing.joining_after(&self.tokenizer.vocabulary, ids, self.skip_special_tokens)?;
            return Ok(self);
        }
        let mut context = ids.get(ids.len().saturating_sub(CONTEXT)..).unwrap_or(ids);
        if let Pipeline::Fallback(pipeline) = &self.tokenizer.pipeline {
            if !pipeline.is_local() {
                context = ids;
            }
            for &id in context {
                self.tokenizer.vocabulary.bytes(id)?;
            }
            self.window = Window { ids: context.to_vec(), shown: context.len(), ..Window::default() };
            for &id in context {
                self.window.in_run = self.is_in_run(id);
            }
            return Ok(self);
        }
        let invalid = std::mem::replace(&mut self.invalid, InvalidUtf8::Ignore);
        let mut unused = String::new();
        context.iter().try_for_each(|&id| self.step(id, &mut unused))?;
        self.invalid = invalid;
        Ok(self)
    }

    /// Appends the text that this id makes certain, often that of its own token, sometimes none.
    ///
    /// # Errors
    /// [`TokenizeError::IdOutOfRange`], [`TokenizeError::UnassignedId`], [`TokenizeError::InvalidUtf8`]; the stream
    /// and `text` are then as before.
    pub fn step(&mut self, id: u32, text: &mut String) -> Result<()> {
        let token = self.tokenizer.vocabulary.bytes(id)?;
        if let (Pipeline::Fallback(_), None) = (&self.tokenizer.pipeline, self.tokenizer.spacing()) {
            self.step_window(id, text);
            return Ok(());
        }
        if self.skip_special_tokens && self.tokenizer.vocabulary.is_special(id) {
            return match self.tokenizer.spacing() {
                Some(spacing) => spacing.skip(&mut self.joining, self.invalid, text),
                None => Ok(()),
            };
        }
        if let Some(spacing) = self.tokenizer.spacing() {
            return spacing.step(&self.tokenizer.vocabulary, &mut self.joining, id, self.invalid, text);
        }
        if self.pending.len == 0
            && let Ok(whole) = std::str::from_utf8(token)
        {
            text.push_str(whole);
            return Ok(());
        }
        let mut bytes = self.pending.bytes().to_vec();
        bytes.extend_from_slice(token);
        self.pending = push_valid(&bytes, self.invalid, text)?;
        Ok(())
    }

    /// Appends what is held back, a beginning of a character, as decoding all ids would show it. The stream begins
    /// anew.
    ///
    /// # Errors
    /// [`TokenizeError::InvalidUtf8`], where the caller asked for strictness.
    pub fn finish(&mut self, text: &mut String) -> Result<()> {
        if let Some(spacing) = self.tokenizer.spacing() {
            let mut joining = std::mem::take(&mut self.joining);
            return spacing.finish(&mut joining, self.invalid, text);
        }
        let (pending, window) = (std::mem::take(&mut self.pending), std::mem::take(&mut self.window));
        if pending.len > 0 {
            match self.invalid {
                InvalidUtf8::Replace => text.push(char::REPLACEMENT_CHARACTER),
                InvalidUtf8::Ignore => {}
                InvalidUtf8::Strict => return Err(TokenizeError::InvalidUtf8 { valid_up_to: 0 }),
            }
        }
        if window.shown < window.ids.len() {
            let (shown, all) = self.texts(&window)?;
            text.push_str(all.strip_prefix(shown.as_str()).unwrap_or_default());
        }
        Ok(())
    }

    fn step_window(&mut self, id: u32, text: &mut String) {
        self.window.in_run = self.is_in_run(id);
        self.window.ids.push(id);
        self.window.steps += 1;
        let waits = matches!(&self.tokenizer.pipeline, Pipeline::Fallback(pipeline) if !pipeline.is_local());
        if !self.window.in_run && !waits {
            self.show(text);
        }
    }

    /// Whether a run of bytes is open after this id, which comes next.
    fn is_in_run(&self, id: u32) -> bool {
        let Pipeline::Fallback(pipeline) = &self.tokenizer.pipeline else { return false };
        let vocabulary = &self.tokenizer.vocabulary;
        if self.skip_special_tokens && vocabulary.is_special(id) {
            return self.window.in_run;
        }
        pipeline.joins_bytes()
            && vocabulary
                .form(id)
                .is_some_and(|form| spaced::byte(&form).is_some() || spaced::is_like_a_byte(&form))
    }

    /// Shows the new part of the window's text, unless its end may still change.
    fn show(&mut self, text: &mut String) {
        let cost = self.window.ids.len() + self.window.shown;
        if self.window.decoded + cost > ALLOWANCE * (self.window.steps + CONTEXT) {
            return;
        }
        self.window.decoded += cost;
        // A decoder that fails here may know what to do once there are more ids.
        let Ok((shown, all)) = self.texts(&self.window) else { return };
        let Some(new) = all.strip_prefix(shown.as_str()) else { return };
        if new.is_empty() || new.ends_with(char::REPLACEMENT_CHARACTER) {
            return;
        }
        text.push_str(new);
        // The ids just shown are the context of the next ones; what came before them is no longer needed.
        self.window.ids.drain(..self.window.shown);
        self.window.shown = self.window.ids.len();
    }

    fn texts(&self, window: &Window) -> Result<(String, String)> {
        let context = match window.ids.get(..window.shown).unwrap_or_default() {
            [] => String::new(),
            context => self.decode(context)?,
        };
        Ok((context, self.decode(&window.ids)?))
    }

    fn decode(&self, ids: &[u32]) -> Result<String> {
        self.tokenizer.decode(ids, self.skip_special_tokens, InvalidUtf8::Replace)
    }
}

/// Appends the valid text of `bytes` and what stands for the invalid; returns the beginning of a character at the
/// end, which more bytes may complete. On an error `text` is as it was.
fn push_valid(bytes: &[u8], invalid: InvalidUtf8, text: &mut String) -> Result<Pending> {
    let (mut rest, before) = (bytes, text.len());
    loop {
        let error = match std::str::from_utf8(rest) {
            Ok(valid) => {
                text.push_str(valid);
                return Ok(Pending::default());
            }
            Err(error) => error,
        };
        let (valid, after) = rest.split_at(error.valid_up_to());
        text.push_str(std::str::from_utf8(valid).unwrap_or_default());
        let Some(length) = error.error_len() else {
            let mut pending = Pending { bytes: [0; 3], len: after.len() as u8 };
            for (slot, &byte) in pending.bytes.iter_mut().zip(after) {
                *slot = byte;
            }
            return Ok(pending);
        };
        match invalid {
            InvalidUtf8::Replace => text.push(char::REPLACEMENT_CHARACTER),
            InvalidUtf8::Ignore => {}
            InvalidUtf8::Strict => {
                text.truncate(before);
                return Err(TokenizeError::InvalidUtf8 { valid_up_to: bytes.len() - after.len() });
            }
        }
        rest = after.get(length..).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn in_parts(bytes: &[u8], sizes: &[usize], invalid: InvalidUtf8) -> Result<String> {
        let (mut text, mut held, mut rest) = (String::new(), Pending::default(), bytes);
        let mut sizes = sizes.iter().cycle();
        while !rest.is_empty() {
            let (part, after) = rest.split_at(rest.len().min(*sizes.next().unwrap()));
            rest = after;
            held = push_valid(&[held.bytes(), part].concat(), invalid, &mut text)?;
        }
        if held.len > 0 && invalid == InvalidUtf8::Replace {
            text.push(char::REPLACEMENT_CHARACTER);
        }
        Ok(text)
    }

    proptest! {
        #[test]
        fn parts_of_any_bytes_show_what_the_whole_shows(
            bytes in prop::collection::vec(
                prop_oneof![any::<u8>(), prop::sample::select(&b"\xf0\x9f\x98\x80\xe6\xbc\xa2a\xed\xa0\xc3"[..])], 0..40,
            ),
            sizes in prop::collection::vec(1_usize..5, 1..6),
        ) {
            let whole = String::from_utf8_lossy(&bytes).into_owned();
            prop_assert_eq!(in_parts(&bytes, &sizes, InvalidUtf8::Replace).unwrap(), whole);
            let valid: String = bytes.utf8_chunks().map(|chunk| chunk.valid()).collect();
            prop_assert_eq!(in_parts(&bytes, &sizes, InvalidUtf8::Ignore).unwrap(), valid);
        }
    }

    #[test]
    fn strictness_fails_where_no_byte_can_help() {
        assert!(in_parts("漢字".as_bytes(), &[1, 2], InvalidUtf8::Strict).is_ok());
        assert!(matches!(
            in_parts(b"ab\xe6\xbc!", &[4, 1], InvalidUtf8::Strict),
            Err(TokenizeError::InvalidUtf8 { valid_up_to: 0 })
        ));
    }
}
