//! Which two neighbouring tokens merge, how early, and into what.
//!
//! Looking pairs up is what a miss of the cache costs, and each look-up may be a miss of the processor's caches too.
//! So a merge takes 8 bytes, pairs of single bytes have a table of their own, and of the many ways to cut a token in
//! two only the one that can occur is kept.

use super::byte_pairs::{BytePair, BytePairs};
use super::merge::{Model, Scratch, merge_span};
pub(crate) use super::pair_table::NO_RANK;
use super::pair_table::PairTable;
use super::vocabulary::{ID_LIMIT, Vocabulary};
use crate::error::TokenizeError;

/// All merges, found by the ids of the two neighbours; lower ranks merge first.
pub(crate) struct Pairs {
    ranks: PairTable,
    of_bytes: BytePairs,
    /// Which ids are a part of a token that was put in; empty once all are.
    parts: Vec<bool>,
    made: Made,
    /// Where some ranks are worth the same: the first of them, for each rank.
    orders: Option<Box<[u32]>>,
    /// The least rank that is worth the same as another one; [`NO_RANK`] if there is none.
    first_tied: u32,
}

/// The id that each rank makes.
enum Made {
    /// The rank and this, as in most files: no look-up.
    After(u32),
    Listed(Box<[u32]>),
}

impl Made {
    fn of(ids: Vec<u32>) -> Self {
        let offset = ids.first().copied().unwrap_or(0);
        let in_order = ids.iter().zip(offset..).all(|(id, expected)| *id == expected);
        if in_order { Self::After(offset) } else { Self::Listed(ids.into_boxed_slice()) }
    }
}

/// The bytes of each id; none where no token has it.
fn by_id<'t>(tokens: &'t [(Vec<u8>, u32)], vocabulary: &Vocabulary) -> Vec<&'t [u8]> {
    let mut by_id = vec![&[][..]; vocabulary.ids()];
    for (bytes, id) in tokens {
        if let Some(slot) = by_id.get_mut(*id as usize) {
            *slot = bytes;
        }
    }
    by_id
}

impl Pairs {
    fn with_room(count: usize, made: Made, ids: usize) -> Self {
        Self {
            ranks: PairTable::with_room(count),
            of_bytes: BytePairs::new(),
            parts: vec![false; ids],
            made,
            orders: None,
            first_tied: NO_RANK,
        }
    }

    /// Puts in that `left` and `right` merge into the token `id` with these bytes, of which `left` has the first `cut`.
    /// Ranks come in ascending order.
    fn insert(&mut self, left: u32, right: u32, rank: u32, (token, cut): (&[u8], usize), id: u32) {
        self.ranks.insert(left, right, rank);
        let is_part = self.parts.get(id as usize).is_none_or(|is_part| *is_part);
        self.of_bytes.note(token, cut, rank, is_part);
        for part in [left, right] {
            if let Some(is_part) = self.parts.get_mut(part as usize) {
                *is_part = true;
            }
        }
    }

    /// Two tokens merge if their bytes together are a token, the earlier the lower its id.
    ///
    /// Where merges of lower rank alone turn the bytes of a token into two neighbours, no other two can ever make
    /// this token: whatever happens around them, its bytes go through the same merges, since always the lowest rank
    /// merges and a merge across their border would prevent the token. Of other tokens every cut is kept.
    pub(crate) fn by_rank(tokens: &[(Vec<u8>, u32)], vocabulary: &Vocabulary) -> Self {
        let mut in_order: Vec<&(Vec<u8>, u32)> = tokens.iter().filter(|(bytes, _)| bytes.len() > 1).collect();
        in_order.sort_unstable_by_key(|(_, id)| *id);
        let mut pairs = Self::with_room(in_order.len(), Made::After(0), vocabulary.ids());
        let mut scratch = Scratch::default();
        let mut ends = Vec::new();
        for (bytes, id) in in_order {
            ends.clear();
            let model = Model { pairs: &pairs, vocabulary, of_bytes: true };
            merge_span(&model, bytes, &mut scratch, |id| ends.push(id));
            if let [left, right] = ends[..] {
                pairs.insert(left, right, *id, (bytes, vocabulary.length(left)), *id);
                continue;
            }
            for cut in 1..bytes.len() {
                let (left, right) = bytes.split_at(cut);
                if let (Some(left), Some(right)) = (vocabulary.id(left), vocabulary.id(right)) {
                    pairs.insert(left, right, *id, (bytes, cut), *id);
                }
            }
        }
        pairs.parts = Vec::new();
        pairs
    }

