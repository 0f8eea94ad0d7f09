//! The most probable pieces of a text.
//!
//! Scores are added and compared with the precision of the reference, from the beginning of the text on: what is
//! equal but for rounding is decided as there. Source: `EncodeOptimized` of
//! <https://github.com/google/sentencepiece/blob/master/src/unigram_model.cc>

use super::model::{Kind, Model};
use super::trie::Trie;

/// How much worse than the worst piece the unknown one is.
const UNKNOWN_PENALTY: f32 = 10.0;
/// How good each byte of a user-defined symbol is, the first left out.
const USER_DEFINED_BONUS: f32 = 0.1;
/// Below this sum a text begins to count anew: sums this far from zero are rounded by more than scores differ.
const LOWEST_SUM: f32 = -100_000.0;
const NOWHERE: u32 = u32::MAX;

pub(crate) struct Unigram {
    trie: Trie,
    scores: Box<[f32]>,
    /// Pieces that are always taken.
    user_defined: Box<[bool]>,
    unknown: u32,
    unknown_score: f32,
}

/// The best way to a place in the text.
#[derive(Clone, Copy)]
struct Best {
    id: u32,
    start: u32,
    score: f32,
}

impl Unigram {
    pub(crate) fn new(model: &Model) -> Self {
        let pieces = &model.pieces;
        let is_text = |kind| matches!(kind, Kind::Normal | Kind::UserDefined);
        let texts = pieces.iter().zip(0..).filter(|(piece, _)| is_text(piece.kind));
        let normal = || pieces.iter().filter(|piece| piece.kind == Kind::Normal).map(|piece| piece.score);
        Self {
            trie: Trie::new(texts.map(|(piece, id)| (piece.text.as_bytes(), id)).collect()),
            scores: pieces.iter().map(|piece| piece.score).collect(),
            user_defined: pieces.iter().map(|piece| piece.kind == Kind::UserDefined).collect(),
            unknown: model.unknown,
            unknown_score: normal().fold(f32::MAX, f32::min) - UNKNOWN_PENALTY,
        }
    }

    /// The score of a piece of `length` bytes.
    fn score(&self, id: u32, length: usize) -> f32 {
        if self.user_defined.get(id as usize).copied().unwrap_or(false) {
            // Better than any piece that was learned, whose score is the logarithm of a probability.
            return USER_DEFINED_BONUS * (length.saturating_sub(1)) as f32;
        }
        self.scores.get(id as usize).copied().unwrap_or(0.0)
    }

    /// Calls `emit` with the pieces of a text in order: where each begins and ends, and its id. O(length × the length
    /// of the longest piece).
    pub(crate) fn encode(&self, text: &str, mut emit: impl FnMut(usize, usize, u32)) {
        let mut best = vec![Best { id: 0, start: NOWHERE, score: 0.0 }; text.len() + 1];
        let (bytes, mut reached) = (text.as_bytes(), 0);
        for (start, character) in text.char_indices() {
            let width = character.len_utf8();
            let sum = best.get(start).map_or(0.0, |best| best.score);
            if sum < LOWEST_SUM {
                for open in best.get_mut(start..=reached).unwrap_or_default() {
                    open.score -= sum;
                }
            }
            let before = best.get(start).map_or(0.0, |best| best.score);
            let mut is_known = false;
            let mut offer = |end: usize, id: u32, score: f32| {
                let Some(held) = best.get_mut(end) else { return };
                reached = reached.max(end);
                let score = score + before;
                if held.start == NOWHERE || score > held.score {
                    *held = Best { id, start: start as u32, score };
                }
            };
            self.trie.each(bytes.get(start..).unwrap_or_default(), |length, id| {
                offer(start + length, id, self.score(id, length));
                is_known |= length == width;
            });
            if !is_known {
                offer(start + width, self.unknown, self.unknown_score);
            }
        }
        let mut path = Vec::new();
        let mut end = text.len();
        while let Some(step) = best.get(end).filter(|step| end > 0 && step.start != NOWHERE) {
            path.push((step.start as usize, end, step.id));
            end = step.start as usize;
        }
        path.into_iter().rev().for_each(|(start, end, id)| emit(start, end, id));
    }
}
