//! Byte-pair encoding of one span after another.

pub(crate) mod ahead;
mod byte_pairs;
mod encoder;
mod few;
mod join;
pub(crate) mod key;
mod long;
mod memo;
mod merge;
mod next_merge;
pub(crate) mod pair_table;
mod pairs;
#[cfg(test)]
mod random_models;
mod symbols;
pub(crate) mod together;
pub(crate) mod token_table;
mod vocabulary;
mod window;

pub use encoder::{BytePairEncoder, TokenSpan};

use crate::error::TokenizeError;
pub(crate) use few::FEW;
use merge::Model;
pub(crate) use merge::{ABREAST, Scratch};
use pairs::Pairs;
use token_table::TokenTable;
pub(crate) use vocabulary::ID_LIMIT;
use vocabulary::Vocabulary;

/// What a byte-level BPE model is made of.
#[derive(Clone, Debug)]
pub struct BpeParts {
    /// Each token's bytes and id. All 256 single bytes must be there; special tokens must not.
    pub tokens: Vec<(Vec<u8>, u32)>,
    /// Which tokens merge, and in which order.
    pub merges: Merges,
    /// What merging begins with.
    pub begins_with: Symbols,
    /// Whether a span that is a token becomes that token, whatever the merges say (`tokenizers`' option of that
    /// name). With [`Merges::ByRank`] this is always so, as in tiktoken.
    pub ignore_merges: bool,
}

/// What the first symbols of a text are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Symbols {
    /// Its bytes: byte-level vocabularies.
    #[default]
    Bytes,
    /// Its characters, or the bytes of a character that is no token: SentencePiece's vocabularies.
    Characters,
}

/// Where the merges come from.
#[derive(Clone, Debug)]
pub enum Merges {
    /// tiktoken: two neighbours merge if their bytes together are a token; the lowest id merges first.
    ByRank,
    /// `tokenizers`: these pairs of ids, the first merging first.
    Pairs(Vec<(u32, u32)>),
    /// SentencePiece: two neighbours merge if their text together is one of these tokens; the highest score merges
    /// first, of equal ones the one further left.
    ByScore(Vec<(u32, f32)>),
}

/// A byte-pair model, checked when it is made. Immutable; one instance serves any number of threads.
pub struct Bpe {
    pub(crate) vocabulary: Vocabulary,
    pairs: Pairs,
    whole_tokens_first: bool,
    begins_with: Symbols,
}

/// The ids by falling score, and for each of them the first place with an equal score.
fn in_order(mut scores: Vec<(u32, f32)>) -> (Vec<u32>, Vec<u32>) {
    scores.sort_by(|first, second| second.1.total_cmp(&first.1));
    let mut orders: Vec<u32> = Vec::with_capacity(scores.len());
    for (place, (_, score)) in scores.iter().enumerate() {
        let before = place.checked_sub(1).and_then(|before| Some((scores.get(before)?, orders.get(before)?)));
        let order = before
            .filter(|((_, other), _)| other.total_cmp(score).is_eq())
            .map_or(place as u32, |(_, order)| *order);
        orders.push(order);
    }
    (scores.into_iter().map(|(id, _)| id).collect(), orders)
}

impl Bpe {
    /// Checks the parts and builds the tables. O(total bytes of the tokens).
    ///
    /// # Errors
    /// Missing byte tokens, empty or duplicate tokens, duplicate or too large ids, merges of or into tokens that
    /// the vocabulary lacks: each has its case in [`TokenizeError`].
    pub fn new(parts: BpeParts) -> Result<Self, TokenizeError> {
        let BpeParts { tokens, merges, begins_with, ignore_merges } = parts;
        let vocabulary = Vocabulary::new(&tokens)?;
        let (pairs, by_rank) = match merges {
            Merges::ByRank => (Pairs::by_rank(&tokens, &vocabulary), true),
            Merges::Pairs(list) => (Pairs::from_list(&list, &tokens, &vocabulary)?, false),
            Merges::ByScore(scores) => {
                let (ids, orders) = in_order(scores);
                (Pairs::by_score(&ids, orders, &tokens, &vocabulary), false)
            }
        };
        Ok(Self { vocabulary, pairs, whole_tokens_first: by_rank || ignore_merges, begins_with })
    }

    /// Short tokens, for spans that become the token that they are, if [`Self::is_whole`] says so.
    #[inline(always)]
    pub(crate) fn tokens(&self) -> &TokenTable {
        self.vocabulary.short()
    }

    /// Whether a span that is this token becomes this token, as far as it is known.
    #[inline(always)]
    pub(crate) fn is_whole(&self, id: u32) -> bool {
        self.whole_tokens_first || self.vocabulary.is_confirmed(id)
    }

    /// The id of a span that is known to become a single one.
    pub(crate) fn whole(&self, span: &[u8]) -> Option<u32> {
        self.vocabulary.id(span).filter(|id| self.is_whole(*id))
    }

    /// Hands the ids of one span to `emit`, in order.
    pub(crate) fn encode_span(&self, span: &[u8], scratch: &mut Scratch, ids: &mut Vec<u32>) {
        if let Some(id) = self.whole(span) {
            ids.push(id);
            return;
        }
        let start = ids.len();
        merge::merge_span(&self.model(), span, scratch, |id| ids.push(id));
        self.learn(&ids[start..]);
    }

    /// Merges up to [`ABREAST`] spans that are each no longer than [`FEW`] bytes and not known to be [`Self::whole`];
    /// hands the place of each among them and its ids to `emit`, in order.
    pub(crate) fn encode_abreast<'s>(
        &self,
        spans: impl Iterator<Item = &'s [u8]>,
        scratch: &mut Scratch,
        mut emit: impl FnMut(usize, &[u32]),
    ) {
        let mut ids = [0; FEW];
        merge::merge_abreast(&self.model(), spans, &mut scratch.few, |place, few| {
            let mut count = 0;
            for (slot, id) in ids.iter_mut().zip(few.ids()) {
                *slot = id;
                count += 1;
            }
            self.learn(&ids[..count]);
            emit(place, &ids[..count]);
        });
    }

    #[inline]
    fn model(&self) -> Model<'_> {
        let of_bytes = self.begins_with == Symbols::Bytes;
        Model { pairs: &self.pairs, vocabulary: &self.vocabulary, of_bytes }
    }

    /// Notes what merging a span gave: a single id is the token that the span is, since no two have the same bytes.
    fn learn(&self, ids: &[u32]) {
        if let [id] = *ids {
            self.vocabulary.confirm(id);
        }
    }

    /// Length in bytes of the token `id`, 0 if there is none.
    pub(crate) fn token_length(&self, id: u32) -> usize {
        self.vocabulary.length(id)
    }
}
