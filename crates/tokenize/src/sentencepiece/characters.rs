//! The rules by which a model rewrites characters (NFKC and the like), as its file carries them.
//!
//! A double array (Aoe, 1989, in the form of Darts-clone) from the beginnings of a text to places in a list of
//! replacements, each ended by a zero.

use crate::error::{Result, TokenizeError};

pub(crate) struct CharacterMap {
    units: Box<[u32]>,
    replacements: String,
}

fn leads_to_value(unit: u32) -> bool {
    unit >> 8 & 1 == 1
}

fn offset(unit: u32) -> usize {
    ((unit >> 10) << ((unit & 1 << 9) >> 6)) as usize
}

impl CharacterMap {
    /// Reads `precompiled_charsmap`; `None` if it is empty.
    pub(crate) fn read(content: &[u8]) -> Result<Option<Self>> {
        if content.is_empty() {
            return Ok(None);
        }
        let wrong = |what: &str| {
            TokenizeError::malformed(format!("SentencePiece model: the precompiled_charsmap {what}"))
        };
        let (size, rest) = content.split_first_chunk().ok_or_else(|| wrong("is cut off"))?;
        let size = u32::from_le_bytes(*size) as usize;
        let Some((units, replacements)) =
            rest.split_at_checked(size).filter(|_| size >= 4 && size.is_multiple_of(4))
        else {
            return Err(wrong(&format!(
                "has a table of {size} bytes, of {}; it takes whole words",
                rest.len()
            )));
        };
        let replacements =
            std::str::from_utf8(replacements).map_err(|_| wrong("has text that is not UTF-8"))?;
        let units = units.as_chunks::<4>().0.iter().map(|unit| u32::from_le_bytes(*unit)).collect();
        Ok(Some(Self { units, replacements: replacements.to_owned() }))
    }

    /// What stands for the longest beginning of the text that has a rule, and its length.
    pub(crate) fn longest<'m>(&'m self, text: &str) -> Option<(&'m str, usize)> {
        let mut found = None;
        let mut place = offset(self.units.first().copied()?);
        for (index, &byte) in text.as_bytes().iter().enumerate() {
            place ^= usize::from(byte);
            let Some(&unit) = self.units.get(place) else { break };
            if unit & (1 << 31 | 0xff) != u32::from(byte) {
                break;
            }
            place ^= offset(unit);
            if leads_to_value(unit) {
                let Some(&value) = self.units.get(place) else { break };
                found = Some(((value & 0x7fff_ffff) as usize, index + 1));
            }
        }
        let (value, length) = found.filter(|(_, length)| text.is_char_boundary(*length))?;
        let rest = self.replacements.get(value..)?;
        Some((rest.split('\0').next().unwrap_or(rest), length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_tables_are_refused_or_have_no_rules() {
        assert!(CharacterMap::read(b"").unwrap().is_none());
        for content in
            [&b"\x04\0\0"[..], b"\xff\xff\xff\xff\0\0\0\0", b"\x03\0\0\0abc", b"\x04\0\0\0\0\0\0\0\xff"]
        {
            assert!(
                matches!(CharacterMap::read(content), Err(TokenizeError::Malformed { .. })),
                "{content:?}"
            );
        }
        let wild = CharacterMap::read(b"\x08\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff").unwrap().unwrap();
        assert_eq!(wild.longest("any text"), None);
    }

    #[test]
    fn the_longest_beginning_wins() {
        // Built by hand: "a" stands for "x", "ab" for "yz".
        let mut units = vec![0_u32; 1024];
        units[0] = 0x100 << 10; // the root's children are at 0x100 ^ byte
        let a = 0x100 ^ usize::from(b'a');
        units[a] = (a as u32 ^ 0x200) << 10 | 1 << 8 | u32::from(b'a');
        units[0x200] = 0;
        let b = 0x200 ^ usize::from(b'b');
        units[b] = (b as u32 ^ 0x300) << 10 | 1 << 8 | u32::from(b'b');
        units[0x300] = 2;
        let mut content = 4096_u32.to_le_bytes().to_vec();
        content.extend(units.iter().flat_map(|unit| unit.to_le_bytes()));
        content.extend(b"x\0yz\0");
        let map = CharacterMap::read(&content).unwrap().unwrap();
        assert_eq!(
            [map.longest("abc"), map.longest("ac"), map.longest("b")],
            [Some(("yz", 2)), Some(("x", 1)), None]
        );
    }
}
