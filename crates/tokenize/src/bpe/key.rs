//! Short spans as one number, so that comparing and hashing them takes a few instructions.

/// The longest span that has a key, in bytes.
pub(crate) const SHORT: usize = 15;
/// Matches no entry: stands for a span that is too long for a key.
pub(crate) const NO_KEY: Key = Key { low: u64::MAX, high: u64::MAX };

/// Up to [`SHORT`] bytes, zero-padded, with the length in the highest byte. Only the default is zero, since spans
/// have a length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(16))]
pub(crate) struct Key {
    low: u64,
    high: u64,
}

/// What makes a key of 16 bytes of text, by the length of the span: which bits to keep, and which to set. What is
/// longer than [`SHORT`] becomes [`NO_KEY`] in the same way.
pub(crate) static SHAPES: [Shape; SHORT + 2] = {
    let mut shapes = [Shape { kept: Key { low: 0, high: 0 }, set: NO_KEY }; SHORT + 2];
    let mut length = 0;
    while length <= SHORT {
        let bits = (1_u128 << (8 * length)) - 1;
        shapes[length] = Shape {
            kept: Key { low: bits as u64, high: (bits >> 64) as u64 },
            set: Key { low: 0, high: (length as u64) << 56 },
        };
        length += 1;
    }
    shapes
};

/// See [`SHAPES`].
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Shape {
    pub(crate) kept: Key,
    pub(crate) set: Key,
}

/// Key of `text[start..end]`, [`NO_KEY`] if that is too long.
#[inline(always)]
pub(crate) fn key_at(text: &[u8], start: usize, end: usize) -> Key {
    let bytes = match text.get(start..start.wrapping_add(16)) {
        Some(bytes) => bytes.first_chunk().copied().unwrap_or_default(),
        None => near_the_end(text, start, end),
    };
    let bits = u128::from_le_bytes(bytes);
    let Shape { kept, set } = SHAPES[end.wrapping_sub(start).min(SHORT + 1)];
    Key { low: bits as u64 & kept.low | set.low, high: (bits >> 64) as u64 & kept.high | set.high }
}

/// Key of a whole span.
#[inline]
pub(crate) fn key_of(span: &[u8]) -> Key {
    key_at(span, 0, span.len())
}

/// The bytes from `start` on where fewer than 16 follow: the text's last 16, moved; then zeros.
#[inline(always)]
pub(crate) fn near_the_end(text: &[u8], start: usize, end: usize) -> [u8; 16] {
    match text.last_chunk() {
        Some(last) => {
            let before = start.wrapping_sub(text.len() - 16) as u32 % 16;
            (u128::from_le_bytes(*last) >> (8 * before)).to_le_bytes()
        }
        None => padded(text.get(start..end.min(start.wrapping_add(SHORT))).unwrap_or_default()),
    }
}

/// In a text shorter than that.
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
    pub(crate) const fn halves(self) -> (u64, u64) {
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

/// What [`mix`] multiplies with: odd numbers.
pub(crate) const MIXERS: [u64; 2] = [0x9e37_79b9_7f4a_7c15, 0xadf8_5458_a2bb_4a9b];

/// 64 bits of which the upper half is well mixed.
#[inline(always)]
pub(crate) fn mix(low: u64, high: u64) -> u64 {
    // The rotation lets the high bits of the first product reach the low half of the second.
    let mixed = low.wrapping_mul(MIXERS[0]).rotate_left(32) ^ high;
    mixed.wrapping_mul(MIXERS[1])
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
