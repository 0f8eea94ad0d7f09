//! How pages move between callers, host memory and disk.

use super::super::LoadOptions;
use super::super::record::Key;
use super::super::rows::{SourceRows, TargetRows};
use super::super::sync::lock;
use super::Shared;
use super::slots::Begun;
use crate::KvCacheError;
use std::time::Instant;

/// Pages that a thread moves at once.
const BATCH_PAGES: usize = 16;

impl Shared {
    pub(super) fn store(&self, keys: &[Key], rows: &SourceRows<'_>) -> Vec<bool> {
        let due = self.store_deadline.map(|deadline| Instant::now() + deadline);
        let take = |(row, key): (usize, &Key)| {
            let begun = lock(&self.slots).begin(key);
            let slot = match begun {
                Begun::Known => return true,
                Begun::Full => return false,
                Begun::Unsaved(slot) => slot,
                Begun::Slot(slot) => {
                    self.host.fill(slot, rows, row);
                    lock(&self.slots).publish(slot);
                    slot
                }
            };
            // The hold goes with the page into the queue: until it is written it cannot be evicted.
            if self.writes.push(slot, due).is_err() {
                // It stays in host memory as long as nobody needs the place, but it is not promised to anybody.
                self.give_up(&[slot]);
                return false;
            }
            true
        };
        let taken: Vec<bool> = keys.iter().enumerate().map(take).collect();
        let count = taken.iter().filter(|&&taken| taken).count();
        self.counters.stored_pages.add(count);
        self.counters.refused_pages.add(taken.len() - count);
        taken
    }

    /// Ends the holds on pages that the disk has not taken.
    fn give_up(&self, slots: &[u32]) {
        let mut table = lock(&self.slots);
        for &slot in slots {
            table.note_unsaved(slot);
            table.release(slot);
        }
    }

    pub(super) fn load(
        &self,
        keys: &[Key],
        rows: &TargetRows<'_>,
        options: &LoadOptions<'_>,
    ) -> Result<Vec<bool>, KvCacheError> {
        let mut found = vec![false; keys.len()];
        let mut missing = Vec::new();
        for (row, key) in keys.iter().enumerate() {
            let held = lock(&self.slots).hold(key);
            match held {
                Some(slot) => {
                    self.host.deliver(slot, rows, row);
                    lock(&self.slots).release(slot);
                    found[row] = true;
                }
                None => missing.push(row),
            }
        }
        self.counters.host_hits.add(keys.len() - missing.len());
        // As many as have a place come through host memory, where the next one finds them; the others come directly.
        let mut direct = Vec::new();
        for some in missing.chunks(BATCH_PAGES) {
            let wanted: Vec<Key> = some.iter().map(|&row| keys[row]).collect();
            let (brought, placeless) = self.bring_pages(&wanted, options)?;
            for (position, slot) in brought {
                self.host.deliver(slot, rows, some[position]);
                lock(&self.slots).release(slot);
                found[some[position]] = true;
            }
            direct.extend(placeless.into_iter().map(|position| some[position]));
        }
        if !direct.is_empty() {
            self.disk.load_rows(keys, &direct, rows, options, &mut found)?;
        }
        let hits = missing.iter().filter(|&&row| found[row]).count();
        self.counters.disk_hits.add(hits);
        self.counters.misses.add(missing.len() - hits);
        Ok(found)
    }

    /// Brings pages from disk to slots. Returns the positions that were found, with their slots held, and those that
    /// got no slot.
    #[allow(clippy::type_complexity)] // two lists, both explained
    fn bring_pages(
        &self,
        keys: &[Key],
        options: &LoadOptions<'_>,
    ) -> Result<(Vec<(usize, u32)>, Vec<usize>), KvCacheError> {
        let (mut positions, mut slots, mut placeless) = (Vec::new(), Vec::new(), Vec::new());
        let known: Vec<bool> = {
            let index = lock(&self.disk.index);
            keys.iter().map(|key| index.contains(key)).collect()
        };
        let mut table = lock(&self.slots);
        for (position, (key, known)) in keys.iter().zip(known).enumerate() {
            // A slot is not emptied for a page that nobody has.
            if !known || table.knows(key) {
                placeless.push(position);
            } else if let Begun::Slot(slot) = table.begin(key) {
                positions.push(position);
                slots.push(slot);
            } else {
                placeless.push(position);
            }
        }
        drop(table);
        let wanted: Vec<Key> = positions.iter().map(|&position| keys[position]).collect();
        let found = self.disk.load(&wanted, &self.host.target(&slots), options);
        let mut table = lock(&self.slots);
        let Ok(found) = found else {
            for &slot in &slots {
                table.abandon(slot);
            }
            return found.map(|_| (Vec::new(), placeless));
        };
        let mut brought = Vec::new();
        for ((position, slot), hit) in positions.into_iter().zip(slots).zip(found) {
            if hit {
                table.publish(slot);
                brought.push((position, slot));
            } else {
                table.abandon(slot);
            }
        }
        Ok((brought, placeless))
    }

    pub(super) fn prefetch(&self, keys: &[Key]) -> usize {
        let now = Instant::now();
        let wanted = |key: &&Key| !lock(&self.slots).knows(key) && lock(&self.disk.index).contains(key);
        keys.iter().filter(wanted).take_while(|key| self.prefetches.push(**key, Some(now)).is_ok()).count()
    }

    /// The thread that writes.
    pub(super) fn write_back(&self) {
        loop {
            let slots = self.writes.take(BATCH_PAGES);
            if slots.is_empty() {
                return;
            }
            let keys: Vec<Key> = {
                let table = lock(&self.slots);
                slots.iter().filter_map(|&slot| table.key(slot)).collect()
            };
            match self.disk.store(&keys, &self.host.source(&slots)) {
                Ok(_) => {
                    self.counters.written_pages.add(slots.len());
                    let mut table = lock(&self.slots);
                    for &slot in &slots {
                        table.release(slot);
                    }
                }
                Err(error) => {
                    self.counters.failed_writes.add(slots.len());
                    *lock(&self.failure) = Some(error);
                    self.give_up(&slots);
                }
            }
            self.writes.finish(slots.len());
        }
    }

    /// The thread that brings.
    pub(super) fn bring(&self) {
        loop {
            let keys = self.prefetches.take(BATCH_PAGES);
            if keys.is_empty() {
                return;
            }
            // One thread reads: those of the pool are for callers who wait.
            let options = LoadOptions { num_threads: Some(1), ..LoadOptions::default() };
            if let Ok((brought, _)) = self.bring_pages(&keys, &options) {
                self.counters.prefetched_pages.add(brought.len());
                let mut table = lock(&self.slots);
                for &(_, slot) in &brought {
                    table.release(slot);
                }
            }
            self.prefetches.finish(keys.len());
        }
    }
}
