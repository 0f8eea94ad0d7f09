//! Merging a span of some hundred bytes: no heap, and all it needs in 8 KiB.
//!
//! The merge that happens next is the least number of all; the least of each group of symbols is kept, so that a merge
//! looks through the group that it changed and the leasts of the others.

use super::join::Placed;
use super::next_merge::{NO_MERGE, NO_MERGE_FROM, PLACE_BITS, PLACES as GROUP, least, merge_at};
use super::pairs::Pairs;
use super::vocabulary::Vocabulary;

/// The longest span in bytes.
pub(super) const WINDOW: usize = GROUPS * GROUP;
const GROUPS: usize = 8;
/// The neighbour of the first and the last symbol; has a slot, so that writing to it does no harm.
const NOBODY: u16 = WINDOW as u16;

/// Symbols in a list linked both ways, each at the place of its first byte.
pub(super) struct Window {
    ids: [u32; WINDOW + 1],
    previous: [u16; WINDOW + 1],
    next: [u16; WINDOW + 1],
    /// The merge of each symbol with the next one: its rank, then its place in the group.
    merges: [i32; WINDOW],
    leasts: [i32; GROUPS],
}

impl Window {
    pub(super) const fn new() -> Self {
        Self {
            ids: [0; WINDOW + 1],
            previous: [NOBODY; WINDOW + 1],
            next: [NOBODY; WINDOW + 1],
            merges: [NO_MERGE; WINDOW],
            leasts: [NO_MERGE; GROUPS],
        }
    }

    /// Merges the bytes of `span`, of which there are at most [`WINDOW`] (what is longer is cut), and returns the
    /// tokens in order.
    pub(super) fn merge(
        &mut self,
        pairs: &Pairs,
        vocabulary: &Vocabulary,
        span: &[u8],
    ) -> impl Iterator<Item = Placed> {
        let span = span.get(..WINDOW).unwrap_or(span);
        self.begin(pairs, vocabulary, span);
        while let Some((rank, place)) = self.first_merge() {
            self.join(pairs, rank, place);
        }
        let mut place = if span.is_empty() { NOBODY } else { 0 };
        std::iter::from_fn(move || {
            let start = usize::from(place);
            place = *self.next.get(start).filter(|_| place != NOBODY)?;
            Some(Placed { start: start as u32, id: self.ids[start] })
        })
    }

    fn begin(&mut self, pairs: &Pairs, vocabulary: &Vocabulary, span: &[u8]) {
        self.merges.fill(NO_MERGE);
        for (place, &byte) in span.iter().enumerate() {
            self.ids[place] = vocabulary.byte_id(byte);
            self.previous[place] = place.checked_sub(1).map_or(NOBODY, |place| place as u16);
            self.next[place] = if place + 1 < span.len() { place as u16 + 1 } else { NOBODY };
        }
        for (place, pair) in span.windows(2).enumerate() {
            self.merges[place] = pairs.of_bytes(pair[0], pair[1]).merge_at(place % GROUP);
        }
        for group in 0..GROUPS {
            self.look_through(group);
        }
    }

    /// The rank and the place of the merge that happens next: the lowest rank, leftmost.
    #[inline(always)]
    fn first_merge(&self) -> Option<(u32, usize)> {
        let mut least = NO_MERGE;
        let mut group = 0;
        for (at, &candidate) in self.leasts.iter().enumerate() {
            // Of equal ranks the earlier group's is taken, whatever their places inside.
            let is_less = candidate >> PLACE_BITS < least >> PLACE_BITS;
            (least, group) = if is_less { (candidate, at) } else { (least, group) };
        }
        (least < NO_MERGE_FROM)
            .then_some((least as u32 >> PLACE_BITS, group * GROUP + least as usize % GROUP))
    }

    #[inline(always)]
    fn join(&mut self, pairs: &Pairs, rank: u32, place: usize) {
        let merged = pairs.made(rank);
        let right = usize::from(self.next[place]);
        let beyond = self.next[right];
        let left = self.previous[place];
        self.ids[place] = merged;
        self.next[place] = beyond;
        self.previous[usize::from(beyond)] = place as u16;
        self.set(right, NO_MERGE);
        let with_next = pairs.rank(merged, self.ids[usize::from(beyond)]);
        self.set(place, if beyond == NOBODY { NO_MERGE } else { merge_at(with_next, place) });
        if left != NOBODY {
            let left = usize::from(left);
            self.set(left, merge_at(pairs.rank(self.ids[left], merged), left));
            if left / GROUP != place / GROUP {
                self.look_through(left / GROUP);
            }
        }
        if right / GROUP != place / GROUP {
            self.look_through(right / GROUP);
        }
        self.look_through(place / GROUP);
    }

    #[inline(always)]
    fn set(&mut self, place: usize, merge: i32) {
        if let Some(slot) = self.merges.get_mut(place) {
            *slot = merge;
        }
    }

    #[inline(always)]
    fn look_through(&mut self, group: usize) {
        let merges = &self.merges[group * GROUP..][..GROUP];
        self.leasts[group] = least(merges);
    }
}
