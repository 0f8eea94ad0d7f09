//! Which two neighbouring tokens merge, how early, and into what.
//!
//! Looking pairs up is what a miss of the cache costs, and each look-up may be a miss of the processor's caches too.
//! So a merge takes 8 bytes, pairs of single bytes have a table of their own, and of the many ways to cut a token in
//! two only the one that can occur is kept.

use std::collections::HashMap;

use super::merge::{self, Scratch};
use super::vocabulary::{ID_LIMIT, Vocabulary};
use crate::error::TokenizeError;

/// Bits of an id, and of a rank.
const BITS: u32 = ID_LIMIT.trailing_zeros();
const FIELD: u64 = (1 << BITS) - 1;
/// An empty slot. No merge looks like this: the highest bit of an entry is never set.
const EMPTY: u64 = u64::MAX;
/// No merge.
pub(crate) const NO_RANK: u32 = u32::MAX;

/// All merges, found by the ids of the two neighbours; lower ranks merge first.
pub(crate) struct Pairs {
    /// Left id, right id, rank: open addressing, a power of two long, at most half full.
    slots: Box<[u64]>,
    /// Rank of each pair of bytes, the left one counting 256, or [`NO_RANK`].
    of_bytes: Box<[u32]>,
    /// What each rank makes; `None` if ranks are the ids that they make.
    made: Option<Box<[u32]>>,
    count: usize,
}

impl Pairs {
    fn with_room(count: usize, made: Option<Box<[u32]>>) -> Self {
        let slots = (count * 2 + 16).next_power_of_two();
        let of_bytes = vec![NO_RANK; 1 << 16].into_boxed_slice();
        Self { slots: vec![EMPTY; slots].into_boxed_slice(), of_bytes, made, count: 0 }
    }

    /// Two tokens merge if their bytes together are a token, the earlier the lower its id.
    ///
    /// Where merges of lower rank alone turn the bytes of a token into two neighbours, no other two can ever make
    /// this token: whatever happens around them, its bytes go through the same merges, since always the lowest rank
    /// merges and a merge across their border would prevent the token. Of other tokens every cut is kept.
    pub(crate) fn by_rank(tokens: &[(Vec<u8>, u32)], vocabulary: &Vocabulary) -> Self {
        let mut in_order: Vec<&(Vec<u8>, u32)> = tokens.iter().filter(|(bytes, _)| bytes.len() > 1).collect();
        in_order.sort_unstable_by_key(|(_, id)| *id);
        let mut pairs = Self::with_room(in_order.len(), None);
        let mut scratch = Scratch::default();
        let mut ends = Vec::new();
        for (bytes, id) in in_order {
            ends.clear();
            merge::merge_all(&pairs, vocabulary, bytes, &mut scratch, |id| ends.push(id));
            if let [left, right] = ends[..] {
                pairs.insert(left, right, *id);
                if let [left, right] = bytes[..] {
                    pairs.of_bytes[usize::from(left) << 8 | usize::from(right)] = *id;
                }
                continue;
            }
            for cut in 1..bytes.len() {
                let (left, right) = bytes.split_at(cut);
                if let (Some(left), Some(right)) = (vocabulary.id(left), vocabulary.id(right)) {
                    pairs.insert(left, right, *id);
                }
            }
        }
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
        let by_id: HashMap<u32, &[u8]> = tokens.iter().map(|(bytes, id)| (*id, bytes.as_slice())).collect();
        let mut made = Vec::with_capacity(list.len());
        let mut joined = Vec::new();
        for (index, &(left, right)) in list.iter().enumerate() {
            let bytes_of = |id: u32| {
                by_id.get(&id).copied().ok_or_else(|| {
                    TokenizeError::malformed(format!(
                        "merge {index} joins ids {left} and {right}, but no token has id {id}"
                    ))
                })
            };
            joined.clear();
            joined.extend_from_slice(bytes_of(left)?);
            joined.extend_from_slice(bytes_of(right)?);
            made.push(vocabulary.id(&joined).ok_or_else(|| {
                let token = String::from_utf8_lossy(&joined).into_owned();
                TokenizeError::malformed(format!(
                    "merge {index} makes {token:?}, which is not in the vocabulary"
                ))
            })?);
        }
        let mut pairs = Self::with_room(list.len(), Some(made.into_boxed_slice()));
        for (rank, &(left, right)) in list.iter().enumerate() {
            pairs.insert(left, right, rank as u32);
        }
        pairs.fill_bytes(vocabulary);
        Ok(pairs)
    }

    fn insert(&mut self, left: u32, right: u32, rank: u32) {
        if self.count * 2 >= self.slots.len() {
            let larger = vec![EMPTY; self.slots.len() * 2].into_boxed_slice();
            for entry in
                std::mem::replace(&mut self.slots, larger).into_iter().filter(|entry| *entry != EMPTY)
            {
                let place = self.place(entry >> BITS);
                self.slots[place] = entry;
            }
        }
        let key = key(left, right);
        let place = self.place(key);
        self.count += usize::from(self.slots[place] == EMPTY);
        self.slots[place] = key << BITS | u64::from(rank);
    }

    fn fill_bytes(&mut self, vocabulary: &Vocabulary) {
        for left in 0..=u8::MAX {
            for right in 0..=u8::MAX {
                let rank = self.rank(vocabulary.byte_id(left), vocabulary.byte_id(right));
                self.of_bytes[usize::from(left) << 8 | usize::from(right)] = rank;
            }
        }
    }

    /// Slot of the key, or the empty slot where it would go.
    #[inline(always)]
    fn place(&self, key: u64) -> usize {
        let last = self.slots.len() - 1;
        let mut place = (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize & last;
        while self.slots[place] >> BITS != key && self.slots[place] != EMPTY {
            place = (place + 1) & last;
        }
        place
    }

    /// Rank of the merge of two neighbours, [`NO_RANK`] if they do not merge.
    #[inline(always)]
    pub(crate) fn rank(&self, left: u32, right: u32) -> u32 {
        let entry = self.slots[self.place(key(left, right))];
        if entry == EMPTY { NO_RANK } else { (entry & FIELD) as u32 }
    }

    /// [`Self::rank`] of two single bytes.
    #[inline(always)]
    pub(crate) fn rank_of_bytes(&self, left: u8, right: u8) -> u32 {
        self.of_bytes.get(usize::from(left) << 8 | usize::from(right)).copied().unwrap_or(NO_RANK)
    }

    /// The id that the merge of this rank makes.
    #[inline(always)]
    pub(crate) fn made(&self, rank: u32) -> u32 {
        self.made.as_ref().map_or(rank, |made| made[rank as usize])
    }
}

#[inline(always)]
fn key(left: u32, right: u32) -> u64 {
    u64::from(left) << BITS | u64::from(right)
}
