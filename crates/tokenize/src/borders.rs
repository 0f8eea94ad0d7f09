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
}

impl Borders {
    pub(crate) fn new<'a>(tokens: impl Iterator<Item = &'a AddedToken>) -> Self {
        let mut borders = Self { inside: Box::new([0; 1024]), firsts: [false; 256], lasts: [false; 256] };
        for token in tokens {
            let content = token.content.as_bytes();
            for pair in content.windows(2) {
                let (word, bit) = place(pair[0], pair[1]);
                borders.inside[word] |= bit;
            }
            let (Some(&first), Some(&last)) = (content.first(), content.last()) else { continue };
            borders.firsts[usize::from(first)] |= token.lstrip || token.single_word;
            borders.lasts[usize::from(last)] |= token.rstrip || token.single_word;
        }
        borders
    }

    /// Whether no added token lies across the place between these two bytes, or looks across it.
    pub(crate) fn are_clear(&self, before: u8, after: u8) -> bool {
        let (word, bit) = place(before, after);
        let across = self.inside.get(word).is_none_or(|pairs| pairs & bit != 0);
        !across && !self.lasts[usize::from(before)] && !self.firsts[usize::from(after)]
    }
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
        assert!(borders.are_clear(0xff, 0xff) && borders.are_clear(0, 0));
    }
}
