//! Which page lies in which slot of the host, and who uses it.

use crate::tier::record::Key;
use std::collections::{BTreeMap, HashMap};

/// The host's slots. One that nobody holds can be taken for another page, the least recently used first.
#[derive(Debug)]
pub(super) struct Slots {
    index: HashMap<Key, u32>,
    entries: Vec<Entry>,
    free: Vec<u32>,
    /// Slots that nobody holds, by when they were used last.
    idle: BTreeMap<u64, u32>,
    clock: u64,
}

#[derive(Clone, Debug, Default)]
struct Entry {
    key: Option<Key>,
    /// Readers, writers to disk, and the one who fills it.
    holds: u32,
    used: u64,
    filled: bool,
    /// The disk did not take it.
    unsaved: bool,
}

/// What came of asking for a slot.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Begun {
    /// The page is there, or somebody is bringing it.
    Known,
    /// Yours to fill.
    Slot(u32),
    /// The page is there, and the disk has not taken it: held, to try again.
    Unsaved(u32),
    /// Everything is held.
    Full,
}

impl Slots {
    pub(super) fn new(count: usize) -> Self {
        Self {
            index: HashMap::with_capacity(count),
            entries: vec![Entry::default(); count],
            free: (0..count as u32).rev().collect(),
            idle: BTreeMap::new(),
            clock: 0,
        }
    }

    /// Whether the page is there, or somebody is bringing it.
    pub(super) fn knows(&self, key: &Key) -> bool {
        self.index.contains_key(key)
    }

    /// The slot of a page that is there, with a hold more.
    pub(super) fn hold(&mut self, key: &Key) -> Option<u32> {
        let slot = *self.index.get(key)?;
        let entry = self.entries.get_mut(slot as usize)?;
        if !entry.filled {
            return None;
        }
        if entry.holds == 0 {
            self.idle.remove(&entry.used);
        }
        entry.holds += 1;
        Some(slot)
    }

    /// Takes a slot to fill it with a page.
    pub(super) fn begin(&mut self, key: &Key) -> Begun {
        if let Some(&slot) = self.index.get(key) {
            if !self.entries[slot as usize].unsaved {
                return Begun::Known;
            }
            let _ = self.hold(key);
            self.entries[slot as usize].unsaved = false;
            return Begun::Unsaved(slot);
        }
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => match self.idle.pop_first() {
                Some((_, slot)) => slot,
                None => return Begun::Full,
            },
        };
        let entry = &mut self.entries[slot as usize];
        if let Some(old) = entry.key.take() {
            self.index.remove(&old);
        }
        *entry = Entry { key: Some(*key), holds: 1, ..Entry::default() };
        self.index.insert(*key, slot);
        Begun::Slot(slot)
    }

    /// Lets a page that was filled be found. The hold of the one who filled it stays.
    pub(super) fn publish(&mut self, slot: u32) {
        self.entries[slot as usize].filled = true;
    }

    /// Gives a slot back that was not filled.
    pub(super) fn abandon(&mut self, slot: u32) {
        let entry = std::mem::take(&mut self.entries[slot as usize]);
        if let Some(key) = entry.key {
            self.index.remove(&key);
        }
        self.free.push(slot);
    }

    /// Notes that the disk has not taken a page, so that storing it again tries again.
    pub(super) fn note_unsaved(&mut self, slot: u32) {
        self.entries[slot as usize].unsaved = true;
    }

    /// Ends a hold.
    pub(super) fn release(&mut self, slot: u32) {
        self.clock += 1;
        let entry = &mut self.entries[slot as usize];
        entry.holds -= 1;
        if entry.holds == 0 {
            entry.used = self.clock;
            self.idle.insert(self.clock, slot);
        }
    }

    pub(super) fn key(&self, slot: u32) -> Option<Key> {
        self.entries.get(slot as usize)?.key
    }

    pub(super) fn num_pages(&self) -> usize {
        self.index.len()
    }

    /// Whether the books agree with each other.
    #[cfg(test)]
    pub(super) fn check(&self) {
        let idle = self.entries.iter().filter(|entry| entry.key.is_some() && entry.holds == 0).count();
        assert_eq!(idle, self.idle.len());
        assert_eq!(self.index.len() + self.free.len(), self.entries.len());
        for (key, &slot) in &self.index {
            assert_eq!(self.entries[slot as usize].key, Some(*key));
        }
    }
}
