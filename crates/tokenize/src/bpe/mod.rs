//! Byte-pair encoding of one span after another.

mod ahead;
mod encoder;
pub(crate) mod key;
mod merge;
mod pair_table;
mod pairs;
mod vocabulary;

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
    /// Whether a span that is a token becomes that token, whatever the merges say (`tokenizers`' option of that
    /// name). With [`Merges::ByRank`] this is always so, as in tiktoken.
    pub ignore_merges: bool,
}

/// Where the merges come from.
#[derive(Clone, Debug)]
pub enum Merges {
    /// tiktoken: two neighbours merge if their bytes together are a token; the lowest id merges first.
    ByRank,
    /// `tokenizers`: these pairs of ids, the first merging first.
    Pairs(Vec<(u32, u32)>),
}

/// A byte-pair model, checked when it is made. Immutable; one instance serves any number of threads.
pub struct Bpe {
    pub(crate) vocabulary: Vocabulary,
    pairs: Pairs,
    whole_tokens_first: bool,
}

impl Bpe {
    /// Checks the parts and builds the tables. O(total bytes of the tokens).
    ///
    /// # Errors
    /// Missing byte tokens, empty or duplicate tokens, duplicate or too large ids, merges of or into tokens that
    /// the vocabulary lacks: each has its case in [`TokenizeError`].
    pub fn new(parts: BpeParts) -> Result<Self, TokenizeError> {
        let BpeParts { tokens, merges, ignore_merges } = parts;
        let vocabulary = Vocabulary::new(&tokens)?;
        let (pairs, by_rank) = match merges {
            Merges::ByRank => (Pairs::by_rank(&tokens, &vocabulary), true),
            Merges::Pairs(list) => (Pairs::from_list(&list, &tokens, &vocabulary)?, false),
        };
        Ok(Self { vocabulary, pairs, whole_tokens_first: by_rank || ignore_merges })
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
        merge::merge_all(&self.pairs, &self.vocabulary, span, scratch, |id| {
            last = Some(id);
            emit(id);
        });
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
