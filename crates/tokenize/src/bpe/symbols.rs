//! What merging begins with, where that is not the bytes.

use super::vocabulary::Vocabulary;

/// The ids of a text's characters, or of their bytes where a character has no token.
pub(super) struct Characters<'s> {
    vocabulary: &'s Vocabulary,
    rest: &'s [u8],
    /// How many of the next bytes belong to a character without a token.
    bytes: usize,
}

impl<'s> Characters<'s> {
    pub(super) fn new(vocabulary: &'s Vocabulary, text: &'s [u8]) -> Self {
        Self { vocabulary, rest: text, bytes: 0 }
    }
}

impl Iterator for Characters<'_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        let (&first, after) = self.rest.split_first()?;
        let width = width(first).min(self.rest.len());
        if width > 1 && self.bytes == 0 {
            let (character, after) = self.rest.split_at(width);
            if let Some(id) = self.vocabulary.id(character) {
                self.rest = after;
                return Some(id);
            }
            self.bytes = width;
        }
        self.bytes = self.bytes.saturating_sub(1);
        self.rest = after;
        Some(self.vocabulary.byte_id(first))
    }
}

/// How many bytes the character that begins with this one has.
fn width(first: u8) -> usize {
    match first {
        0xf0.. => 4,
        0xe0.. => 3,
        0xc0.. => 2,
        _ => 1,
    }
}
