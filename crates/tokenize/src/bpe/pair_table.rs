//! Two ids → rank, at one cache line a look-up and without a branch that depends on what is looked up.

use std::collections::HashMap;

use super::vocabulary::ID_LIMIT;
use crate::kernels::{Table, prefetch};

/// Bits of an id.
const ID_BITS: u32 = ID_LIMIT.trailing_zeros();
const KEY_BITS: u32 = 2 * ID_BITS;
/// At least so many bits of a key choose its bucket, so that the others fit a tag.
const LEAST_BUCKET_BITS: u32 = KEY_BITS - u32::BITS;
/// Merges of a bucket.
const WIDTH: usize = 8;
/// Odd, so that multiplying modulo a power of two loses nothing; its bits have no pattern.
const SCRAMBLE: u64 = 0x9e37_79b9_7f4a_7c15;

/// In the first value of a bucket: some of what belongs here lies elsewhere.
const SPILLED: u32 = 1 << 31;

/// One cache line. Places are taken from the first on.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(crate) struct Bucket {
    tags: [u32; WIDTH],
    /// Ranks, counted from 1; 0 where a place is free. Beside the first may stand [`SPILLED`].
    values: [u32; WIDTH],
}

/// A table whose buckets hold three merges on average. What finds its bucket full goes to a map of its own: of merges
/// as they are trained one in a thousand, of merges made to collide all of them, at the cost of a map.
pub(crate) struct PairTable {
    buckets: Table<Bucket>,
    /// How far a scrambled key is shifted to give its bucket.
    shift: u32,
    overflow: HashMap<u64, u32>,
}

/// Where a pair of ids belongs.
struct Place {
    key: u64,
    bucket: usize,
    tag: u32,
}

impl PairTable {
    /// A table for about `count` pairs; more are possible, and slower.
    pub(crate) fn with_room(count: usize) -> Self {
        let bits = (count / 3).next_power_of_two().ilog2().clamp(LEAST_BUCKET_BITS, KEY_BITS - ID_BITS);
        Self { buckets: Table::zeroed(1 << bits), shift: KEY_BITS - bits, overflow: HashMap::new() }
    }

    /// The scrambled key is as unique as the key: its upper bits are the bucket, the rest is the tag.
    #[inline(always)]
    fn place(&self, left: u32, right: u32) -> Place {
        debug_assert!(left < ID_LIMIT && right < ID_LIMIT);
        let key = u64::from(left) << ID_BITS | u64::from(right);
        let scrambled = key.wrapping_mul(SCRAMBLE) & ((1 << KEY_BITS) - 1);
        let tag = scrambled & ((1 << self.shift) - 1);
        Place { key, bucket: (scrambled >> self.shift) as usize, tag: tag as u32 }
    }

    /// Gives the pair a rank; one that it had is forgotten. Both ids and the rank must be below [`ID_LIMIT`].
    pub(crate) fn insert(&mut self, left: u32, right: u32, rank: u32) {
        let Place { key, bucket, tag } = self.place(left, right);
        let Some(bucket) = self.buckets.get_mut(bucket) else { return };
        let mut places = bucket.tags.iter_mut().zip(&mut bucket.values);
        if let Some((held, value)) = places.find(|(held, value)| **value & !SPILLED == 0 || **held == tag) {
            *held = tag;
            *value = *value & SPILLED | (rank + 1);
        } else {
            bucket.values[0] |= SPILLED;
            self.overflow.insert(key, rank);
        }
    }

    /// Asks for the memory where [`Self::get`] will look.
    #[inline(always)]
    pub(crate) fn prefetch(&self, left: u32, right: u32) {
        if let Some(bucket) = self.buckets.get(self.place(left, right).bucket) {
            prefetch(bucket);
        }
    }

    /// The rank of the pair, or [`NO_RANK`].
    #[inline(always)]
    pub(crate) fn get(&self, left: u32, right: u32) -> u32 {
        let Place { key, bucket, tag } = self.place(left, right);
        let Some(bucket) = self.buckets.get(bucket) else { return NO_RANK };
        // At most one place has this tag and a rank. Whether one has cannot be guessed, so there is no branch on it: the
        // only one asks whether the pair is neither here nor certain not to be elsewhere.
        let held = bucket.tags.iter().zip(&bucket.values);
        let whole = !bucket.values[0] & SPILLED;
        let found = held.fold(whole, |found, (held, value)| found | if *held == tag { *value } else { 0 });
        if found == 0 {
            return self.overflow.get(&key).copied().unwrap_or(NO_RANK);
        }
        (found & !SPILLED).wrapping_sub(1)
    }
}

/// No merge.
pub(crate) const NO_RANK: u32 = u32::MAX;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_back_what_was_put_in_however_full_it_is() {
        let ids = [0, 1, 2, 3, 77, 1 << 14, ID_LIMIT - 2, ID_LIMIT - 1];
        let pairs = || ids.iter().flat_map(|left| ids.iter().map(|right| (*left, *right)));
        let mut table = PairTable::with_room(0);
        assert!(pairs().all(|(left, right)| table.get(left, right) == NO_RANK));
        for (rank, (left, right)) in pairs().enumerate() {
            table.insert(left, right, rank as u32);
        }
        table.insert(0, 0, ID_LIMIT - 1);
        for (rank, (left, right)) in pairs().enumerate().skip(1) {
            assert_eq!(table.get(left, right), rank as u32);
        }
        assert_eq!(table.get(0, 0), ID_LIMIT - 1);
        assert_eq!(table.get(0, 4), NO_RANK);
    }

    #[test]
    fn pairs_of_one_bucket_overflow_and_are_found() {
        let mut table = PairTable::with_room(0);
        let bucket = table.place(5, 5).bucket;
        let colliding: Vec<(u32, u32)> = (0..ID_LIMIT)
            .map(|right| (9, right))
            .filter(|&(left, right)| table.place(left, right).bucket == bucket)
            .take(30)
            .collect();
        assert_eq!(colliding.len(), 30);
        let (present, absent) = colliding.split_at(20);
        for (rank, &(left, right)) in present.iter().enumerate() {
            table.insert(left, right, rank as u32);
            table.insert(left, right, rank as u32 + 100);
        }
        assert_eq!(table.overflow.len(), 12);
        for (rank, &(left, right)) in present.iter().enumerate() {
            assert_eq!(table.get(left, right), rank as u32 + 100);
        }
        assert!(absent.iter().all(|&(left, right)| table.get(left, right) == NO_RANK));
    }
}
