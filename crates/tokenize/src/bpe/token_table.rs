//! Short tokens → id, at one cache line a look-up.

use super::key::Key;
use crate::hot::{Entry, LONGEST};
use crate::kernels::{Table, prefetch};

/// Tokens in one cache line.
const WIDTH: usize = 4;

/// One cache line; places are taken from the first on.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Bucket {
    entries: [Entry; WIDTH],
}

/// Tokens of up to [`LONGEST`] bytes. Half of the places are free, and what finds its bucket full goes to the next one.
pub(crate) struct TokenTable {
    buckets: Table<Bucket>,
}

impl TokenTable {
    /// The longest token that it takes.
    pub(crate) const LONGEST: usize = LONGEST;

    /// A table for at most so many tokens.
    pub(crate) fn with_room(tokens: usize) -> Self {
        Self { buckets: Table::zeroed(tokens / (WIDTH / 2) + 1) }
    }

    /// Where the search for the key begins.
    #[inline(always)]
    fn place(&self, key: Key) -> usize {
        // 32 bits of hash, scaled to the number of buckets, which is below 2^32.
        ((key.hash() as u64 * self.buckets.len() as u64) >> 32) as usize
    }

    #[inline(always)]
    fn after(&self, place: usize) -> usize {
        if place + 1 < self.buckets.len() { place + 1 } else { 0 }
    }

    /// Asks for the memory where [`Self::get`] will look.
    #[inline(always)]
    pub(crate) fn prefetch(&self, key: Key) {
        if let Some(bucket) = self.buckets.get(self.place(key)) {
            prefetch(bucket);
        }
    }

    /// A single id as tables of spans hold it, the number of ids in the highest byte; 0 if there is no such token.
    #[inline(always)]
    pub(crate) fn get(&self, key: Key) -> u32 {
        let mut place = self.place(key);
        while let Some(bucket) = self.buckets.get(place) {
            let found = bucket.entries.iter().fold(0, |found, entry| found | entry.value_of(key));
            if found != 0 || bucket.entries[WIDTH - 1].is_empty() {
                return found;
            }
            place = self.after(place);
        }
        0
    }

    /// Adds a token with this value; the value that it had before if it was there already, which then stays.
    pub(crate) fn insert(&mut self, key: Key, value: u32) -> Option<u32> {
        let before = self.get(key);
        if before != 0 {
            return Some(before);
        }
        let entry = Entry::new(key, value)?;
        let mut place = self.place(key);
        while let Some(bucket) = self.buckets.get_mut(place) {
            if let Some(free) = bucket.entries.iter_mut().find(|entry| entry.is_empty()) {
                *free = entry;
                break;
            }
            place = self.after(place);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bpe::key::key_of;

    #[test]
    fn as_many_as_it_was_made_for_are_found_and_no_others() {
        for count in [1_u32, 2, 7, 1000] {
            let mut table = TokenTable::with_room(count as usize);
            let token = |number: u32| number.to_string();
            for number in 0..count {
                assert_eq!(table.insert(key_of(token(number).as_bytes()), 1 << 24 | number), None);
            }
            for number in 0..count {
                assert_eq!(table.get(key_of(token(number).as_bytes())), 1 << 24 | number);
                assert_eq!(table.insert(key_of(token(number).as_bytes()), 7), Some(1 << 24 | number));
            }
            for number in count..2 * count {
                assert_eq!(table.get(key_of(token(number).as_bytes())), 0);
            }
            assert_eq!(table.get(key_of(b"twelve bytes")), 0);
        }
    }

    #[test]
    fn crowded_buckets_spill_around_the_end() {
        let mut table = TokenTable::with_room(20);
        let last = table.buckets.len() - 1;
        let crowd: Vec<_> = (0_u32..)
            .map(|number| key_of(&number.to_le_bytes()))
            .filter(|key| table.place(*key) == last)
            .take(20)
            .collect();
        for (value, key) in (1..).zip(&crowd) {
            table.insert(*key, value);
        }
        for (value, key) in (1..).zip(&crowd) {
            assert_eq!(table.get(*key), value);
        }
    }
}
