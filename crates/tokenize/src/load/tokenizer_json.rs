//! Hugging Face's `tokenizer.json`.
//!
//! A byte-level BPE whose every part is understood runs on the native pipeline. Everything else (other models,
//! normalizers and splits, dropout, …) runs on the `tokenizers` crate as a whole: parts of the two are not mixed.

use std::borrow::Cow;

use ahash::AHashMap;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::bpe::BytePairEncoder;
use crate::error::{Result, TokenizeError};
use crate::fallback::{FallbackParts, FallbackPipeline};
use crate::frame::Frame;
use crate::limits::{Limits, Padding, Truncation};
use crate::load::bpe_model::{BpeModel, ResolvedModel, Writing};
use crate::load::{byte_level, spaced, tekken};
use crate::native::{NativePipeline, Normalization};
use crate::pretokenize::{Joins, Pretokenizer, Step};
use crate::spacing::{Runs, Spacing, Strip};
use crate::special::AddedToken;
use crate::tokenizer::{Pipeline, Tokenizer};
use crate::vocabulary::{Entry, Kind, Vocabulary};

/// The file's sections. The model, by far the largest, is read in a second pass, once its type is known.
#[derive(Deserialize)]
struct Sections<'f> {
    #[serde(borrow)]
    version: Option<Cow<'f, str>>,
    truncation: Option<Truncation>,
    padding: Option<Padding>,
    added_tokens: Option<Vec<AddedToken>>,
    normalizer: Option<Value>,
    pre_tokenizer: Option<Value>,
    post_processor: Option<Value>,
    decoder: Option<Value>,
    #[serde(borrow)]
    model: Option<&'f RawValue>,
    /// What `tekken.json` has instead of a model.
    #[serde(borrow)]
    config: Option<&'f RawValue>,
}

#[derive(Deserialize)]
struct ModelType<'f> {
    #[serde(borrow, rename = "type")]
    name: Option<Cow<'f, str>>,
}

/// Loads a tokenizer from the content of a `tokenizer.json`.
pub(super) fn load(content: &[u8]) -> Result<Tokenizer> {
    let invalid = |error: serde_json::Error| TokenizeError::malformed(format!("tokenizer.json: {error}"));
    let text = std::str::from_utf8(content)
        .map_err(|error| TokenizeError::malformed(format!("tokenizer.json is not UTF-8: {error}")))?;
    let mut sections: Sections<'_> = serde_json::from_str(text).map_err(invalid)?;
    if let Some(version) = sections.version.as_ref().filter(|version| version.as_ref() != "1.0") {
        return Err(TokenizeError::malformed(format!(
            "tokenizer.json has version {version:?}; 1.0 is known"
        )));
    }
    if sections.model.is_none() && sections.config.is_some() {
        return tekken::load(text);
    }
    let model = sections.model.take().ok_or_else(|| {
        TokenizeError::malformed(
            "tokenizer.json has no model; is it a tokenizer_config.json or a vocab.json?",
        )
    })?;
    let frame = Frame::read(sections.post_processor.as_ref())?;
    let limits = Limits { truncation: sections.truncation.take(), padding: sections.padding.take() };
    limits.check(frame.as_ref().map_or(0, Frame::len))?;
    let kind: ModelType<'_> = serde_json::from_str(model.get()).map_err(invalid)?;
    if kind.name.as_deref() == Some("BPE") {
        let preparation = spaced::preparation(sections.normalizer.as_ref(), sections.pre_tokenizer.as_ref());
        let writing = if preparation.is_some() { Writing::Spaced } else { Writing::ByteLevel };
        let model = serde_json::from_str::<BpeModel<'_>>(model.get()).map_err(invalid)?;
        let resolved = model.resolve(writing)?;
        let tokenizer = match preparation {
            Some(preparation) => native_spaced(resolved, preparation, &sections, frame, limits.clone()),
            None => native(resolved, &sections, frame, limits.clone()),
        }?;
        if let Some(tokenizer) = tokenizer {
            return Ok(tokenizer);
        }
    }
    fallback(model.get(), sections, limits)
}

