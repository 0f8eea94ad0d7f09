//! The class of every code point, as the reference tokenizers see it (Unicode 16).
//!
//! The table is made by `tools/unicode_classes.py`, which asks the references themselves.

/// Set of classes: one bit for each value of the table.
pub(crate) type ClassSet = u16;

pub(crate) const OTHER: ClassSet = 1 << 0;
/// Upper-case and title-case letters (`Lu`, `Lt`).
pub(crate) const UPPER: ClassSet = 1 << 1;
/// Lower-case letters (`Ll`).
pub(crate) const LOWER: ClassSet = 1 << 2;
/// Letters without case (`Lm`, `Lo`).
pub(crate) const CASELESS: ClassSet = 1 << 3;
pub(crate) const MARK: ClassSet = 1 << 4;
pub(crate) const NUMBER: ClassSet = 1 << 5;
pub(crate) const SPACE: ClassSet = 1 << 6;
pub(crate) const PUNCTUATION: ClassSet = 1 << 7;
pub(crate) const SYMBOL: ClassSet = 1 << 8;
/// Numbers of Unicode 17, which only the step `Digits` of `tokenizers` knows: its tables are its compiler's.
pub(crate) const LATER_NUMBER: ClassSet = 1 << 9;

pub(crate) const LETTER: ClassSet = UPPER | LOWER | CASELESS;
/// Every class.
pub(crate) const ANY: ClassSet = (1 << 10) - 1;

const BLOCK: usize = 128;
const BLOCKS_START: usize = 0x11_0000 / BLOCK;
static TABLE: &[u8; 41_088] = include_bytes!("unicode_classes.bin");

/// A character of the text: what class it has and how many bytes it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Character {
    pub(crate) class: ClassSet,
    pub(crate) width: usize,
}

impl Character {
    #[inline(always)]
    pub(crate) fn is(self, set: ClassSet) -> bool {
        self.class & set != 0
    }
}

/// Class of a code point; a value above the last code point has class [`OTHER`].
#[inline(always)]
pub(crate) fn class_of(code_point: u32) -> ClassSet {
    let code_point = code_point as usize;
    let Some(&block) = TABLE[..BLOCKS_START].get(code_point / BLOCK) else { return OTHER };
    let place = BLOCKS_START + usize::from(block) * BLOCK + code_point % BLOCK;
    TABLE.get(place).map_or(OTHER, |&class| 1 << (class & 15))
}

/// The character that starts at `at`, or `None` at the end. `text` is valid UTF-8 and `at` a boundary in it;
/// anything else gives some class and a width of at least 1, never a panic.
#[inline(always)]
pub(crate) fn character_at(text: &[u8], at: usize) -> Option<Character> {
    let first = *text.get(at)?;
    if first < 0x80 {
        return Some(Character { class: class_of(u32::from(first)), width: 1 });
    }
    let tail = |offset: usize| text.get(at + offset).map_or(0, |&byte| u32::from(byte & 0x3f));
    let first = u32::from(first);
    let (code_point, width) = match first {
        0..0xe0 => ((first & 0x1f) << 6 | tail(1), 2),
        0xe0..0xf0 => ((first & 0x0f) << 12 | tail(1) << 6 | tail(2), 3),
        _ => ((first & 0x07) << 18 | tail(1) << 12 | tail(2) << 6 | tail(3), 4),
    };
    Some(Character { class: class_of(code_point), width: width.min(text.len() - at) })
}

/// Whether the character at `at` is a Han character or a kana as `DeepSeek`'s pattern has them: `[一-龥぀-ゟ゠-ヿ]`.
#[inline(always)]
pub(crate) fn is_ideograph(text: &[u8], at: usize) -> bool {
    let Some(&[first, second, third]) = text.get(at..).and_then(<[u8]>::first_chunk) else { return false };
    // All of them take three bytes, whose order is that of the code points.
    let bytes = u32::from_be_bytes([0, first, second, third]);
    matches!(bytes, 0xe3_8180..=0xe3_83bf | 0xe4_b880..=0xe9_bea5)
}

/// End of the run of characters of `set` that starts at `at`.
#[inline(always)]
pub(crate) fn skip_while(text: &[u8], mut at: usize, set: ClassSet) -> usize {
    while let Some(character) = character_at(text, at) {
        if !character.is(set) {
            break;
        }
        at += character.width;
    }
    at
}
