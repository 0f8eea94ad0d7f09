//! Canonical CBOR (RFC 8949): the few items that a block is made of.

/// CBOR's `null`.
pub(super) const NULL: u8 = 0xf6;
/// Most bytes that a token id takes.
pub(super) const MAX_TOKEN_BYTES: usize = 5;

/// Major types, in the upper three bits of an item's first byte.
pub(super) mod major {
    pub(in super::super) const UNSIGNED: u8 = 0 << 5;
    pub(in super::super) const NEGATIVE: u8 = 1 << 5;
    pub(in super::super) const BYTES: u8 = 2 << 5;
    pub(in super::super) const TEXT: u8 = 3 << 5;
    pub(in super::super) const ARRAY: u8 = 4 << 5;
}

/// Appends an item's head: its major type and its argument in the shortest form.
pub(super) fn push_head(bytes: &mut Vec<u8>, major: u8, argument: u64) {
    let big_endian = argument.to_be_bytes();
    let (tag, width) = match argument {
        0..24 => (argument as u8, 0),
        24..0x100 => (24, 1),
        0x100..0x1_0000 => (25, 2),
        0x1_0000..0x1_0000_0000 => (26, 4),
        _ => (27, 8),
    };
    bytes.push(major | tag);
    bytes.extend_from_slice(&big_endian[8 - width..]);
}

/// A text item.
pub(super) fn text(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len() + 9);
    push_head(&mut bytes, major::TEXT, text.len() as u64);
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

/// A token id as an unsigned item: its bytes, lowest first, and how many of them count.
///
/// Free of branches, because the widths of token ids are as random as the text. The class of an id, which is the
/// number of thresholds below it, selects first byte, shifts and length.
#[inline(always)]
pub(super) fn token(id: u32) -> (u64, usize) {
    const HEAD: [u64; 4] = [0, 0x18, 0x19, 0x1a];
    const UNUSED_BITS: [u32; 4] = [24, 24, 16, 0];
    const HEAD_BITS: [u32; 4] = [0, 8, 8, 8];
    const LENGTH: [u8; 4] = [1, 2, 3, MAX_TOKEN_BYTES as u8];
    let class = (usize::from(id >= 24) + usize::from(id >= 0x100) + usize::from(id >= 0x1_0000)) & 3;
    let payload = u64::from(id.swap_bytes() >> UNUSED_BITS[class]);
    (HEAD[class] | payload << HEAD_BITS[class], usize::from(LENGTH[class]))
}
