//! Many spans at a time: where spans start in 64 bytes, computed on bit masks.
//!
//! A block begins where a span begins, so that nothing before it matters. Classes become masks with one bit for
//! each character (non-ASCII characters are looked up one by one, then the bits of continuation bytes are squeezed
//! out), the rules of [`rules`](super::rules) turn them into a mask of span starts, and the starts become
//! positions. The last span of a block is left for the next block, since its end may lie beyond. Whatever the rules
//! cannot decide within a block is left to the scalar scanner.

use super::classes::{CASELESS, LOWER, MARK, PUNCTUATION, SPACE, SYMBOL, UPPER, character_at, is_ideograph};
use super::grammar::{Grammar, Words};
use super::rules::{Characters, certain_starts};
use super::scalar;
use crate::kernels::{BLOCK, Lanes, Masks};

/// Starts that one [`fill`] finds at most, before the last block's.
const BATCH: usize = 256;
/// Below this many bytes a block is not worth its set-up.
const SHORT: usize = 8;
/// After blocks that found nothing, spans that are scanned one by one before the next try.
const PATIENCE: usize = 8;

/// Where spans start, in order, and the end of the last one.
pub(crate) struct Starts {
    places: [usize; BATCH + BLOCK],
    count: usize,
}

impl Starts {
    /// Starts that still find room after the last one that [`Self::is_full`] allowed.
    pub(crate) const ROOM: usize = BLOCK;

    pub(crate) fn new() -> Self {
        Self { places: [0; BATCH + BLOCK], count: 0 }
    }

    /// The starts, then the end of the last span. Empty at the end of the text, otherwise at least two long.
    #[inline(always)]
    pub(crate) fn bounds(&self) -> &[usize] {
        self.places.get(..self.count).unwrap_or(&self.places)
    }

    #[inline(always)]
    pub(crate) fn clear(&mut self) {
        self.count = 0;
    }

    #[inline(always)]
    pub(crate) fn is_full(&self) -> bool {
        self.count >= BATCH - PATIENCE
    }

    #[inline(always)]
    pub(crate) fn push(&mut self, place: usize) {
        self.push_if(place, true);
    }

    /// Keeps the place if `kept`, without a branch on it.
    #[inline(always)]
    pub(crate) fn push_if(&mut self, place: usize, kept: bool) {
        if let Some(slot) = self.places.get_mut(self.count) {
            *slot = place;
            self.count += usize::from(kept);
        }
    }

    /// Pushes the place of each set bit; room for [`BLOCK`] of them must be left.
    #[inline(always)]
    fn push_bits<K: Lanes>(&mut self, base: usize, bits: u64) {
        let Some(room) = self.places.get_mut(self.count..).and_then(|room| room.first_chunk_mut()) else {
            return;
        };
        K::places(base, bits, room);
        self.count += bits.count_ones() as usize;
    }
}

/// Replaces `starts` by the next spans of `text`, which begins where a span begins and goes on to the end of the
/// whole text.
#[inline(always)]
pub(crate) fn fill<G: Grammar, K: Lanes>(text: &[u8], starts: &mut Starts) {
    starts.count = 0;
    let (mut at, mut failures) = (0, 0);
    while at < text.len() && !starts.is_full() {
        let (bits, step) = if text.len() - at < SHORT { (0, 0) } else { scan_block::<G, K>(text, at) };
        if step > 0 {
            starts.push_bits::<K>(at, bits);
            at += step;
            failures = 0;
            continue;
        }
        failures += 1;
        let spans = if failures > 1 { PATIENCE } else { 1 };
        for _ in 0..spans {
            if at == text.len() {
                break;
            }
            starts.push(at);
            at = scalar::next_end::<G>(text, at);
        }
    }
    if starts.count > 0 {
        starts.push(at);
    }
}

/// The starts of the spans that certainly end within the block at `at`, and the bytes that they cover: 0 if none.
#[inline(always)]
fn scan_block<G: Grammar, K: Lanes>(text: &[u8], at: usize) -> (u64, usize) {
    let tail = &text[at..];
    let mut padded = [0; BLOCK];
    let (bytes, length) = if let Some(block) = tail.first_chunk() {
        (block, BLOCK)
    } else {
        padded[..tail.len()].copy_from_slice(tail);
        (&padded, tail.len())
    };
    let masks = K::classify(bytes);
    let valid = u64::MAX >> (BLOCK - length);
    let (contractions, valid) = contractions::<G>(tail, masks.apostrophe & valid, valid);
    let starts = if masks.non_ascii & valid == 0 {
        certain_starts::<G>(&Characters::ascii(&masks, contractions, valid))
    } else if K::MOVES_BITS {
        mixed_starts::<G, K>(tail, &masks, contractions, valid)
    } else {
        let beyond = masks.non_ascii & valid;
        let ascii = valid & ((beyond & beyond.wrapping_neg()) - 1);
        certain_starts::<G>(&Characters::ascii(&masks, contractions, ascii))
    };
    // The last start begins a span that may not end here: it is where the next block begins.
    let step = (starts | 1).ilog2();
    (starts ^ 1 << step, step as usize)
}