/// The native pipeline, or `None` where some part is not understood.
fn native(
    model: ResolvedModel,
    sections: &Sections<'_>,
    frame: Option<Frame>,
    limits: Limits,
) -> Result<Option<Tokenizer>> {
    let ResolvedModel { vocabulary, parts: Some(parts), left_out } = model else { return Ok(None) };
    let Some(frame) = frame else { return Ok(None) };
    let Some(normalization) = normalization(sections.normalizer.as_ref()) else { return Ok(None) };
    let Some(split) = split(sections.pre_tokenizer.as_ref()) else { return Ok(None) };
    if !is_byte_level(sections.decoder.as_ref()) {
        return Ok(None);
    }
    let Some(added) = added_tokens(&vocabulary, sections.added_tokens.as_deref(), normalization)? else {
        return Ok(None);
    };
    // Of other patterns the reference's engine may have a different view.
    let Some(pretokenizer) = Pretokenizer::from_steps(&split.steps) else { return Ok(None) };
    let table = Vocabulary::new(entries(&vocabulary, &added, Writing::ByteLevel))?;
    let encoder = BytePairEncoder::new(pretokenizer, parts)?;
    let pipeline = NativePipeline::new(encoder, added, frame)?
        .with_normalization(normalization)
        .with_prefix_space(split.prefix_space)
        .leaving_out(left_out);
    Ok(Some(Tokenizer::new(Pipeline::Native(Box::new(pipeline)), table, limits, None)))
}

/// The native pipeline of a vocabulary that writes spaces as SentencePiece does, or `None` where some part is not
/// understood.
fn native_spaced(
    model: ResolvedModel,
    (normalization, cuts_at_spaces): (Normalization, bool),
    sections: &Sections<'_>,
    frame: Option<Frame>,
    limits: Limits,
) -> Result<Option<Tokenizer>> {
    let ResolvedModel { vocabulary, parts: Some(parts), .. } = model else { return Ok(None) };
    let Some(frame) = frame else { return Ok(None) };
    let Some(strips) = spaced::strips_a_space(sections.decoder.as_ref()) else { return Ok(None) };
    let declared = sections.added_tokens.as_deref();
    let Some(added) = added_tokens(&vocabulary, declared, normalization)? else { return Ok(None) };
    let mut forms = vocabulary.iter().map(|(form, _)| form).chain(added.iter().map(|token| &token.content));
    let is_clear = |form: &String| !(form.contains(' ') && form.contains(spaced::MARK));
    // Whether a token that is looked for after normalization is found depends on the space before it.
    if added.iter().any(|token| token.normalized) || !forms.all(is_clear) {
        return Ok(None);
    }
    let mut joins = Joins::of(parts.tokens.iter().map(|(text, _)| text.as_slice()));
    if cuts_at_spaces {
        joins.cut_before(b' ');
    }
    let table = Vocabulary::new(entries(&vocabulary, &added, Writing::Spaced))?;
    let encoder = BytePairEncoder::new(Pretokenizer::from_joins(joins), parts)?;
    let strip = if strips { Strip::One } else { Strip::None };
    let pipeline = NativePipeline::new(encoder, added, frame)?
        .with_normalization(normalization)
        .with_spacing(Spacing { runs: Runs::Whole, strip, unknown: None });
    Ok(Some(Tokenizer::new(Pipeline::Native(Box::new(pipeline)), table, limits, None)))
}

fn kind(section: &Value) -> Option<&str> {
    section.get("type").and_then(Value::as_str)
}

fn normalization(section: Option<&Value>) -> Option<Normalization> {
    let Some(section) = section else { return Some(Normalization::None) };
    match kind(section)? {
        "NFC" => Some(Normalization::Nfc),
        "Sequence" => match section.get("normalizers")?.as_array()?.as_slice() {
            [] => Some(Normalization::None),
            [only] if kind(only) == Some("NFC") => Some(Normalization::Nfc),
            _ => None,
        },
        _ => None,
    }
}

/// How a native pipeline cuts text, before bytes take the place of characters.
struct Split<'f> {
    steps: Vec<Step<'f>>,
    prefix_space: bool,
}

fn split(section: Option<&Value>) -> Option<Split<'_>> {
    let section = section?;
    let sections = match kind(section)? {
        "Sequence" => section.get("pretokenizers")?.as_array()?.as_slice(),
        _ => std::slice::from_ref(section),
    };
    let (bytes, before) = sections.split_last()?;
    if kind(bytes)? != "ByteLevel" || !bytes.get("trim_offsets")?.is_boolean() {
        return None;
    }
    let mut steps = before.iter().map(step).collect::<Option<Vec<_>>>()?;
    match bytes.get("use_regex").map(Value::as_bool) {
        None | Some(Some(true)) => steps.push(Step::Gpt2),
        Some(Some(false)) => {}
        Some(None) => return None,
    }
    // A prefix space would be put before every piece of the steps before.
    let prefix_space = bytes.get("add_prefix_space")?.as_bool()?;
    (before.is_empty() || !prefix_space).then_some(Split { steps, prefix_space })
}

