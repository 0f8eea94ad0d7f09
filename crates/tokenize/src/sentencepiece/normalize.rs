//! Text as a model's pieces are written in it, and where each byte of it came from.

use super::characters::CharacterMap;
use super::model::{Kind, Model};
use super::trie::Trie;
use crate::error::Result;
use crate::load::spaced::MARK;

pub(crate) struct Normalizer {
    characters: Option<CharacterMap>,
    /// Texts that are left as they are.
    kept: Trie,
    /// What stands for a space.
    space: &'static str,
    prefix: bool,
    suffix: bool,
    removes_extra: bool,
}

/// A prepared text.
#[derive(Debug, Default)]
pub(crate) struct Prepared {
    pub(crate) text: String,
    /// For each byte, and for the end, the place in the text as it came.
    pub(crate) origins: Vec<usize>,
}

impl Prepared {
    fn push(&mut self, text: &str, origin: usize) {
        self.text.push_str(text);
        self.origins.resize(self.text.len(), origin);
    }
}

/// All user-defined symbols: they are found before anything else.
pub(super) fn user_defined(model: &Model) -> Trie {
    let pieces = model.pieces.iter().zip(0..).filter(|(piece, _)| piece.kind == Kind::UserDefined);
    Trie::new(pieces.map(|(piece, id)| (piece.text.as_bytes(), id)).collect())
}

impl Normalizer {
    pub(crate) fn new(model: &Model) -> Result<Self> {
        let preparation = &model.preparation;
        Ok(Self {
            characters: CharacterMap::read(&preparation.characters)?,
            kept: user_defined(model),
            space: if preparation.escape_whitespaces { "\u{2581}" } else { " " },
            prefix: preparation.add_dummy_prefix && !preparation.whitespace_as_suffix,
            suffix: preparation.add_dummy_prefix && preparation.whitespace_as_suffix,
            removes_extra: preparation.remove_extra_whitespaces,
        })
    }

    /// What the beginning of a text becomes, and how long that beginning is.
    fn first<'r>(&'r self, text: &'r str) -> (&'r str, usize) {
        let kept =
            self.kept.longest(text.as_bytes()).and_then(|(length, _)| Some((text.get(..length)?, length)));
        let rule = || self.characters.as_ref()?.longest(text);
        kept.or_else(rule).unwrap_or_else(|| {
            let length = text.chars().next().map_or(0, char::len_utf8);
            (text.get(..length).unwrap_or_default(), length)
        })
    }

    /// O(length), for rules of bounded length.
    pub(crate) fn apply(&self, text: &str) -> Prepared {
        let (mut prepared, mut rest) = (Prepared::default(), text);
        let place = |rest: &str| text.len() - rest.len();
        while self.removes_extra && !rest.is_empty() {
            let (" ", length) = self.first(rest) else { break };
            rest = rest.get(length..).unwrap_or_default();
        }
        if rest.is_empty() {
            prepared.origins.push(place(rest));
            return prepared;
        }
        prepared.text.reserve(text.len() + text.len() / 2);
        prepared.origins.reserve(text.len() + text.len() / 2);
        if self.prefix {
            prepared.push(self.space, place(rest));
        }
        let mut after_space = self.removes_extra;
        while !rest.is_empty() {
            let (mut becomes, length) = self.first(rest);
            if after_space {
                becomes = becomes.trim_start_matches(' ');
            }
            if !becomes.is_empty() {
                for part in becomes.split_inclusive(' ') {
                    let word = part.strip_suffix(' ');
                    prepared.push(word.unwrap_or(part), place(rest));
                    if word.is_some() {
                        prepared.push(self.space, place(rest));
                    }
                }
                after_space = becomes.ends_with(' ');
            }
            rest = rest.get(length..).unwrap_or_default();
            after_space &= self.removes_extra;
        }
        let mut end = text.len();
        while self.removes_extra && prepared.text.ends_with(self.space) {
            let length = prepared.text.len() - self.space.len();
            end = prepared.origins.get(length).copied().unwrap_or(end);
            prepared.text.truncate(length);
            prepared.origins.truncate(length);
        }
        if self.suffix {
            prepared.push(self.space, end);
        }
        prepared.origins.push(end);
        prepared
    }

    /// Whether a space becomes a mark and a mark stays one, all else stays as it is, and nothing is taken away.
    pub(crate) fn only_marks_spaces(&self) -> bool {
        self.characters.is_none() && !self.removes_extra && !self.suffix && self.space.starts_with(MARK)
    }

    /// Whether a space is put before every text.
    pub(crate) fn puts_prefix(&self) -> bool {
        self.prefix
    }
}
