//! Short spans as one number, so that comparing and hashing them takes a few instructions.

/// The longest span that has a key, in bytes.
pub(crate) const SHORT: usize = 15;
/// Matches no entry: stands for a span that is too long for a key.
pub(crate) const NO_KEY: Key = Key { low: u64::MAX, high: u64::MAX };

/// Up to [`SHORT`] bytes, zero-padded, with the length in the highest byte. Only the default is zero, since spans
/// have a length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Key {
    low: u64,
    high: u64,
}

/// Which bits of 16 bytes belong to a span of a length.
const KEPT: [Key; SHORT + 1] = {
    let mut kept = [Key { low: 0, high: 0 }; SHORT + 1];
    let mut length = 1;
    while length <= SHORT {
        let bits = (1_u128 << (8 * length)) - 1;
        kept[length] = Key { low: bits as u64, high: (bits >> 64) as u64 };
        length += 1;
    }
    kept
};

/// Key of `text[start..end]`, [`NO_KEY`] if that is too long.
#[inline(always)]
pub(crate) fn key_at(text: &[u8], start: usize, end: usize) -> Key {
    let length = end.wrapping_sub(start);
    let Some(kept) = KEPT.get(length) else { return NO_KEY };
    let bytes = match text.get(start..start.wrapping_add(16)) {
        Some(bytes) => bytes.first_chunk().copied().unwrap_or_default(),
        None => padded(text.get(start..end).unwrap_or_default()),
    };
    let bits = u128::from_le_bytes(bytes);
    Key { low: bits as u64 & kept.low, high: (bits >> 64) as u64 & kept.high | (length as u64) << 56 }
}

/// Key of a whole span.
#[inline]
pub(crate) fn key_of(span: &[u8]) -> Key {
    key_at(span, 0, span.len())
}

/// Near the end of the text 16 bytes cannot be read.
#[cold]
fn padded(span: &[u8]) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (slot, byte) in bytes.iter_mut().zip(span) {
        *slot = *byte;
    }
    bytes
}

impl Key {
    /// The two halves; the length is the highest byte of the second.
    #[inline(always)]
    pub(crate) fn halves(self) -> (u64, u64) {
        (self.low, self.high)
    }

    pub(crate) fn is_empty(self) -> bool {
        self == Self::default()
    }

    /// Well-mixed bits, as many as a table needs.
    #[inline(always)]
    pub(crate) fn hash(self) -> usize {
        (mix(self.low, self.high) >> 32) as usize
    }
}

/// 64 bits of which the upper half is well mixed.
#[inline(always)]
pub(crate) fn mix(low: u64, high: u64) -> u64 {
    // Odd multipliers; the rotation lets the high bits of the first product reach the low half of the second.
    let mixed = low.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32) ^ high;
    mixed.wrapping_mul(0xadf8_5458_a2bb_4a9b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_tell_spans_apart() {
        let text = b"ab\0cd 0123456789abcdefghij";
        assert_ne!(key_of(b"ab"), key_of(b"ab\0"));
        assert_eq!(key_of(b"0123456789abcdef"), NO_KEY);
        for start in 0..text.len() {
            for end in start + 1..=text.len().min(start + SHORT) {
                assert_eq!(key_at(text, start, end), key_of(&text[start..end]));
                assert!(!key_at(text, start, end).is_empty());
            }
        }
    }
}
