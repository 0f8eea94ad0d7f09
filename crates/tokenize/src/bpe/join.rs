//! Pieces of a span, and how the tokens of one go on with those of another.

/// A token and the place of its first byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Placed {
    pub(super) start: u32,
    pub(super) id: u32,
}

/// A part of a span, merged as if it stood alone.
#[derive(Default)]
pub(super) struct Piece {
    pub(super) start: usize,
    pub(super) end: usize,
    /// Places count from the start of the piece.
    pub(super) tokens: Vec<Placed>,
}

/// Continues the row, which ends at `end`, with a piece that ends after it, at the first token that both have; false if
/// there is none. A piece that begins where the row does takes its place.
pub(super) fn join(row: &mut Vec<Placed>, piece: &Piece, end: usize) -> bool {
    if piece.end <= end {
        return false;
    }
    let base = piece.start as u32;
    let from = row.iter().rposition(|token| token.start < base).map_or(0, |before| before + 1);
    let common = if base == 0 { Some((0, 0)) } else { common(row.get(from..).unwrap_or_default(), piece) };
    let Some((here, there)) = common else { return false };
    row.truncate(from + here);
    let tokens = piece.tokens.get(there..).unwrap_or_default();
    row.extend(tokens.iter().map(|token| Placed { start: base + token.start, id: token.id }));
    true
}

/// The first token that both have, by its number in each.
fn common(row: &[Placed], piece: &Piece) -> Option<(usize, usize)> {
    let base = piece.start as u32;
    let (mut here, mut there) = (0, 0);
    loop {
        let (token, other) = (row.get(here)?, piece.tokens.get(there)?);
        let start = base + other.start;
        if token.start == start && token.id == other.id {
            return Some((here, there));
        }
        here += usize::from(token.start <= start);
        there += usize::from(start <= token.start);
    }
}

/// The last place up to `at` where a character begins, or the end; `at` itself where bytes are no characters.
pub(super) fn boundary(span: &[u8], at: usize) -> usize {
    let Some(rest) = span.get(..=at) else { return span.len() };
    let continued = rest.iter().rev().take(3).take_while(|byte| matches!(byte, 0x80..0xc0)).count();
    let begin = at.checked_sub(continued);
    begin.filter(|&begin| rest.get(begin).is_some_and(|byte| *byte >= 0xc0)).unwrap_or(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_begin_with_characters_where_there_are_any() {
        let text = "a漢🦜".as_bytes();
        let boundaries: Vec<usize> = (0..=9).map(|at| boundary(text, at)).collect();
        assert_eq!(boundaries, [0, 1, 1, 1, 4, 4, 4, 4, 8, 8]);
        // What is left of characters when bytes without a token are gone.
        assert_eq!((0..4).map(|at| boundary(b"\x85\x85\x85a", at)).collect::<Vec<_>>(), [0, 1, 2, 3]);
    }

    #[test]
    fn pieces_begin_with_characters() {
        let text = "aé漢😀".as_bytes();
        let boundaries: Vec<usize> = (0..=text.len() + 1).map(|at| boundary(text, at)).collect();
        assert_eq!(boundaries, [0, 1, 1, 3, 3, 3, 6, 6, 6, 6, 10, 10]);
        assert_eq!(boundary(&[0x80; 9], 7), 7);
    }
}
