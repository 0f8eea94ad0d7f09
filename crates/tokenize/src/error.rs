//! What can go wrong between a tokenizer file and its ids.

use std::path::PathBuf;

use infer_accel_tensor::ErrorKind;

/// The result of every fallible call of this crate.
pub type Result<T> = std::result::Result<T, TokenizeError>;

/// Why a tokenizer could not be loaded, or why a text or a list of ids could not be served.
///
/// Each case says what came, what is allowed and what to do; [`TokenizeError::code`] is the stable name that
/// programs may test.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizeError {
    /// The file could not be read.
    #[error("cannot read the tokenizer file {path}: {source}", path = path.display())]
    Read {
        /// The file that was asked for.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },

    /// The content is no tokenizer format that is known here.
    #[error(
        "{found} is not a tokenizer that can be loaded; expected a Hugging Face tokenizer.json, a tekken.json, a \
         SentencePiece model or tiktoken ranks (lines of `base64 rank`); {hint}"
    )]
    UnknownFormat {
        /// What the content looks like.
        found: String,
        /// What to do about it.
        hint: String,
    },

    /// The content is of a known format, but says something that cannot be.
    #[error("malformed tokenizer: {reason}")]
    Malformed {
        /// What is wrong, where, and what is allowed.
        reason: String,
    },

    /// The splitting pattern is no valid regular expression, or cannot be served exactly.
    #[error("cannot use the pattern {pattern:?} to split text: {reason}")]
    Pattern {
        /// The pattern as it was given.
        pattern: String,
        /// Why not, and what to do.
        reason: String,
    },

    /// The regex engine gave up on a text: its limit of steps back was reached.
    #[error(
        "the splitting pattern gave up on a text of {length} bytes: {reason}; split the text into smaller parts"
    )]
    PatternGaveUp {
        /// Length of the text in bytes.
        length: usize,
        /// What the regex engine said.
        reason: String,
    },

    /// More text at once than 32-bit offsets can describe.
    #[error("a text of {length} bytes is too long for offsets; split it into parts of at most {limit} bytes")]
    TextTooLong {
        /// Length of the text in bytes.
        length: usize,
        /// The longest text that is allowed, in bytes.
        limit: usize,
    },

    /// A byte has no token, so that some texts could not be encoded.
    #[error(
        "the vocabulary has no token for the byte 0x{byte:02x}; a byte-level vocabulary needs one for each of the 256 \
         bytes: the file may be truncated"
    )]
    MissingByte {
        /// The first byte without a token.
        byte: u8,
    },

    /// An id, or a size derived from it, does not fit.
    #[error("token id {id} is out of range; ids go from 0 to {limit}")]
    IdOutOfRange {
        /// The id that came; negative ids keep their sign.
        id: i64,
        /// The greatest id that is allowed.
        limit: u32,
    },

    /// An id lies in the vocabulary's range, but in a gap that no token fills.
    #[error(
        "token id {id} names no token: the vocabulary has a gap there; ask `id_to_token` which ids are in use"
    )]
    UnassignedId {
        /// The id without a token.
        id: u32,
    },

    /// Offsets do not cut a list of ids into parts.
    #[error(
        "the offsets do not cut {length} ids into parts: entry {position} is missing, below the one before it, or out \
         of range; pass one more offset than there are texts, rising from 0 to the number of ids"
    )]
    Offsets {
        /// The first offset that is wrong.
        position: usize,
        /// The number of ids.
        length: usize,
    },

    /// The decoded bytes are not UTF-8, and the caller asked for strictness.
    #[error(
        "the decoded bytes are not UTF-8 from byte {valid_up_to} on; pass errors=\"replace\" or \"ignore\", or use \
         decode_bytes"
    )]
    InvalidUtf8 {
        /// The length of the valid beginning.
        valid_up_to: usize,
    },

    /// The chat template is none, or it failed on a conversation.
    #[error("the chat template failed: {reason}")]
    Template {
        /// Where and why.
        reason: String,
    },

    /// The chat template itself refused the conversation.
    #[error("the chat template refuses this conversation: {message}")]
    TemplateRaised {
        /// What it gave to `raise_exception`.
        message: String,
    },

    /// Untrusted text holds a special token's text, and the pipeline cannot leave it alone while it finds others.
    #[error(
        "the untrusted text holds {content:?}, which is a special token; the pipeline of this tokenizer finds special \
         tokens everywhere or nowhere: replace that text, or refuse it"
    )]
    UntrustedSpecial {
        /// The special token's text.
        content: String,
    },

    /// The pipeline of the `tokenizers` crate gave up on this input.
    #[error("the tokenizer's pipeline failed: {reason}")]
    Pipeline {
        /// What it said.
        reason: String,
    },

    /// The caller's signal (Ctrl-C) ended a long call; nothing of its result is kept.
    #[error("interrupted; no result was kept")]
    Interrupted,
}

impl TokenizeError {
    /// The family that this error belongs to.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::IdOutOfRange { .. } | Self::UnassignedId { .. } => ErrorKind::Id,
            Self::Offsets { .. } => ErrorKind::Argument,
            Self::Interrupted => ErrorKind::Interrupted,
            _ => ErrorKind::Tokenizer,
        }
    }

    /// The stable name of this kind of error.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Read { .. } => "tokenizer.read",
            Self::UnknownFormat { .. } => "tokenizer.unknown_format",
            Self::Malformed { .. } => "tokenizer.malformed",
            Self::Pattern { .. } => "tokenizer.pattern",
            Self::PatternGaveUp { .. } => "tokenizer.pattern_gave_up",
            Self::TextTooLong { .. } => "tokenizer.text_too_long",
            Self::MissingByte { .. } => "tokenizer.missing_byte",
            Self::IdOutOfRange { .. } => "id.out_of_range",
            Self::UnassignedId { .. } => "id.unassigned",
            Self::Offsets { .. } => "argument.offsets",
            Self::InvalidUtf8 { .. } => "tokenizer.invalid_utf8",
            Self::Template { .. } => "tokenizer.template",
            Self::TemplateRaised { .. } => "tokenizer.template_raised",
            Self::UntrustedSpecial { .. } => "tokenizer.untrusted_special",
            Self::Pipeline { .. } => "tokenizer.pipeline",
            Self::Interrupted => "interrupted",
        }
    }

    /// For ids in files, where the file is at fault.
    pub(crate) fn id_too_large(id: impl std::fmt::Display) -> Self {
        Self::malformed(format!("the token id {id} is out of range; ids go from 0 to {}", crate::MAX_ID))
    }

    /// A [`TokenizeError::Malformed`] with this reason.
    pub(crate) fn malformed(reason: impl Into<String>) -> Self {
        Self::Malformed { reason: reason.into() }
    }
}
