//! Which page lies where.

use super::record::{Key, SegmentId};
use super::segment::{Location, Segment};
use std::collections::HashMap;
use std::sync::Arc;

/// All pages of a directory, as far as this process has seen them.
#[derive(Debug, Default)]
pub(super) struct Index {
    pages: HashMap<Key, Location>,
    /// The keys of each segment, for the day that it goes.
    segments: HashMap<SegmentId, (Arc<Segment>, Vec<Key>)>,
}

impl Index {
    pub(super) fn find(&self, key: &Key) -> Option<&Location> {
        self.pages.get(key)
    }

    pub(super) fn contains(&self, key: &Key) -> bool {
        self.pages.contains_key(key)
    }

    pub(super) fn add_segment(&mut self, segment: &Arc<Segment>) {
        self.segments.entry(segment.header.id).or_insert_with(|| (Arc::clone(segment), Vec::new()));
    }

    /// Adds pages of a segment; one that is stored twice is found where it was stored last.
    pub(super) fn add_pages(&mut self, segment: &Arc<Segment>, pages: impl Iterator<Item = (Key, u64, u32)>) {
        let Some((_, keys)) = self.segments.get_mut(&segment.header.id) else { return };
        for (key, offset, stored_bytes) in pages {
            self.pages.insert(key, Location { segment: Arc::clone(segment), offset, stored_bytes });
            keys.push(key);
        }
    }

    /// Forgets a page, if it is still the one at that place.
    pub(super) fn remove_page(&mut self, key: &Key, location: &Location) {
        let same = |found: &Location| found.is_in(&location.segment) && found.offset == location.offset;
        if self.pages.get(key).is_some_and(same) {
            self.pages.remove(key);
        }
    }

    /// Forgets a segment; returns how many pages went with it.
    pub(super) fn remove_segment(&mut self, segment: &Segment) -> usize {
        let Some((_, keys)) = self.segments.remove(&segment.header.id) else { return 0 };
        self.remove_where(&keys, |found| found.is_in(segment))
    }

    /// Forgets the pages of a segment from `from` on.
    pub(super) fn remove_pages_from(&mut self, segment: &Segment, from: u64) -> usize {
        let Some((_, keys)) = self.segments.get(&segment.header.id) else { return 0 };
        let keys = keys.clone();
        self.remove_where(&keys, |found| found.is_in(segment) && found.offset >= from)
    }

    fn remove_where(&mut self, keys: &[Key], condition: impl Fn(&Location) -> bool) -> usize {
        let before = self.pages.len();
        for key in keys {
            if self.pages.get(key).is_some_and(&condition) {
                self.pages.remove(key);
            }
        }
        before - self.pages.len()
    }

    pub(super) fn num_pages(&self) -> usize {
        self.pages.len()
    }

    pub(super) fn segments(&self) -> impl Iterator<Item = &Arc<Segment>> {
        self.segments.values().map(|(segment, _)| segment)
    }

    pub(super) fn clear(&mut self) {
        self.pages.clear();
        self.segments.clear();
    }
}
