//! A SentencePiece model file: pieces with scores, and how text is prepared.
//!
//! Source: `sentencepiece_model.proto` of <https://github.com/google/sentencepiece>

use ahash::AHashSet;

use super::message::{Value, each_field};
use crate::error::{Result, TokenizeError};
use crate::load::spaced;

/// What a piece is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

#[derive(Clone, Debug)]
pub(crate) struct Piece {
    pub(crate) text: String,
    pub(crate) score: f32,
    pub(crate) kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Algorithm {
    Unigram,
    BytePair,
}

/// What is done to a text before it is cut into pieces.
#[derive(Clone, Debug)]
#[allow(clippy::struct_excessive_bools)] // the file's own switches
pub(crate) struct Preparation {
    pub(crate) characters: Vec<u8>,
    pub(crate) add_dummy_prefix: bool,
    pub(crate) remove_extra_whitespaces: bool,
    pub(crate) escape_whitespaces: bool,
    pub(crate) whitespace_as_suffix: bool,
}

/// A model, checked as the reference checks it.
#[derive(Clone, Debug)]
pub(crate) struct Model {
    /// By id.
    pub(crate) pieces: Vec<Piece>,
    pub(crate) algorithm: Algorithm,
    pub(crate) preparation: Preparation,
    pub(crate) byte_fallback: bool,
    /// The piece for what has no piece.
    pub(crate) unknown: u32,
    /// What that piece is shown as.
    pub(crate) unknown_surface: String,
    pub(crate) begin: Option<u32>,
    pub(crate) end: Option<u32>,
}

fn malformed(reason: impl std::fmt::Display) -> TokenizeError {
    TokenizeError::malformed(format!("SentencePiece model: {reason}"))
}

/// What a file says before it is checked.
struct File {
    model: Model,
    model_type: u64,
    begin: String,
    end: String,
    denormalizes: bool,
}

impl Model {
    /// Reads and checks the content of a file.
    pub(crate) fn read(content: &[u8]) -> Result<Self> {
        let mut file = File {
            model: Self {
                pieces: Vec::new(),
                algorithm: Algorithm::Unigram,
                preparation: Preparation {
                    characters: Vec::new(),
                    add_dummy_prefix: true,
                    remove_extra_whitespaces: true,
                    escape_whitespaces: true,
                    whitespace_as_suffix: false,
                },
                byte_fallback: false,
                unknown: 0,
                unknown_surface: " \u{2047} ".to_owned(),
                begin: None,
                end: None,
            },
            model_type: 1,
            begin: "<s>".to_owned(),
            end: "</s>".to_owned(),
            denormalizes: false,
        };
        each_field(content, |number, value| match number {
            1 => {
                let piece = piece(value.bytes("pieces")?, file.model.pieces.len())?;
                file.model.pieces.push(piece);
                Ok(())
            }
            2 => file.trainer(value.bytes("trainer_spec")?),
            3 => file.normalizer(value.bytes("normalizer_spec")?),
            5 => file.denormalizer(value.bytes("denormalizer_spec")?),
            _ => Ok(()),
        })?;
        file.checked()
    }
}

fn piece(message: &[u8], id: usize) -> Result<Piece> {
    let mut piece = Piece { text: String::new(), score: 0.0, kind: Kind::Normal };
    each_field(message, |number, value| {
        match number {
            1 => value.text("piece")?.clone_into(&mut piece.text),
            2 => piece.score = value.float("score")?,
            3 => {
                piece.kind = match value.number("type")? {
                    1 => Kind::Normal,
                    2 => Kind::Unknown,
                    3 => Kind::Control,
                    4 => Kind::UserDefined,
                    5 => Kind::Unused,
                    6 => Kind::Byte,
                    other => {
                        return Err(malformed(format!("piece {id} has the type {other}; 1 to 6 are known")));
                    }
                }
            }
            _ => {}
        }
        Ok(())
    })?;
    if piece.text.is_empty() {
        return Err(malformed(format!("piece {id} is empty; is this a SentencePiece model?")));
    }
    if piece.score.is_nan() {
        return Err(malformed(format!("piece {id}, {:?}, has a score that is no number", piece.text)));
    }
    Ok(piece)
}

impl File {
    fn trainer(&mut self, message: &[u8]) -> Result<()> {
        each_field(message, |number, value| {
            match number {
                3 => self.model_type = value.number("model_type")?,
                24 => {
                    self.model.preparation.whitespace_as_suffix = value.flag("treat_whitespace_as_suffix")?;
                }
                35 => self.model.byte_fallback = value.flag("byte_fallback")?,
                44 => value.text("unk_surface")?.clone_into(&mut self.model.unknown_surface),
                46 => value.text("bos_piece")?.clone_into(&mut self.begin),
                47 => value.text("eos_piece")?.clone_into(&mut self.end),
                _ => {}
            }
            Ok(())
        })
    }