    /// The pairs of a list in order of priority. Of a pair that stands there twice, the later place counts, as in
    /// the reference.
    pub(crate) fn from_list(
        list: &[(u32, u32)],
        tokens: &[(Vec<u8>, u32)],
        vocabulary: &Vocabulary,
    ) -> Result<Self, TokenizeError> {
        if list.len() >= ID_LIMIT as usize {
            let reason =
                format!("{} merges are too many; at most {} are supported", list.len(), ID_LIMIT - 1);
            return Err(TokenizeError::malformed(reason));
        }
        let by_id = by_id(tokens, vocabulary);
        let mut pairs = Self::with_room(list.len(), Made::After(0), vocabulary.ids());
        let mut made = Vec::with_capacity(list.len());
        let mut joined = Vec::new();
        for (index, &(left, right)) in (0..).zip(list) {
            let bytes_of = |id: u32| {
                by_id.get(id as usize).copied().filter(|bytes| !bytes.is_empty()).ok_or_else(|| {
                    TokenizeError::malformed(format!(
                        "merge {index} joins ids {left} and {right}, but no token has id {id}"
                    ))
                })
            };
            joined.clear();
            joined.extend_from_slice(bytes_of(left)?);
            let cut = joined.len();
            joined.extend_from_slice(bytes_of(right)?);
            let id = vocabulary.id(&joined).ok_or_else(|| {
                let token = String::from_utf8_lossy(&joined).into_owned();
                TokenizeError::malformed(format!(
                    "merge {index} makes {token:?}, which is not in the vocabulary"
                ))
            })?;
            pairs.insert(left, right, index, (&joined, cut), id);
            made.push(id);
        }
        pairs.made = Made::of(made);
        pairs.parts = Vec::new();
        Ok(pairs)
    }

    /// Two tokens merge if their text together is a token of `list`, which holds ids in order of priority; `orders` has
    /// for each place of the list the first place that is worth the same. Tokens begin with characters.
    ///
    /// All ways to cut a token in two are kept.
    pub(crate) fn by_score(
        list: &[u32],
        orders: Vec<u32>,
        tokens: &[(Vec<u8>, u32)],
        vocabulary: &Vocabulary,
    ) -> Self {
        let by_id = by_id(tokens, vocabulary);
        let mut pairs = Self::with_room(list.len() * 2, Made::of(list.to_vec()), vocabulary.ids());
        for (rank, id) in (0..).zip(list) {
            let bytes = by_id.get(*id as usize).copied().unwrap_or_default();
            for cut in 1..bytes.len() {
                let (left, right) = bytes.split_at(cut);
                if let (Some(left), Some(right)) = (vocabulary.id(left), vocabulary.id(right)) {
                    pairs.insert(left, right, rank, (bytes, cut), *id);
                }
            }
        }
        pairs.parts = Vec::new();
        let tied = orders.iter().enumerate().position(|(rank, order)| rank as u32 != *order);
        if let Some(order) = tied.and_then(|rank| orders.get(rank)) {
            pairs.first_tied = *order;
            pairs.orders = Some(orders.into_boxed_slice());
            pairs.of_bytes.wait();
        }
        pairs
    }

    /// Rank of the merge of two neighbours, [`NO_RANK`] if they do not merge.
    #[inline(always)]
    pub(crate) fn rank(&self, left: u32, right: u32) -> u32 {
        self.ranks.get(left, right)
    }

    /// Asks for the memory where [`Self::rank`] will look.
    #[inline(always)]
    pub(crate) fn prefetch(&self, left: u32, right: u32) {
        self.ranks.prefetch(left, right);
    }

    /// What is known of two single bytes.
    #[inline(always)]
    pub(super) fn of_bytes(&self, left: u8, right: u8) -> BytePair {
        self.of_bytes.get(left, right)
    }

    /// Whether any two ranks are worth the same.
    pub(crate) fn has_ties(&self) -> bool {
        self.first_tied != NO_RANK
    }

    /// Whether another rank may be worth the same as this one.
    #[inline(always)]
    pub(crate) fn may_tie(&self, rank: u32) -> bool {
        rank >= self.first_tied
    }

    /// What a rank is worth: of two merges the one with the lower order happens first, of equals the one further left.
    #[inline(always)]
    pub(crate) fn order(&self, rank: u32) -> u32 {
        if !self.may_tie(rank) {
            return rank;
        }
        self.orders.as_ref().and_then(|orders| orders.get(rank as usize)).copied().unwrap_or(rank)
    }

    /// The id that the merge of this rank makes.
    #[inline(always)]
    pub(crate) fn made(&self, rank: u32) -> u32 {
        match &self.made {
            Made::After(offset) => rank + offset,
            Made::Listed(ids) => ids[rank as usize],
        }
    }
}