/// Where contractions of two and three characters would begin, by the apostrophe's bit. Text from an apostrophe
/// that precedes a long s is left to the scalar scanner: the second mask returned ends before it.
#[inline(always)]
fn contractions<G: Grammar>(tail: &[u8], mut apostrophes: u64, valid: u64) -> ([u64; 2], u64) {
    let mut found = [0, 0];
    if !G::CONTRACTIONS {
        return (found, valid);
    }
    while apostrophes != 0 {
        let place = apostrophes.trailing_zeros() as usize;
        let bit = apostrophes & apostrophes.wrapping_neg();
        apostrophes ^= bit;
        let fold = |offset: usize| {
            let byte = tail.get(place + offset).copied().unwrap_or(0);
            if G::WORDS == Words::AfterSpace { byte } else { byte.to_ascii_lowercase() }
        };
        match (fold(1), fold(2)) {
            (b's' | b'd' | b'm' | b't', _) => found[0] |= bit,
            (b'l', b'l') | (b'v' | b'r', b'e') => found[1] |= bit,
            (0xc5, _) if G::WORDS != Words::AfterSpace => return (found, valid & (bit - 1)),
            _ => {}
        }
    }
    (found, valid)
}

/// [`certain_starts`] for a block with characters beyond ASCII.
#[inline(always)]
fn mixed_starts<G: Grammar, K: Lanes>(tail: &[u8], masks: &Masks, contractions: [u64; 2], valid: u64) -> u64 {
    let (mut by_class, mut ideographs) = ([0_u64; 16], 0);
    let (mut firsts, mut valid) = (!masks.non_ascii, valid);
    let mut left = masks.non_ascii & valid;
    while left != 0 {
        let place = left.trailing_zeros() as usize;
        let Some(character) = character_at(tail, place) else { break };
        // A character that goes beyond the block, or a mark where marks are both word and other, ends it here.
        if place + character.width > BLOCK || (G::WORDS == Words::Cased && character.is(MARK)) {
            valid &= (1 << place) - 1;
            break;
        }
        by_class[character.class.trailing_zeros() as usize & 15] |= 1 << place;
        if G::WORDS == Words::AfterPunctuation && is_ideograph(tail, place) {
            ideographs |= 1 << place;
        }
        firsts |= 1 << place;
        left &= (u64::MAX << place) << (character.width - 1) << 1;
    }
    let members = |set: u16| {
        let classes = by_class.iter().enumerate().filter(|(class, _)| set >> class & 1 != 0);
        classes.fold(0, |members, (_, class)| members | class)
    };
    let caseless = members(CASELESS);
    let upper = masks.upper | members(UPPER);
    if G::WORDS == Words::Cased && upper & valid != 0 && caseless & valid != 0 {
        // How upper case and letters without case share a word depends on what follows: see the scalar scanner.
        valid &= (caseless & caseless.wrapping_neg()) - 1;
    }
    let places = firsts & valid;
    let squeeze = |mask: u64| K::gather_bits(mask, places);
    let starts = certain_starts::<G>(&Characters {
        letter: squeeze(masks.upper | masks.lower | members(G::LETTERS)),
        upper: squeeze(upper),
        lower: squeeze(masks.lower | members(LOWER)),
        number: squeeze(masks.number | members(G::NUMBERS)),
        space: squeeze(masks.space | members(SPACE)),
        line_break: squeeze(masks.line_break),
        blank: squeeze(masks.blank),
        slash: squeeze(masks.slash),
        symbol: squeeze(masks.symbols() | members(PUNCTUATION | SYMBOL)),
        ascii_letter: squeeze(masks.upper | masks.lower),
        ascii_symbol: squeeze(masks.symbols()),
        ideograph: squeeze(ideographs),
        contractions: contractions.map(squeeze),
        valid: squeeze(u64::MAX),
    });
    K::scatter_bits(starts, places)
}
