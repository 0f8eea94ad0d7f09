//! The printable alphabet in which byte-level vocabularies write their tokens.
//!
//! GPT-2 gave each of the 256 bytes a printable character: the printable Latin-1 characters stand for
//! themselves, the other bytes take the code points from U+0100 on, in order (a space is `Ġ`, U+0120).

/// One past the last code point of the alphabet: 256 and the 68 bytes that are not printable.
const ALPHABET_END: u32 = 256 + 68;

const fn is_printable(byte: u32) -> bool {
    matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff)
}

/// The code point of each byte.
const CODE_POINTS: [u16; 256] = {
    let mut table = [0; 256];
    let (mut byte, mut next) = (0, 256);
    while byte < 256 {
        if is_printable(byte) {
            table[byte as usize] = byte as u16;
        } else {
            table[byte as usize] = next;
            next += 1;
        }
        byte += 1;
    }
    table
};

/// The byte of each code point below [`ALPHABET_END`], or -1.
const BYTES: [i16; ALPHABET_END as usize] = {
    let mut table = [-1; ALPHABET_END as usize];
    let mut byte = 0;
    while byte < 256 {
        table[CODE_POINTS[byte] as usize] = byte as i16;
        byte += 1;
    }
    table
};

/// The character that stands for `byte`.
pub(crate) fn character(byte: u8) -> char {
    char::from_u32(u32::from(CODE_POINTS[usize::from(byte)])).unwrap_or(char::REPLACEMENT_CHARACTER)
}

/// The bytes that a token's printable form stands for, or `None` where a character is not of the alphabet.
pub(crate) fn to_bytes(token: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(token.len());
    for character in token.chars() {
        let byte = BYTES.get(character as usize).copied()?;
        bytes.push(u8::try_from(byte).ok()?);
    }
    Some(bytes)
}

/// The printable form of a token's bytes.
pub(crate) fn to_printable(bytes: &[u8]) -> String {
    bytes.iter().map(|&byte| character(byte)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_its_own_printable_character() {
        let all: Vec<u8> = (0..=255).collect();
        let printable = to_printable(&all);
        assert!(!printable.chars().any(|c| c.is_whitespace() || c.is_control()));
        assert_eq!(to_bytes(&printable), Some(all));
    }

    #[test]
    fn the_known_characters_are_where_everybody_has_them() {
        assert_eq!(to_printable(b" hi\n"), "Ġhi\u{010a}");
        assert_eq!(to_bytes("Ġhi\u{010a}").as_deref(), Some(b" hi\n".as_slice()));
        assert_eq!(to_printable(&[0x00, 0x7f, 0xad, 0xff]), "Ā\u{0121}\u{0143}ÿ");
    }

    #[test]
    fn other_characters_are_refused() {
        for token in ["a b", "▁the", "\u{ad}", "\u{144}", "é🙂"] {
            assert_eq!(to_bytes(token), None, "{token:?}");
        }
    }
}
