//! Every pipeline that is not native, by the `tokenizers` crate.
//!
//! Its calls are single-item ones, so that its global thread pool is never used, and a panic in it becomes an
//! error. The model is shared between four variants of the pipeline, because two of a call's options (whether
//! special tokens are found in text, whether the file's truncation counts) are switches of the whole tokenizer there.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;
use tokenizers::models::{ModelWrapper, TrainerWrapper};
use tokenizers::{
    DecoderWrapper, Model, NormalizerWrapper, PostProcessor, PostProcessorWrapper, PreTokenizerWrapper,
    TokenizerImpl, TruncationDirection, TruncationParams, TruncationStrategy,
};

use crate::error::{Result, TokenizeError};
use crate::limits::{Limits, Side, Strategy, Truncation};
use crate::locality;
use crate::offsets::Located;
use crate::sentencepiece::SentencePiecePipeline;
use crate::spacing::Spacing;
use crate::special::{AddedToken, Matcher};
use crate::vocabulary::{Entry, Kind, MAX_ID, Vocabulary};

/// The sections of a `tokenizer.json`.
pub(crate) struct FallbackParts<'f> {
    pub(crate) model: &'f str,
    pub(crate) normalizer: Option<Value>,
    pub(crate) pre_tokenizer: Option<Value>,
    pub(crate) post_processor: Option<Value>,
    pub(crate) decoder: Option<Value>,
    pub(crate) added_tokens: Vec<AddedToken>,
    pub(crate) limits: &'f Limits,
}

type Variant =
    TokenizerImpl<SharedModel, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>;

pub(crate) struct LibraryPipeline {
    /// Special tokens found in text / left as text.
    parsing: Variant,
    plain: Variant,
    /// The same two with the file's truncation, where it asks for one.
    truncating: Option<[Variant; 2]>,
    /// The file's added tokens, for finding out where they stand.
    matcher: Matcher,
    /// Whether the decoder puts tokens that stand for bytes together to characters.
    joins_bytes: bool,
    /// Whether a few ids decode to what they stand for among all.
    is_local: bool,
}

/// A pipeline that encodes a text as a whole.
pub(crate) enum FallbackPipeline {
    /// The `tokenizers` crate's.
    Library(Box<LibraryPipeline>),
    /// Of a SentencePiece model.
    Model(Box<SentencePiecePipeline>),
}

impl FallbackPipeline {
    pub(crate) fn new(parts: FallbackParts<'_>) -> Result<(Self, Vocabulary)> {
        tokenizers::parallelism::set_parallelism(false);
        let (pipeline, vocabulary) = guarded(|| LibraryPipeline::build(parts))??;
        Ok((Self::Library(Box::new(pipeline)), vocabulary))
    }

    pub(crate) fn from_model(pipeline: SentencePiecePipeline) -> Self {
        Self::Model(Box::new(pipeline))
    }

    /// How texts are put together, where the library does not do it.
    pub(crate) fn spacing(&self) -> Option<&Spacing> {
        match self {
            Self::Library(_) => None,
            Self::Model(pipeline) => Some(&pipeline.spacing),
        }
    }

    /// Whether the library's decoder puts tokens that stand for bytes together to characters.
    pub(crate) fn joins_bytes(&self) -> bool {
        match self {
            Self::Library(library) => library.joins_bytes,
            Self::Model(_) => false,
        }
    }

    /// Whether a few ids decode to what they stand for among all; where not, a stream must wait for the last one.
    pub(crate) fn is_local(&self) -> bool {
        match self {
            Self::Library(library) => library.is_local,
            Self::Model(_) => true,
        }
    }

    /// Appends the ids of a text, frame and truncation included, padding not.
    pub(crate) fn encode_into(
        &self,
        text: &str,
        add_special_tokens: bool,
        parse_special: bool,
        truncate: bool,
        ids: &mut Vec<u32>,
    ) -> Result<()> {
        match self {
            Self::Library(library) => {
                library.encode_into(text, add_special_tokens, parse_special, truncate, ids)
            }
            Self::Model(pipeline) => {
                pipeline.encode_into(text, add_special_tokens, parse_special, ids);
                Ok(())
            }
        }
    }

    /// The ids of a text and where they lie in it, in bytes; frame included, truncation and padding not.
    pub(crate) fn offsets(
        &self,
        text: &str,
        add_special_tokens: bool,
        parse_special: bool,
    ) -> Result<Vec<Located>> {
        match self {
            Self::Library(library) => library.offsets(text, add_special_tokens, parse_special),
            Self::Model(pipeline) => Ok(pipeline.offsets(text, add_special_tokens, parse_special)),
        }
    }

