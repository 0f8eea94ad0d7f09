//! SentencePiece's `.model` files.

use crate::bpe::{BpeParts, BytePairEncoder, Merges, Symbols};
use crate::error::Result;
use crate::fallback::FallbackPipeline;
use crate::frame::Frame;
use crate::limits::Limits;
use crate::load::spaced;
use crate::native::{NativePipeline, Normalization, PrefixSpace};
use crate::pretokenize::{Joins, Pretokenizer};
use crate::sentencepiece::model::{Algorithm, Kind, Model, Piece};
use crate::sentencepiece::{Normalizer, SentencePiecePipeline, control_tokens, spacing};
use crate::special::AddedToken;
use crate::tokenizer::{Pipeline, Tokenizer};
use crate::vocabulary::{Entry, Kind as Writing, MAX_ID, Vocabulary};
use crate::{TokenizeError, bpe};

/// What is put around a text: nothing, unless the model's directory says so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Framing {
    pub(super) begin: bool,
    pub(super) end: bool,
}

/// Whether the content begins as a model does: with a piece, whose text comes first.
pub(super) fn looks_like_model(content: &[u8]) -> bool {
    let Some((&[0x0a, length], rest)) = content.split_first_chunk() else { return false };
    // The first piece is short; in a text file the second byte would be the length of the first line.
    length >= 3
        && rest.first() == Some(&0x0a)
        && rest.get(1).is_some_and(|text| *text > 0 && *text <= length - 2)
}

pub(super) fn load(content: &[u8], framing: Framing) -> Result<Tokenizer> {
    let model = Model::read(content)?;
    let last = model.pieces.len().saturating_sub(1);
    if last > MAX_ID as usize {
        return Err(TokenizeError::id_too_large(last));
    }
    let frame = Frame {
        before: model.begin.filter(|_| framing.begin).into_iter().collect(),
        after: model.end.filter(|_| framing.end).into_iter().collect(),
    };
    let vocabulary =
        Vocabulary::new(model.pieces.iter().zip(0..).map(|(piece, id)| entry(piece, id)).collect())?;
    let pipeline = match native(&model, &frame)? {
        Some(pipeline) => Pipeline::Native(Box::new(pipeline)),
        None => Pipeline::Fallback(Box::new(FallbackPipeline::from_model(SentencePiecePipeline::new(
            &model, frame,
        )?))),
    };
    Ok(Tokenizer::new(pipeline, vocabulary, Limits::default(), model.end))
}

fn entry(piece: &Piece, id: u32) -> Entry {
    let plain = || (Writing::Plain, piece.text.clone().into_bytes());
    let (kind, bytes) = match piece.kind {
        Kind::Byte => spaced::byte(&piece.text).map_or_else(plain, |byte| (Writing::Byte, vec![byte])),
        Kind::Control | Kind::Unknown => plain(),
        _ if piece.text.contains(' ') => plain(),
        _ => (Writing::Spaced, spaced::without_marks(&piece.text).into_owned().into_bytes()),
    };
    Entry { id, bytes, kind, special: piece.kind == Kind::Control }
}

/// The native pipeline, for byte-pair models in their usual form.
fn native(model: &Model, frame: &Frame) -> Result<Option<NativePipeline>> {
    let normalizer = Normalizer::new(model)?;
    let is_usual = model.algorithm == Algorithm::BytePair
        && model.byte_fallback
        && normalizer.only_marks_spaces()
        && model.pieces.len() < bpe::ID_LIMIT as usize
        && model.pieces.iter().all(|piece| piece.kind != Kind::Unused && !piece.text.contains(' '));
    let Some(parts) = parts(model).filter(|_| is_usual) else { return Ok(None) };
    let joins = Joins::of(parts.tokens.iter().map(|(text, _)| text.as_slice()));
    let encoder = BytePairEncoder::new(Pretokenizer::from_joins(joins), parts)?;
    let mut added = control_tokens(model);
    let user_defined = model.pieces.iter().zip(0..).filter(|(piece, _)| piece.kind == Kind::UserDefined);
    added.extend(user_defined.map(|(piece, id)| AddedToken {
        special: false,
        normalized: true,
        ..AddedToken::special(&spaced::without_marks(&piece.text), id)
    }));
    let prefix = if normalizer.puts_prefix() { PrefixSpace::Always } else { PrefixSpace::Never };
    let pipeline = NativePipeline::new(encoder, added, frame.clone())?;
    Ok(Some(pipeline.with_normalization(Normalization::Spaces(prefix)).with_spacing(spacing(model))))
}

/// Tokens and merges; `None` where a piece has a character that is no piece, or the text of another kind of piece.
fn parts(model: &Model) -> Option<BpeParts> {
    let pieces = || model.pieces.iter().zip(0..);
    let texts = pieces().filter(|(piece, _)| matches!(piece.kind, Kind::Normal | Kind::Byte));
    let tokens = spaced::tokens(texts.map(|(piece, id)| (piece.text.as_str(), id)))?;
    let normal = || pieces().filter(|(piece, _)| piece.kind == Kind::Normal);
    let known: ahash::AHashSet<char> = normal()
        .filter_map(|(piece, _)| {
            let mut characters = piece.text.chars();
            characters.next().filter(|_| characters.next().is_none())
        })
        .collect();
    let others: ahash::AHashSet<&str> = pieces()
        .filter(|(piece, _)| piece.kind != Kind::Normal)
        .map(|(piece, _)| piece.text.as_str())
        .collect();
    let is_whole = |piece: &Piece| {
        let mut characters = piece.text.chars();
        characters.all(|one| one.is_ascii() || known.contains(&one)) && !others.contains(piece.text.as_str())
    };
    if !normal().all(|(piece, _)| is_whole(piece) && spaced::byte(&piece.text).is_none()) {
        return None;
    }
    let longer = normal().filter(|(piece, _)| piece.text.chars().nth(1).is_some());
    let merges = Merges::ByScore(longer.map(|(piece, id)| (id, piece.score)).collect());
    Some(BpeParts { tokens, merges, begins_with: Symbols::Characters, ignore_merges: false })
}
