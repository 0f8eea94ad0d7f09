//! Spans for vocabularies without a splitting pattern: a text is cut where no token can lie across.
//!
//! Merging makes tokens out of neighbours. Where two bytes stand side by side in no token of the vocabulary, no merge
//! ever joins what ends with the one to what begins with the other: the text on both sides merges as if it stood
//! alone. In vocabularies of SentencePiece's kind that is before every space after a word, and at most punctuation.

use super::block::Starts;

/// Which two neighbouring bytes stand side by side in some token.
pub(crate) struct Joins {
    /// A bit for each pair, 256 a row.
    pairs: Box<[u64; 1024]>,
}

impl Joins {
    /// The pairs in these tokens. Bytes of one character are always joined.
    pub(crate) fn of<'t>(tokens: impl Iterator<Item = &'t [u8]>) -> Self {
        let mut joins = Self { pairs: Box::new([0; 1024]) };
        for token in tokens {
            for pair in token.windows(2) {
                joins.join(pair[0], pair[1]);
            }
        }
        for before in 0..=u8::MAX {
            for after in 0x80..0xc0 {
                joins.join(before, after);
            }
        }
        joins
    }

    fn join(&mut self, before: u8, after: u8) {
        let (word, bit) = place(before, after);
        if let Some(pairs) = self.pairs.get_mut(word) {
            *pairs |= 1 << bit;
        }
    }

    /// Cuts the text before every such byte, whatever stands before it.
    pub(crate) fn cut_before(&mut self, after: u8) {
        for before in 0..=u8::MAX {
            let (word, bit) = place(before, after);
            if let Some(pairs) = self.pairs.get_mut(word) {
                *pairs &= !(1 << bit);
            }
        }
    }

    /// Whether a token may lie across the place between these two bytes.
    #[inline(always)]
    pub(crate) fn are_joined(&self, before: u8, after: u8) -> bool {
        let (word, bit) = place(before, after);
        self.pairs.get(word).is_some_and(|pairs| pairs >> bit & 1 != 0)
    }

    /// Whether the ids of a text are those of its part before `at`, then those of its part from `at` on.
    pub(crate) fn is_cut(&self, text: &[u8], at: usize) -> bool {
        match at.checked_sub(1).and_then(|last| text.get(last..=at)) {
            Some(&[before, after]) => !self.are_joined(before, after),
            _ => false,
        }
    }

    /// Replaces `starts` by the next spans of `text`, which begins where a span begins.
    #[inline(always)]
    pub(crate) fn fill(&self, text: &[u8], starts: &mut Starts) {
        starts.clear();
        let Some((&first, mut rest)) = text.split_first() else { return };
        starts.push(0);
        let (mut before, mut at) = (first, 1);
        while !rest.is_empty() && !starts.is_full() {
            // As many places as there is room for, whatever is found: no branch on whether a span begins.
            let (part, after) = rest.split_at(rest.len().min(Starts::ROOM));
            for &byte in part {
                starts.push_if(at, !self.are_joined(before, byte));
                before = byte;
                at += 1;
            }
            rest = after;
        }
        // The last start is where the next call begins, unless this is the end.
        if rest.is_empty() {
            starts.push(text.len());
        }
    }
}

#[inline(always)]
fn place(before: u8, after: u8) -> (usize, u32) {
    (usize::from(before) << 2 | usize::from(after >> 6), u32::from(after) % 64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split<'t>(joins: &Joins, text: &'t str) -> Vec<&'t str> {
        let (mut rest, mut spans, mut starts) = (text, Vec::new(), Starts::new());
        while !rest.is_empty() {
            joins.fill(rest.as_bytes(), &mut starts);
            let bounds = starts.bounds();
            assert!(bounds.len() > 1);
            spans.extend(bounds.windows(2).map(|pair| &rest[pair[0]..pair[1]]));
            rest = &rest[bounds.last().copied().unwrap()..];
        }
        spans
    }

    #[test]
    fn spans_end_where_no_token_lies_across() {
        let tokens = [" a", "ab", "  ", "b.", "é!", "漢字"];
        let joins = Joins::of(tokens.iter().map(|token| token.as_bytes()));
        assert_eq!(
            split(&joins, "ab ab.  a. é!é 漢字漢"),
            ["ab", " ab.", "  a", ".", " ", "é!", "é", " ", "漢字", "漢"]
        );
        assert!(split(&joins, "").is_empty());
        assert!(
            joins.is_cut(b"a c", 2)
                && !joins.is_cut(b"a a", 2)
                && !joins.is_cut(b"ac", 0)
                && !joins.is_cut(b"ac", 2)
        );
    }

    #[test]
    fn every_length_of_text_and_span_comes_out_whole() {
        let mut joins = Joins::of([b"aa".as_slice(), b"  "].into_iter());
        for length in [1, 2, 63, 64, 65, 255, 256, 257, 319, 320, 321, 1000] {
            for text in ["a".repeat(length), " ".repeat(length), "ab".repeat(length), "a b".repeat(length)] {
                let spans = split(&joins, &text);
                assert_eq!(spans.concat(), text);
                let cuts = (1..text.len()).filter(|&at| joins.is_cut(text.as_bytes(), at)).count();
                assert_eq!(spans.len(), cuts + 1);
            }
        }
        joins.cut_before(b' ');
        assert_eq!(split(&joins, "aa  aa"), ["aa", " ", " ", "aa"]);
    }
}
