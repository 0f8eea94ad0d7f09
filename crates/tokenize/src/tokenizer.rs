//! The tokenizer: one pipeline, its vocabulary, the lengths that its file asks for.

use crate::chat::{ChatSource, ChatTemplate};
use crate::error::Result;
use crate::fallback::FallbackPipeline;
use crate::limits::Limits;
use crate::native::NativePipeline;
use crate::vocabulary::Vocabulary;

/// What a call may ask for. The default adds the pipeline's special tokens and takes all text as plain text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncodeOptions {
    /// Put the tokens around the text that the file's post-processor asks for (`<|begin_of_text|>`, …).
    pub add_special_tokens: bool,
    /// Find special tokens in the text itself. Only for text that the caller wrote: whoever else writes it could
    /// otherwise forge the structure of a prompt.
    pub parse_special: bool,
}

impl Default for EncodeOptions {
    fn default() -> Self {
        Self { add_special_tokens: true, parse_special: false }
    }
}

pub(crate) enum Pipeline {
    Native(Box<NativePipeline>),
    Fallback(Box<FallbackPipeline>),
}

/// A tokenizer, immutable and shared freely between threads.
///
/// Made by [`Tokenizer::from_file`], [`Tokenizer::from_bytes`] or [`Tokenizer::from_tiktoken`].
pub struct Tokenizer {
    pub(crate) pipeline: Pipeline,
    pub(crate) vocabulary: Vocabulary,
    pub(crate) limits: Limits,
    eos: Option<u32>,
    chat: Option<ChatSource>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Tokenizer")
            .field("native", &self.is_native())
            .field("vocab_size", &self.vocab_size())
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    pub(crate) fn new(pipeline: Pipeline, vocabulary: Vocabulary, limits: Limits, eos: Option<u32>) -> Self {
        Self { pipeline, vocabulary, limits, eos, chat: None }
    }

    /// Whether the pipeline is the native one, which knows where a text may be cut; if not, the `tokenizers` crate, or
    /// the rest of a SentencePiece model, encodes each text as a whole.
    pub fn is_native(&self) -> bool {
        matches!(self.pipeline, Pipeline::Native(_))
    }

    /// One more than the greatest id: the least width of a table by id.
    pub fn vocab_size(&self) -> usize {
        self.vocabulary.size()
    }

    /// The id of a token in its written form (`Ġthe`, `<|endoftext|>`).
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        match &self.pipeline {
            Pipeline::Native(_) => self.vocabulary.id(token),
            Pipeline::Fallback(pipeline) => pipeline.token_to_id(token, &self.vocabulary),
        }
    }

    /// The written form of a token: byte-level tokens in GPT-2's printable alphabet, all others as they are.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.vocabulary.form(id)
    }

    /// Whether decoding may leave this id out.
    pub fn is_special(&self, id: u32) -> bool {
        self.vocabulary.is_special(id)
    }

    /// The id that ends a text, where the source of the tokenizer says so.
    pub fn eos_token_id(&self) -> Option<u32> {
        self.eos
    }

    /// This tokenizer with another end token.
    ///
    /// # Errors
    /// [`crate::TokenizeError::IdOutOfRange`] or [`crate::TokenizeError::UnassignedId`] where no token has this id.
    pub fn with_eos_token_id(mut self, id: u32) -> Result<Self> {
        self.vocabulary.bytes(id)?;
        self.eos = Some(id);
        Ok(self)
    }

    /// The chat template that came with the tokenizer, compiled.
    ///
    /// # Errors
    /// [`crate::TokenizeError::Template`] where it is no template.
    pub fn chat(&self) -> Result<Option<ChatTemplate>> {
        self.chat.as_ref().map(ChatTemplate::of).transpose()
    }

    /// This tokenizer with a chat template.
    #[must_use]
    pub fn with_chat(mut self, source: ChatSource) -> Self {
        self.chat = Some(source);
        self
    }
}