fn step(section: &Value) -> Option<Step<'_>> {
    match kind(section)? {
        "Split" => {
            let isolated = section.get("behavior")?.as_str() == Some("Isolated")
                && section.get("invert")?.as_bool() == Some(false);
            let pattern = section.get("pattern")?.get("Regex")?.as_str()?;
            isolated.then_some(Step::Split(pattern))
        }
        "Digits" if section.get("individual_digits")?.as_bool()? => Some(Step::Digits),
        _ => None,
    }
}

fn is_byte_level(decoder: Option<&Value>) -> bool {
    decoder.is_some_and(|section| {
        kind(section) == Some("ByteLevel")
            && ["add_prefix_space", "trim_offsets"]
                .iter()
                .all(|key| section.get(key).is_some_and(Value::is_boolean))
    })
}

/// The added tokens with the ids that the reference gives them, which are not always those of the file; `None`
/// where the two differ or the tokens depend on each other, so that the reference must decide.
fn added_tokens(
    vocabulary: &[(String, u32)],
    declared: Option<&[AddedToken]>,
    normalization: Normalization,
) -> Result<Option<Vec<AddedToken>>> {
    let declared = declared.unwrap_or_default();
    let model: AHashMap<&str, u32> = vocabulary.iter().map(|(token, id)| (token.as_str(), *id)).collect();
    let greatest = vocabulary.iter().map(|(_, id)| *id).max();
    let mut next = vocabulary.len() as u32;
    let mut seen = ahash::AHashSet::with_capacity(declared.len());
    for token in declared {
        if token.content.is_empty() || !seen.insert(token.content.as_str()) {
            return Ok(None);
        }
        if token.normalized && normalization.apply(&token.content, true) != token.content {
            return Ok(None);
        }
        let id = model.get(token.content.as_str()).copied().unwrap_or_else(|| {
            next += 1;
            next - 1
        });
        if id != token.id {
            return Ok(None);
        }
        if !model.contains_key(token.content.as_str()) && greatest.is_some_and(|greatest| id <= greatest) {
            return Err(TokenizeError::malformed(format!(
                "the added token {:?} gets the id {id}, which the vocabulary has already given",
                token.content
            )));
        }
    }
    Ok(Some(declared.to_vec()))
}

fn entries(vocabulary: &[(String, u32)], added: &[AddedToken], writing: Writing) -> Vec<Entry> {
    let special: AHashMap<&str, bool> =
        added.iter().map(|token| (token.content.as_str(), token.special)).collect();
    let entry = |form: &str, id, special| {
        let (kind, bytes) = meaning(form, writing);
        Entry { id, bytes, kind, special }
    };
    let mut entries = Vec::with_capacity(vocabulary.len() + added.len());
    let mut in_model = ahash::AHashSet::with_capacity(added.len());
    for (form, id) in vocabulary {
        let declared = special.get(form.as_str()).copied();
        if declared.is_some() {
            in_model.insert(form.as_str());
        }
        entries.push(entry(form, *id, declared.unwrap_or(false)));
    }
    for token in added.iter().filter(|token| !in_model.contains(token.content.as_str())) {
        entries.push(entry(&token.content, token.id, token.special));
    }
    entries
}

/// What a token that is written so decodes to.
fn meaning(form: &str, writing: Writing) -> (Kind, Vec<u8>) {
    let plain = || (Kind::Plain, form.as_bytes().to_vec());
    match writing {
        Writing::ByteLevel => byte_level::to_bytes(form).map_or_else(plain, |bytes| (Kind::ByteLevel, bytes)),
        Writing::Spaced if form.contains(' ') => plain(),
        Writing::Spaced => match spaced::byte(form) {
            Some(byte) => (Kind::Byte, vec![byte]),
            None => (Kind::Spaced, spaced::without_marks(form).into_owned().into_bytes()),
        },
    }
}

fn fallback(model: &str, sections: Sections<'_>, limits: Limits) -> Result<Tokenizer> {
    let parts = FallbackParts {
        model,
        normalizer: sections.normalizer,
        pre_tokenizer: sections.pre_tokenizer,
        post_processor: sections.post_processor,
        decoder: sections.decoder,
        added_tokens: sections.added_tokens.unwrap_or_default(),
        limits: &limits,
    };
    let (pipeline, vocabulary) = FallbackPipeline::new(parts)?;
    Ok(Tokenizer::new(Pipeline::Fallback(Box::new(pipeline)), vocabulary, limits, None))
}
