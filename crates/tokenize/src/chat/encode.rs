//! Conversations to ids and to counts.

use super::{ChatTemplate, Data, Now};
use crate::encode::{TokenBatch, offsets};
use crate::error::Result;
use crate::tasks::in_tasks;
use crate::tokenizer::{EncodeOptions, Tokenizer};

/// What rendering and encoding a conversation costs, in bytes of plain text: a share of a task of a batch.
const COST: usize = 8 * 1024;

/// One conversation: a template's variables, and whether special tokens are found in the conversation's own text.
#[derive(Clone, Debug)]
pub struct Conversation {
    /// `messages`, `tools`, `add_generation_prompt` and whatever else the template knows.
    pub variables: Vec<(String, Data)>,
    /// What `strftime_now` shows.
    pub now: Option<Now>,
    /// Find special tokens wherever they stand in the prompt, as `transformers` does. If not, only where the
    /// template wrote their beginning.
    pub trusted: bool,
}

/// What a text becomes without the tokens around it, special tokens found in it.
const PARSED: EncodeOptions = EncodeOptions { add_special_tokens: false, parse_special: true };

impl ChatTemplate {
    /// The ids of a conversation's prompt: what the template shows and nothing around it, the tokenizer file's
    /// truncation and padding left out.
    ///
    /// # Errors
    /// As for [`ChatTemplate::render`] and [`Tokenizer::encode`];
    /// [`crate::TokenizeError::UntrustedSpecial`] where the conversation holds a special token's text that cannot be
    /// told from the template's.
    pub fn encode(&self, tokenizer: &Tokenizer, conversation: &Conversation) -> Result<Vec<u32>> {
        let Conversation { variables, now, trusted } = conversation;
        if *trusted {
            let text = self.render(variables, *now)?;
            return tokenizer.encode_whole(&text, PARSED);
        }
        let masked = self.render_masked(variables, *now, &tokenizer.special_contents())?;
        tokenizer.encode_masked(&masked.text, &masked.masked)
    }

    /// The number of ids of a conversation's prompt.
    ///
    /// # Errors
    /// As for [`ChatTemplate::encode`].
    pub fn count(&self, tokenizer: &Tokenizer, conversation: &Conversation) -> Result<usize> {
        let Conversation { variables, now, trusted } = conversation;
        if *trusted {
            return tokenizer.count(&self.render(variables, *now)?, PARSED);
        }
        let masked = self.render_masked(variables, *now, &tokenizer.special_contents())?;
        tokenizer.count_masked(&masked.text, &masked.masked)
    }

    /// The prompts of many conversations, on at most `threads` threads; `stop` as for [`Tokenizer::encode_batch`].
    ///
    /// # Errors
    /// [`crate::TokenizeError::Interrupted`], or the first error of [`ChatTemplate::render`] by position.
    pub fn render_batch(
        &self,
        conversations: &[Conversation],
        threads: usize,
        stop: &dyn Fn() -> bool,
    ) -> Result<Vec<String>> {
        let render = |each: &Conversation| self.render(&each.variables, each.now);
        Self::in_parts(conversations, threads, stop, render)
    }

    /// The ids of many conversations' prompts, as [`ChatTemplate::render_batch`].
    ///
    /// # Errors
    /// [`crate::TokenizeError::Interrupted`], or the first error of [`ChatTemplate::encode`] by position.
    pub fn encode_batch(
        &self,
        tokenizer: &Tokenizer,
        conversations: &[Conversation],
        threads: usize,
        stop: &dyn Fn() -> bool,
    ) -> Result<TokenBatch> {
        let encode = |each: &Conversation| self.encode(tokenizer, each);
        let each = Self::in_parts(conversations, threads, stop, encode)?;
        let lengths: Vec<usize> = each.iter().map(Vec::len).collect();
        Ok(TokenBatch { ids: each.concat(), offsets: offsets(&lengths) })
    }

    /// The number of ids of many conversations' prompts, as [`ChatTemplate::render_batch`].
    ///
    /// # Errors
    /// [`crate::TokenizeError::Interrupted`], or the first error of [`ChatTemplate::count`] by position.
    pub fn count_batch(
        &self,
        tokenizer: &Tokenizer,
        conversations: &[Conversation],
        threads: usize,
        stop: &dyn Fn() -> bool,
    ) -> Result<Vec<usize>> {
        Self::in_parts(conversations, threads, stop, |each| self.count(tokenizer, each))
    }

    fn in_parts<T: Send + Default>(
        conversations: &[Conversation],
        threads: usize,
        stop: &dyn Fn() -> bool,
        call: impl Fn(&Conversation) -> Result<T> + Sync,
    ) -> Result<Vec<T>> {
        let all = |_, part: &[Conversation], results: &mut [T]| {
            for (conversation, result) in part.iter().zip(results) {
                *result = call(conversation)?;
            }
            Ok(())
        };
        in_tasks(conversations, |_| COST, threads, stop, all)
    }
}
