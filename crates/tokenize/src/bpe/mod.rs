//! Byte-pair encoding of one span after another.

mod ahead;
mod encoder;
pub(crate) mod key;
mod long;
mod merge;
mod pair_table;
mod pairs;
mod vocabulary;
mod window;

pub use encoder::{BytePairEncoder, TokenSpan};

use crate::error::TokenizeError;
use key::Key;
pub(crate) use merge::Scratch;
use pairs::Pairs;
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
        let order = before.filter(|((_, other), _)| other == score).map_or(place as u32, |(_, order)| *order);
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

    /// Hands the ids of one span to `emit`, in order.
    pub(crate) fn encode_span(&self, span: &[u8], scratch: &mut Scratch, mut emit: impl FnMut(u32)) {
        let whole = self.vocabulary.id(span);
        if let Some(id) = whole
            && (self.whole_tokens_first || self.vocabulary.is_confirmed(id))
        {
            emit(id);
            return;
        }
        let mut last = None;
        let emit = |id| {
            last = Some(id);
            emit(id);
        };
        // In ASCII text every byte is a character.
        if self.begins_with == Symbols::Bytes || span.is_ascii() {
            merge::merge_bytes(&self.pairs, &self.vocabulary, span, scratch, emit);
        } else {
            merge::merge_characters(&self.pairs, &self.vocabulary, span, scratch, emit);
        }
        // No two tokens have the same bytes: if the last id is that of the whole span, it is the only one.
        if let Some(id) = whole
            && last == whole
        {
            self.vocabulary.confirm(id);
        }
    }

    /// Asks for the memory where [`Self::encode_span`] will look for the span with this key.
    #[inline(always)]
    pub(crate) fn prefetch(&self, key: Key) {
        self.vocabulary.prefetch(key);
    }

    /// Length in bytes of the token `id`, 0 if there is none.
    pub(crate) fn token_length(&self, id: u32) -> usize {
        self.vocabulary.length(id)
    }
}
