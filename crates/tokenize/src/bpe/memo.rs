//! What some bytes became, so that the same again is not merged again.

use super::join::Placed;
use super::key::mix;

/// As many as a repeated text has different pieces, for short periods.
const PLACES: usize = 16;

/// A few pieces of text and their tokens; each hash has one place.
#[derive(Default)]
pub(super) struct Memo {
    places: [Known; PLACES],
}

#[derive(Default)]
struct Known {
    bytes: Vec<u8>,
    tokens: Vec<Placed>,
}

impl Memo {
    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.places.iter_mut().for_each(|known| known.bytes.clear());
    }

    /// Replaces `tokens` by those of `bytes`; false if they are not known.
    #[inline]
    pub(super) fn find(&self, bytes: &[u8], tokens: &mut Vec<Placed>) -> bool {
        let known = self.places.get(place(bytes)).filter(|known| known.bytes == bytes && !bytes.is_empty());
        tokens.clear();
        tokens.extend_from_slice(known.map_or(&[], |known| &known.tokens));
        known.is_some()
    }

    /// Remembers what `bytes` became.
    #[inline]
    pub(super) fn keep(&mut self, bytes: &[u8], tokens: &[Placed]) {
        if let Some(known) = self.places.get_mut(place(bytes)) {
            known.bytes.clear();
            known.bytes.extend_from_slice(bytes);
            known.tokens.clear();
            known.tokens.extend_from_slice(tokens);
        }
    }
}

#[inline]
fn place(bytes: &[u8]) -> usize {
    let (words, rest) = bytes.as_chunks::<8>();
    let hash = words.iter().fold(0, |hash, word| mix(hash, u64::from_le_bytes(*word)));
    let hash = rest.iter().fold(hash, |hash, byte| mix(hash, u64::from(*byte)));
    (hash >> 32) as usize % PLACES
}
