//! Which two neighbouring tokens merge, how early, and into what.

use std::collections::HashMap;

use super::vocabulary::Vocabulary;
use crate::error::TokenizeError;

/// What a pair merges into. Lower ranks merge first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Merge {
    pub(crate) rank: u32,
    pub(crate) id: u32,
}

/// All merges, found by the ids of the two neighbours.
pub(crate) struct Pairs {
    merges: HashMap<(u32, u32), Merge>,
}

impl Pairs {
    /// Every way to cut a token into two tokens is a merge, as early as the token's id is low.
    pub(crate) fn by_rank(tokens: &[(Vec<u8>, u32)], vocabulary: &Vocabulary) -> Self {
        let mut merges = HashMap::new();
        for (bytes, id) in tokens {
            for cut in 1..bytes.len() {
                let (left, right) = bytes.split_at(cut);
                if let (Some(left), Some(right)) = (vocabulary.id(left), vocabulary.id(right)) {
                    merges.insert((left, right), Merge { rank: *id, id: *id });
                }
            }
        }
        Self { merges }
    }

    /// The pairs of a list in order of priority. Of a pair that stands there twice, the later place counts, as in
    /// the reference.
    pub(crate) fn from_list(
        pairs: &[(u32, u32)],
        tokens: &[(Vec<u8>, u32)],
        vocabulary: &Vocabulary,
    ) -> Result<Self, TokenizeError> {
        let by_id: HashMap<u32, &[u8]> = tokens.iter().map(|(bytes, id)| (*id, bytes.as_slice())).collect();
        let mut merges = HashMap::with_capacity(pairs.len());
        for (index, &(left, right)) in pairs.iter().enumerate() {
            let bytes_of = |id: u32| {
                by_id.get(&id).copied().ok_or_else(|| {
                    TokenizeError::malformed(format!(
                        "merge {index} joins ids {left} and {right}, but no token has id {id}"
                    ))
                })
            };
            let joined = [bytes_of(left)?, bytes_of(right)?].concat();
            let id = vocabulary.id(&joined).ok_or_else(|| {
                let token = String::from_utf8_lossy(&joined).into_owned();
                TokenizeError::malformed(format!(
                    "merge {index} makes {token:?}, which is not in the vocabulary"
                ))
            })?;
            merges.insert((left, right), Merge { rank: index as u32, id });
        }
        Ok(Self { merges })
    }

    #[inline]
    pub(crate) fn get(&self, left: u32, right: u32) -> Option<Merge> {
        self.merges.get(&(left, right)).copied()
    }
}