    /// The file's added tokens.
    pub(crate) fn matcher(&self) -> &Matcher {
        match self {
            Self::Library(library) => &library.matcher,
            Self::Model(pipeline) => pipeline.matcher(),
        }
    }

    /// The text of these ids, as the library puts it together.
    pub(crate) fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String> {
        match self {
            Self::Library(library) => library.decode(ids, skip_special_tokens),
            Self::Model(_) => Ok(String::new()),
        }
    }

    /// The id of a token, as the library knows it; `None` where the vocabulary knows.
    pub(crate) fn token_to_id(&self, token: &str, vocabulary: &Vocabulary) -> Option<u32> {
        match self {
            Self::Library(library) => library.parsing.token_to_id(token),
            Self::Model(_) => vocabulary.id(token),
        }
    }
}

impl LibraryPipeline {
    fn build(parts: FallbackParts<'_>) -> Result<(Self, Vocabulary)> {
        let model: ModelWrapper = serde_json::from_str(parts.model)
            .map_err(|error| TokenizeError::malformed(format!("tokenizer.json: model: {error}")))?;
        let mut parsing = Variant::new(SharedModel(Arc::new(model)));
        parts.normalizer.as_ref().map_or(Ok(()), refuse_empty_prefixes)?;
        let normalizer: Option<NormalizerWrapper> = section("normalizer", parts.normalizer)?;
        parsing.with_normalizer(normalizer).map_err(malformed)?;
        let pre_tokenizer: Option<PreTokenizerWrapper> = section("pre_tokenizer", parts.pre_tokenizer)?;
        let post_processor: Option<PostProcessorWrapper> = section("post_processor", parts.post_processor)?;
        let joins_bytes =
            parts.decoder.as_ref().is_some_and(|decoder| decoder.to_string().contains("\"ByteFallback\""));
        let is_local = locality::is_local(parts.decoder.as_ref());
        let decoder: Option<DecoderWrapper> = section("decoder", parts.decoder)?;
        parsing.with_pre_tokenizer(pre_tokenizer).with_post_processor(post_processor).with_decoder(decoder);
        let added = parts.added_tokens;
        let filled = added.iter().filter(|token| !token.content.is_empty());
        let matcher = Matcher::new(filled.cloned().collect())?;
        parsing.add_tokens(added.iter().map(declared)).map_err(malformed)?;
        let vocabulary = vocabulary(&parsing)?;
        let plain = without_parsing(&parsing);
        // The library subtracts without looking, and then truncates to whatever that gives.
        parts
            .limits
            .check(parsing.get_post_processor().map_or(0, |processor| processor.added_tokens(false)))?;
        let truncating = match &parts.limits.truncation {
            None => None,
            Some(truncation) => {
                let mut truncating = parsing.clone();
                truncating.with_truncation(Some(parameters(truncation))).map_err(malformed)?;
                let plain = without_parsing(&truncating);
                Some([truncating, plain])
            }
        };
        Ok((Self { parsing, plain, truncating, matcher, joins_bytes, is_local }, vocabulary))
    }

    fn variant(&self, parse_special: bool, truncate: bool) -> &Variant {
        match &self.truncating {
            Some([parsing, plain]) if truncate => {
                if parse_special {
                    parsing
                } else {
                    plain
                }
            }
            _ => {
                if parse_special {
                    &self.parsing
                } else {
                    &self.plain
                }
            }
        }
    }

    /// Appends the ids of a text, frame and truncation included, padding not.
    fn encode_into(
        &self,
        text: &str,
        add_special_tokens: bool,
        parse_special: bool,
        truncate: bool,
        ids: &mut Vec<u32>,
    ) -> Result<()> {
        let variant = self.variant(parse_special, truncate);
        let encoding = guarded(|| variant.encode_fast(text, add_special_tokens))?.map_err(failed)?;
        ids.extend_from_slice(encoding.get_ids());
        Ok(())
    }

    /// The ids of a text and where they lie in it, in bytes; frame included, truncation and padding not.
    fn offsets(&self, text: &str, add_special_tokens: bool, parse_special: bool) -> Result<Vec<Located>> {
        let variant = self.variant(parse_special, false);
        let encoding = guarded(|| variant.encode(text, add_special_tokens))?.map_err(failed)?;
        let ids = encoding.get_ids().iter().copied();
        Ok(ids.zip(encoding.get_offsets().iter().map(|&(start, end)| start..end)).collect())
    }

    /// The text of these ids.
    fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String> {
        guarded(|| self.parsing.decode(ids, skip_special_tokens))?.map_err(failed)
    }
}

