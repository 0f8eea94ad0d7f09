//! The first level of the cache: 16 bytes a span.

use crate::bpe::key::Key;

/// Spans of up to eleven bytes: the bytes, the length, the number of ids and the first id. Each hash has one place.
pub(crate) struct HotTable {
    entries: Box<[Entry]>,
}

/// A key in whose unused bits stand the first id (24 bits) and the number of ids (8 bits).
#[derive(Clone, Copy, Default)]
#[repr(C, align(16))]
pub(crate) struct Entry {
    low: u64,
    high: u64,
}

/// The longest span in bytes.
pub(crate) const LONGEST: usize = 11;
/// Where an entry's second half has the value: 32 bits, from this one on.
pub(crate) const VALUE_SHIFT: u32 = 24;
pub(crate) const VALUE: u64 = 0xffff_ffff << VALUE_SHIFT;

impl HotTable {
    /// A table of `entries`, a power of two.
    pub(crate) fn new(entries: usize) -> Self {
        Self { entries: vec![Entry::default(); entries.next_power_of_two()].into_boxed_slice() }
    }

    /// All entries, a power of two.
    #[inline(always)]
    pub(crate) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    #[inline(always)]
    fn place(&self, key: Key) -> usize {
        key.hash() & (self.entries.len() - 1)
    }

    /// The number of ids in the highest byte and the first id below; 0 where the span is not known.
    #[inline(always)]
    pub(crate) fn get(&self, key: Key) -> u32 {
        self.entries.get(self.place(key)).map_or(0, |entry| entry.value_of(key))
    }

    /// Remembers `value`, as [`Self::get`] returns it, unless the span is too long.
    #[inline(always)]
    pub(crate) fn insert(&mut self, key: Key, value: u32) {
        let place = self.place(key);
        if let (Some(slot), Some(entry)) = (self.entries.get_mut(place), Entry::new(key, value)) {
            *slot = entry;
        }
    }
}

impl Entry {
    /// `None` if the span is longer than [`LONGEST`].
    #[inline(always)]
    pub(crate) fn new(key: Key, value: u32) -> Option<Self> {
        let (low, high) = key.halves();
        (high >> 56 <= LONGEST as u64).then_some(Self { low, high: high | u64::from(value) << VALUE_SHIFT })
    }

    /// The value, or 0 if this is another span's entry.
    #[inline(always)]
    pub(crate) fn value_of(&self, key: Key) -> u32 {
        let (low, high) = key.halves();
        // A longer key has bits where entries have the value: it equals none of them. One comparison, no branch:
        // whether a span is known cannot be guessed.
        let differing = (self.low ^ low) | (self.high & !VALUE ^ high);
        if differing == 0 { (self.high >> VALUE_SHIFT) as u32 } else { 0 }
    }

    /// Whether this is no span's entry.
    #[inline(always)]
    pub(crate) fn is_empty(&self) -> bool {
        self.high == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bpe::key::key_of;

    #[test]
    fn tells_spans_apart_and_leaves_long_ones_out() {
        let mut table = HotTable::new(1);
        for length in 1..=15 {
            let span = &b"abcdefghijklmno"[..length];
            assert_eq!(table.get(key_of(span)), 0);
            table.insert(key_of(span), 0x0102_0304);
            assert_eq!(table.get(key_of(span)), if length <= 11 { 0x0102_0304 } else { 0 });
        }
        assert_eq!(table.get(key_of(b"abcdefghijl")), 0);
        assert_eq!(table.get(Key::default()), 0);
    }
}