    fn normalizer(&mut self, message: &[u8]) -> Result<()> {
        let preparation = &mut self.model.preparation;
        each_field(message, |number, value: Value<'_>| {
            match number {
                2 => preparation.characters = value.bytes("precompiled_charsmap")?.to_vec(),
                3 => preparation.add_dummy_prefix = value.flag("add_dummy_prefix")?,
                4 => preparation.remove_extra_whitespaces = value.flag("remove_extra_whitespaces")?,
                5 => preparation.escape_whitespaces = value.flag("escape_whitespaces")?,
                _ => {}
            }
            Ok(())
        })
    }

    fn denormalizer(&mut self, message: &[u8]) -> Result<()> {
        each_field(message, |number, value| {
            self.denormalizes |= number == 2 && !value.bytes("precompiled_charsmap")?.is_empty();
            Ok(())
        })
    }

    fn checked(mut self) -> Result<Model> {
        self.model.algorithm = match self.model_type {
            1 => Algorithm::Unigram,
            2 => Algorithm::BytePair,
            other => {
                return Err(malformed(format!("the model type {other}; 1 (unigram) and 2 (BPE) are served")));
            }
        };
        if self.denormalizes {
            return Err(malformed("it changes characters when it decodes, which is not served"));
        }
        let pieces = &self.model.pieces;
        let mut unknown = pieces.iter().zip(0..).filter(|(piece, _)| piece.kind == Kind::Unknown);
        let (Some((_, id)), None) = (unknown.next(), unknown.next()) else {
            return Err(malformed(
                "there must be one piece for what is unknown (usually <unk>), not none or several",
            ));
        };
        self.model.unknown = id;
        check_texts(pieces)?;
        check_bytes(pieces, self.model.byte_fallback)?;
        let control = |text: &str| {
            let mut found = pieces.iter().zip(0..).filter(|(piece, _)| piece.kind == Kind::Control);
            found.find(|(piece, _)| piece.text == text).map(|(_, id)| id)
        };
        (self.model.begin, self.model.end) = (control(&self.begin), control(&self.end));
        Ok(self.model)
    }
}

/// No two pieces that text can become have the same text, nor two others.
fn check_texts(pieces: &[Piece]) -> Result<()> {
    let mut seen = AHashSet::with_capacity(pieces.len());
    for piece in pieces {
        let is_text = matches!(piece.kind, Kind::Normal | Kind::UserDefined | Kind::Unused);
        if !seen.insert((is_text, piece.text.as_str())) {
            return Err(malformed(format!("the piece {:?} is there twice", piece.text)));
        }
    }
    Ok(())
}

fn check_bytes(pieces: &[Piece], byte_fallback: bool) -> Result<()> {
    let mut found = [false; 256];
    for piece in pieces.iter().filter(|piece| piece.kind == Kind::Byte) {
        if !byte_fallback {
            return Err(malformed(format!("there is the byte piece {:?} without byte_fallback", piece.text)));
        }
        let Some(byte) = spaced::byte(&piece.text) else {
            return Err(malformed(format!(
                "{:?} is no byte piece; they go from <0x00> to <0xFF>",
                piece.text
            )));
        };
        if let Some(found) = found.get_mut(usize::from(byte)) {
            *found = true;
        }
    }
    match found.iter().position(|found| !found) {
        Some(byte) if byte_fallback => {
            Err(malformed(format!("byte_fallback needs a piece for each byte; 0x{byte:02X} has none")))
        }
        _ => Ok(()),
    }
}
