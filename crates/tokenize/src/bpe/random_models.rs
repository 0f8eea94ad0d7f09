//! Vocabularies that no training gives, for the tests.

use super::pairs::Pairs;
use super::vocabulary::Vocabulary;

/// Bytes and id.
pub(super) type Token = (Vec<u8>, u32);

/// All bytes, and what the merges make of tokens that are there by then; each merge takes two of the tokens, by
/// number.
pub(super) fn vocabulary_of(merges: &[(usize, usize)], longest: usize) -> (Vec<Token>, Vec<(u32, u32)>) {
    let mut tokens: Vec<Token> = (0..=u8::MAX).map(|byte| (vec![byte], u32::from(byte))).collect();
    // What spans are filled up with is a letter, too.
    let letters = [b'a', b'b', b'c', 0].map(usize::from);
    let mut list = Vec::new();
    let mut usable: Vec<usize> = letters.to_vec();
    for &(left, right) in merges {
        let (left, right) = (usable[left % usable.len()], usable[right % usable.len()]);
        let joined = [tokens[left].0.as_slice(), &tokens[right].0].concat();
        if joined.len() > longest || tokens.iter().any(|(bytes, _)| *bytes == joined) {
            continue;
        }
        list.push((left as u32, right as u32));
        usable.push(tokens.len());
        tokens.push((joined, tokens.len() as u32));
    }
    (tokens, list)
}

/// The merges of `list`, or where there is none, by rank.
pub(super) fn pairs_of(tokens: &[Token], list: Option<&Vec<(u32, u32)>>, vocabulary: &Vocabulary) -> Pairs {
    match list {
        Some(list) => Pairs::from_list(list, tokens, vocabulary).unwrap(),
        None => Pairs::by_rank(tokens, vocabulary),
    }
}
