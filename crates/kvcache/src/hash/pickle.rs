//! Pickle, protocol 5: the bytes that `CPython`'s pickler writes for the tuple of a block.
//!
//! Source: the opcode descriptions in `CPython`'s `Lib/pickletools.py` and the framing rule of PEP 3154.

/// `PROTO 5`, and the opcode that begins a frame; eight bytes of length follow.
pub(super) const HEADER: [u8; 3] = [0x80, 5, FRAME];
pub(super) const FRAME: u8 = 0x95;
/// Bytes of a frame's opcode and length.
pub(super) const FRAME_HEAD_BYTES: usize = 9;
/// A frame that has reached this length is closed before the next object.
pub(super) const FRAME_TARGET_BYTES: usize = 64 * 1024;

pub(super) const MARK: u8 = b'(';
pub(super) const MEMOIZE: u8 = 0x94;
pub(super) const NONE: u8 = b'N';
pub(super) const SHORT_BINBYTES: u8 = b'C';
pub(super) const STOP: u8 = b'.';
pub(super) const TUPLE: u8 = b't';
pub(super) const TUPLE1: u8 = 0x85;
pub(super) const TUPLE2: u8 = 0x86;
pub(super) const TUPLE3: u8 = 0x87;

/// Most bytes that a token id takes.
pub(super) const MAX_TOKEN_BYTES: usize = 7;

/// Longest string that [`text`] writes; a longer one takes another opcode.
pub(super) const MAX_TEXT_BYTES: usize = 255;

/// A pickled string of at most [`MAX_TEXT_BYTES`].
pub(super) fn text(text: &str) -> Vec<u8> {
    let object = [[0x8c, text.len() as u8].as_slice(), text.as_bytes(), &[MEMOIZE, STOP]].concat();
    [HEADER.as_slice(), &(object.len() as u64).to_le_bytes(), &object].concat()
}

/// A token id: its bytes, lowest first, and how many of them count.
///
/// `BININT1`, `BININT2`, `BININT`, or, because `BININT` is signed, `LONG1` of five bytes from 2³¹ on.
#[inline(always)]
pub(super) fn token(id: u32) -> (u64, usize) {
    const HEAD: [u64; 4] = [b'K' as u64, b'M' as u64, b'J' as u64, 0x058a];
    const HEAD_BITS: [u32; 4] = [8, 8, 8, 16];
    const LENGTH: [u8; 4] = [2, 3, 5, MAX_TOKEN_BYTES as u8];
    let class = (usize::from(id >= 0x100) + usize::from(id >= 0x1_0000) + usize::from(id >= 0x8000_0000)) & 3;
    (HEAD[class] | u64::from(id) << HEAD_BITS[class], usize::from(LENGTH[class]))
}
