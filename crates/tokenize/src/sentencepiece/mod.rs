//! SentencePiece's models, from `.model` files.
//!
//! The usual byte-pair models go to the native pipeline ([`crate::load`] decides). This module serves the others
//! exactly as the reference does: text is normalized by the model's own rules, and cut into its most probable pieces or
//! merged by score, always as a whole.

mod characters;
mod message;
pub(crate) mod model;
mod normalize;
mod pair;
mod trie;
mod unigram;

use std::ops::{ControlFlow, Range};

use ahash::AHashMap;

use crate::error::Result;
use crate::frame::Frame;
use crate::load::spaced;
use crate::offsets::Located;
use crate::spacing::{Runs, Spacing, Strip};
use crate::special::{AddedToken, Matcher};
use model::{Algorithm, Kind, Model};
pub(crate) use normalize::Normalizer;
use pair::Pairs;
use unigram::Unigram;

enum Engine {
    Unigram(Unigram),
    Pairs { pairs: Pairs, ids: AHashMap<Box<[u8]>, u32> },
}

pub(crate) struct SentencePiecePipeline {
    normalizer: Normalizer,
    engine: Engine,
    /// The id of each byte, where unknown characters become bytes.
    bytes: Option<Box<[u32; 256]>>,
    unknown: u32,
    /// The control symbols.
    matcher: Matcher,
    pub(crate) spacing: Spacing,
    frame: Frame,
}

/// How a model's texts are put together again.
pub(crate) fn spacing(model: &Model) -> Spacing {
    let strip = match &model.preparation {
        preparation if preparation.remove_extra_whitespaces => Strip::EachOfToken,
        preparation if preparation.add_dummy_prefix => Strip::OneOfToken,
        _ => Strip::None,
    };
    Spacing { runs: Runs::ByCharacter, strip, unknown: Some((model.unknown, model.unknown_surface.clone())) }
}

/// Control symbols, which text never becomes unless it is parsed for them.
pub(crate) fn control_tokens(model: &Model) -> Vec<AddedToken> {
    let pieces = model.pieces.iter().zip(0..).filter(|(piece, _)| piece.kind == Kind::Control);
    pieces.map(|(piece, id)| AddedToken::special(&piece.text, id)).collect()
}

impl SentencePiecePipeline {
    pub(crate) fn new(model: &Model, frame: Frame) -> Result<Self> {
        let engine = match model.algorithm {
            Algorithm::Unigram => Engine::Unigram(Unigram::new(model)),
            Algorithm::BytePair => Engine::Pairs { pairs: Pairs::new(model), ids: ids(model) },
        };
        Ok(Self {
            normalizer: Normalizer::new(model)?,
            engine,
            bytes: model.byte_fallback.then(|| bytes(model)),
            unknown: model.unknown,
            matcher: Matcher::new(control_tokens(model))?,
            spacing: spacing(model),
            frame,
        })
    }

    /// The control symbols.
    pub(crate) fn matcher(&self) -> &Matcher {
        &self.matcher
    }

    /// Appends the ids of a text.
    pub(crate) fn encode_into(
        &self,
        text: &str,
        add_special_tokens: bool,
        parse_special: bool,
        ids: &mut Vec<u32>,
    ) {
        self.each(text, add_special_tokens, parse_special, |id, _| ids.push(id));
    }

    /// The ids of a text and where they lie in it, in bytes.
    pub(crate) fn offsets(&self, text: &str, add_special_tokens: bool, parse_special: bool) -> Vec<Located> {
        let mut located = Vec::new();
        self.each(text, add_special_tokens, parse_special, |id, part| located.push((id, part)));
        located
    }

    fn each(
        &self,
        text: &str,
        add_special_tokens: bool,
        parse_special: bool,
        mut emit: impl FnMut(u32, Range<usize>),
    ) {
        let frame = |ids: &[u32], emit: &mut dyn FnMut(u32, Range<usize>)| {
            for &id in ids.iter().filter(|_| add_special_tokens) {
                emit(id, 0..0);
            }
        };
        frame(&self.frame.before, &mut emit);
        let mut done = 0;
        let _ = self.matcher.each(text, parse_special, |found| {
            self.each_of_part(text, done..found.start, &mut emit);
            emit(found.token.id, found.start..found.end);
            done = found.end;
            ControlFlow::Continue(())
        });
        self.each_of_part(text, done..text.len(), &mut emit);
        frame(&self.frame.after, &mut emit);
    }

    /// The ids of a part of the text, which is encoded as if it stood alone.
    fn each_of_part(&self, text: &str, part: Range<usize>, emit: &mut impl FnMut(u32, Range<usize>)) {
        let start = part.start;
        let prepared = self.normalizer.apply(text.get(part).unwrap_or_default());
        let origin = |place: usize| start + prepared.origins.get(place).copied().unwrap_or_default();
        let mut unknown: Option<Range<usize>> = None;
        let mut visit = |begin: usize, end: usize, id: u32| {
            let is_unknown = id == self.unknown;
            match (&mut unknown, &self.bytes) {
                (Some(run), _) if is_unknown => run.end = end,
                (None, None) if is_unknown => unknown = Some(begin..end),
                (_, Some(bytes)) if is_unknown => {
                    // The last byte stands for the character.
                    for (place, byte) in
                        (begin..).zip(prepared.text.as_bytes().get(begin..end).unwrap_or_default())
                    {
                        let last = if place + 1 == end { origin(end) } else { origin(begin) };
                        emit(bytes[usize::from(*byte)], origin(begin)..last);
                    }
                }
                _ => {
                    if let Some(run) = unknown.take() {
                        emit(self.unknown, origin(run.start)..origin(run.end));
                    }
                    emit(id, origin(begin)..origin(end));
                }
            }
        };
        match &self.engine {
            Engine::Unigram(unigram) => unigram.encode(&prepared.text, visit),
            Engine::Pairs { pairs, ids } => pairs.encode(&prepared.text, |begin, end| {
                let piece = prepared.text.as_bytes().get(begin..end).unwrap_or_default();
                visit(begin, end, ids.get(piece).copied().unwrap_or(self.unknown));
            }),
        }
        if let Some(run) = unknown {
            emit(self.unknown, origin(run.start)..origin(run.end));
        }
    }
}

/// The id of every piece: of two with the same text the one that text does not become, as in the reference.
fn ids(model: &Model) -> AHashMap<Box<[u8]>, u32> {
    let is_text = |kind| matches!(kind, Kind::Normal | Kind::UserDefined | Kind::Unused);
    let (texts, others): (Vec<_>, Vec<_>) =
        model.pieces.iter().zip(0..).partition(|(piece, _)| is_text(piece.kind));
    texts.into_iter().chain(others).map(|(piece, id)| (piece.text.as_bytes().into(), id)).collect()
}

fn bytes(model: &Model) -> Box<[u32; 256]> {
    let mut bytes = Box::new([model.unknown; 256]);
    let pieces = model.pieces.iter().zip(0..).filter(|(piece, _)| piece.kind == Kind::Byte);
    for (byte, id) in pieces.filter_map(|(piece, id)| Some((spaced::byte(&piece.text)?, id))) {
        bytes[usize::from(byte)] = id;
    }
    bytes
}