/// Refuses a normalizer that puts nothing before a text: the library moves its offsets over it, panics over some texts
/// and gives wrong ids for others.
fn refuse_empty_prefixes(normalizer: &Value) -> Result<()> {
    let is = |name: &str, value: &str| normalizer.get(name).and_then(Value::as_str) == Some(value);
    if is("type", "Prepend") && is("prepend", "") {
        return Err(TokenizeError::malformed(
            "tokenizer.json: normalizer: Prepend has nothing to put before a text; remove it",
        ));
    }
    let steps = normalizer.get("normalizers").and_then(Value::as_array);
    steps.into_iter().flatten().try_for_each(refuse_empty_prefixes)
}

/// Runs what may panic. Nothing that it touches is left half-changed: the variants are immutable, and the caches of
/// the crate are per thread and are only ever added to.
fn guarded<T>(call: impl FnOnce() -> T) -> Result<T> {
    catch_unwind(AssertUnwindSafe(call)).map_err(|panic| {
        let message = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let message = message.or_else(|| panic.downcast_ref::<String>().cloned());
        TokenizeError::Pipeline { reason: format!("it panicked: {}", message.unwrap_or_default()) }
    })
}

#[allow(clippy::needless_pass_by_value)] // as map_err wants it
fn failed(error: tokenizers::Error) -> TokenizeError {
    TokenizeError::Pipeline { reason: error.to_string() }
}

#[allow(clippy::needless_pass_by_value)]
fn malformed(error: tokenizers::Error) -> TokenizeError {
    TokenizeError::malformed(format!("tokenizer.json: {error}"))
}

fn section<T: serde::de::DeserializeOwned>(name: &str, value: Option<Value>) -> Result<Option<T>> {
    let invalid = |error| TokenizeError::malformed(format!("tokenizer.json: {name}: {error}"));
    value.map(serde_json::from_value).transpose().map_err(invalid)
}

fn declared(token: &AddedToken) -> tokenizers::AddedToken {
    tokenizers::AddedToken::from(token.content.clone(), token.special)
        .single_word(token.single_word)
        .lstrip(token.lstrip)
        .rstrip(token.rstrip)
        .normalized(token.normalized)
}

fn parameters(truncation: &Truncation) -> TruncationParams {
    TruncationParams {
        direction: match truncation.direction {
            Side::Left => TruncationDirection::Left,
            Side::Right => TruncationDirection::Right,
        },
        max_length: truncation.max_length,
        strategy: match truncation.strategy {
            Strategy::LongestFirst => TruncationStrategy::LongestFirst,
            Strategy::OnlyFirst => TruncationStrategy::OnlyFirst,
            Strategy::OnlySecond => TruncationStrategy::OnlySecond,
        },
        stride: truncation.stride,
    }
}

fn without_parsing(variant: &Variant) -> Variant {
    let mut plain = variant.clone();
    plain.set_encode_special_tokens(true);
    plain
}

fn vocabulary(variant: &Variant) -> Result<Vocabulary> {
    let added = variant.get_added_tokens_decoder();
    let greatest = variant.get_vocab(true).values().copied().max();
    let size = variant.get_vocab_size(true) as u32;
    let last = greatest.unwrap_or(0).max(size.saturating_sub(1));
    if last > MAX_ID {
        return Err(TokenizeError::id_too_large(last));
    }
    let entries = (0..=last).filter_map(|id| {
        let bytes = variant.id_to_token(id)?.into_bytes();
        let special = added.get(&id).is_some_and(|token| token.special);
        Some(Entry { id, bytes, kind: Kind::Plain, special })
    });
    Vocabulary::new(entries.collect())
}

/// A model that the variants share.
#[derive(Clone)]
struct SharedModel(Arc<ModelWrapper>);

impl Model for SharedModel {
    type Trainer = TrainerWrapper;

    fn tokenize(&self, sequence: &str) -> tokenizers::Result<Vec<tokenizers::Token>> {
        self.0.tokenize(sequence)
    }

    fn token_to_id(&self, token: &str) -> Option<u32> {
        self.0.token_to_id(token)
    }

    fn id_to_token(&self, id: u32) -> Option<String> {
        self.0.id_to_token(id)
    }

    fn get_vocab(&self) -> HashMap<String, u32> {
        self.0.get_vocab()
    }

    fn get_vocab_size(&self) -> usize {
        self.0.get_vocab_size()
    }

    fn save(&self, folder: &Path, prefix: Option<&str>) -> tokenizers::Result<Vec<PathBuf>> {
        self.0.save(folder, prefix)
    }

    fn get_trainer(&self) -> TrainerWrapper {
        self.0.get_trainer()
    }
}
