//! Which neighbours an added token may stand between: what a cut must not separate.

use crate::special::AddedToken;

/// Pairs of neighbouring bytes inside added tokens, and the bytes beside which a token's own rules look further.
///
/// A place in a text is clear of all added tokens where its two bytes are no such pair (no token can lie across
/// it) and where no token that looks at its neighbours (`lstrip`, `rstrip`, `single_word`) can touch it.
pub(crate) struct Borders {
    inside: Box<[u64; 1024]>,
    firsts: [bool; 256],
    lasts: [bool; 256],
    /// What added tokens end with.
    ends: [bool; 256],
    /// Whether some token takes the white space before it, or after it, along.
    strips: [bool; 2],
}

impl Borders {
    pub(crate) fn new<'a>(tokens: impl Iterator<Item = &'a AddedToken>) -> Self {
        let none = [false; 256];
        let mut borders =
            Self { inside: Box::new([0; 1024]), firsts: none, lasts: none, ends: none, strips: [false; 2] };
        for token in tokens {
            let content = token.content.as_bytes();
            borders.strips = [borders.strips[0] | token.lstrip, borders.strips[1] | token.rstrip];
            for pair in content.windows(2) {
                let (word, bit) = place(pair[0], pair[1]);
                borders.inside[word] |= bit;
            }
            let (Some(&first), Some(&last)) = (content.first(), content.last()) else { continue };
            borders.firsts[usize::from(first)] |= token.lstrip || token.single_word;
            borders.lasts[usize::from(last)] |= token.rstrip || token.single_word;
            borders.ends[usize::from(last)] = true;
        }
        borders
    }

    /// Whether an added token, with the white space that it takes along, may end with this byte.
    pub(crate) fn may_end(&self, byte: u8) -> bool {
        self.ends[usize::from(byte)] || (self.strips[1] && is_white_space(byte))
    }

    /// Whether no added token lies across the place between these two bytes, or looks across it.
    pub(crate) fn are_clear(&self, before: u8, after: u8) -> bool {
        let (word, bit) = place(before, after);
        let across = self.inside.get(word).is_none_or(|pairs| pairs & bit != 0);
        // White space that a token takes along is taken as far as it goes.
        let within = self.strips.contains(&true) && is_white_space(before) && is_white_space(after);
        !across && !within && !self.lasts[usize::from(before)] && !self.firsts[usize::from(after)]
    }
}

/// Whether this is white space of one byte, or may be a part of some of several bytes.
fn is_white_space(byte: u8) -> bool {
    matches!(byte, 9..=13 | b' ') || !byte.is_ascii()
}

fn place(before: u8, after: u8) -> (usize, u64) {
    (usize::from(before) * 4 + usize::from(after) / 64, 1 << (after % 64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_keep_their_insides_and_what_they_look_at() {
        let plain = AddedToken::special("<a b>", 1);
        let mut strip = AddedToken::special("[x]", 2);
        strip.rstrip = true;
        let borders = Borders::new([plain, strip].iter());
        assert!(!borders.are_clear(b'a', b' ') && !borders.are_clear(b' ', b'b'));
        assert!(borders.are_clear(b'>', b' ') && borders.are_clear(b' ', b'<'));
        assert!(!borders.are_clear(b']', b' ') && borders.are_clear(b' ', b'['));
        assert!(borders.are_clear(b'x', 0xff) && borders.are_clear(0, 0));
        assert!(borders.are_clear(b'x', b' ') && borders.are_clear(b'\n', b'x'));
        assert!(!borders.are_clear(b'\n', b' ') && borders.may_end(b' '));
        assert!(borders.may_end(b'>') && borders.may_end(b']') && !borders.may_end(b'<'));
    }
}
