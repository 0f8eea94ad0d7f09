//! What spans became that are too long for a key.

use crate::bpe::key::mix;
use crate::cache::Encoded;
use crate::kernels::{Table, prefetch};

/// Spans of at most `BYTES` bytes; each hash has one place.
pub(crate) struct LongTable<const BYTES: usize> {
    entries: Table<Entry<BYTES>>,
}

/// One cache line with 44 bytes, two with 108.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Entry<const BYTES: usize> {
    /// The span, then zeros.
    bytes: [u8; BYTES],
    length: u32,
    encoded: Encoded,
}

/// Where a span would be, and its bytes, padded.
struct Place<const BYTES: usize> {
    index: usize,
    bytes: [u8; BYTES],
}

impl<const BYTES: usize> LongTable<BYTES> {
    /// Bytes of memory that an entry takes.
    pub(crate) const ENTRY: usize = size_of::<Entry<BYTES>>();

    /// A table of `entries`, a power of two.
    pub(crate) fn new(entries: usize) -> Self {
        Self { entries: Table::zeroed(entries) }
    }

    /// `None` for a span that is too long for the table.
    #[inline]
    fn place(&self, span: &[u8]) -> Option<Place<BYTES>> {
        let mut bytes = [0; BYTES];
        bytes.get_mut(..span.len())?.copy_from_slice(span);
        let words = bytes.chunks(8).take(span.len().div_ceil(8)).map(|chunk| {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            u64::from_le_bytes(word)
        });
        let hash = words.fold(span.len() as u64, mix) >> 32;
        Some(Place { index: hash as usize & (self.entries.len() - 1), bytes })
    }

    /// Asks for the memory where [`Self::find`] will look.
    #[inline]
    pub(crate) fn prefetch(&self, span: &[u8]) {
        if let Some(entry) = self.place(span).and_then(|place| self.entries.get(place.index)) {
            prefetch(entry);
        }
    }

    /// What the span became, if that is still known.
    #[inline]
    pub(crate) fn find(&self, span: &[u8]) -> Option<Encoded> {
        let Place { index, bytes } = self.place(span)?;
        let entry = self.entries.get(index)?;
        (entry.length as usize == span.len() && entry.bytes == bytes).then_some(entry.encoded)
    }

    /// Remembers what the span became.
    pub(crate) fn remember(&mut self, span: &[u8], encoded: Encoded) {
        let Some(Place { index, bytes }) = self.place(span) else { return };
        if let Some(entry) = self.entries.get_mut(index) {
            *entry = Entry { bytes, length: span.len() as u32, encoded };
        }
    }
}
