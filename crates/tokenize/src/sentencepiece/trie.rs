//! The texts that a text begins with, of many.

use std::collections::VecDeque;

/// Marks a node that no text ends at.
const NO_VALUE: u32 = u32::MAX;

/// Texts and their values, a byte a node. The nodes stand level by level: the children of a node are neighbours.
pub(crate) struct Trie {
    labels: Box<[u8]>,
    values: Box<[u32]>,
    /// Where the children of each node begin; they end where those of the next one begin.
    children: Box<[u32]>,
    /// The root's children by byte; 0 for none.
    first: Box<[u32; 256]>,
}

impl Trie {
    /// A trie of these texts, which must differ and not be empty.
    pub(crate) fn new(mut texts: Vec<(&[u8], u32)>) -> Self {
        texts.sort_unstable();
        let (mut labels, mut values, mut children) = (vec![0], Vec::new(), Vec::new());
        let mut open = VecDeque::from([(0, texts.len(), 0)]);
        while let Some((mut start, end, depth)) = open.pop_front() {
            children.push(labels.len() as u32);
            let ends_here = texts.get(start).filter(|(text, _)| start < end && text.len() == depth);
            values.push(ends_here.map_or(NO_VALUE, |(_, value)| *value));
            start += usize::from(ends_here.is_some());
            while start < end {
                let label =
                    |at: usize| texts.get(at).and_then(|(text, _)| text.get(depth)).copied().unwrap_or(0);
                let byte = label(start);
                let same = (start..end).take_while(|&at| label(at) == byte).count();
                labels.push(byte);
                open.push_back((start, start + same, depth + 1));
                start += same;
            }
        }
        children.push(labels.len() as u32);
        let mut trie = Self {
            labels: labels.into(),
            values: values.into(),
            children: children.into(),
            first: Box::new([0; 256]),
        };
        for byte in 0..=u8::MAX {
            trie.first[usize::from(byte)] = trie.child(0, byte).unwrap_or(0);
        }
        trie
    }

    fn child(&self, node: u32, byte: u8) -> Option<u32> {
        let start = *self.children.get(node as usize)?;
        let end = *self.children.get(node as usize + 1)?;
        let labels = self.labels.get(start as usize..end as usize)?;
        let found = if labels.len() < 8 {
            labels.iter().position(|label| *label == byte)
        } else {
            labels.binary_search(&byte).ok()
        };
        found.map(|index| start + index as u32)
    }

    /// Calls `visit` with the length and the value of each text that `text` begins with, the shortest first.
    #[inline]
    pub(crate) fn each(&self, text: &[u8], mut visit: impl FnMut(usize, u32)) {
        let Some((&byte, rest)) = text.split_first() else { return };
        let mut node = self.first[usize::from(byte)];
        let mut length = 1;
        let mut rest = rest.iter();
        while node != 0 {
            let value = self.values.get(node as usize).copied().unwrap_or(NO_VALUE);
            if value != NO_VALUE {
                visit(length, value);
            }
            let Some(next) = rest.next().and_then(|&byte| self.child(node, byte)) else { break };
            node = next;
            length += 1;
        }
    }

    /// The longest text that `text` begins with: its length and value.
    pub(crate) fn longest(&self, text: &[u8]) -> Option<(usize, u32)> {
        let mut found = None;
        self.each(text, |length, value| found = Some((length, value)));
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_every_beginning_and_nothing_else() {
        let texts = ["a", "ab", "abcd", "b", "é", "\u{10ffff}", "zz"];
        let trie = Trie::new(texts.iter().zip(0..).map(|(text, value)| (text.as_bytes(), value)).collect());
        for text in ["abcde", "abc", "az", "é!", "\u{10ffff}\u{10ffff}", "z", "", "x", "zzz"] {
            let mut found = Vec::new();
            trie.each(text.as_bytes(), |length, value| found.push((length, value)));
            let expected: Vec<(usize, u32)> = texts
                .iter()
                .zip(0..)
                .filter(|(begin, _)| text.starts_with(**begin))
                .map(|(begin, value)| (begin.len(), value))
                .collect();
            assert_eq!(found, expected, "{text}");
            assert_eq!(trie.longest(text.as_bytes()), expected.last().copied());
        }
        assert_eq!(Trie::new(Vec::new()).longest(b"a"), None);
    }
}
