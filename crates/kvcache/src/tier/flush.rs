//! Making pages durable.

use super::segment::Segment;
use super::sync::lock;
use super::{Inner, TierError};
use std::sync::Arc;

impl Inner {
    /// Makes all that was stored before this call durable.
    pub(super) fn flush(&self) -> Result<(), TierError> {
        self.commit.commit(|| {
            let (Some(background), Some(this)) = (&self.background, self.this.upgrade()) else {
                return self.sync();
            };
            background.sync(move || this.sync()).unwrap_or_else(|| {
                self.counters.late_writes.add(1);
                Err(self.late("syncing"))
            })
        })
    }

    fn sync(&self) -> Result<(), TierError> {
        let (dirty, new_entries) = {
            let mut writer = lock(&self.writer);
            (std::mem::take(&mut writer.dirty), std::mem::take(&mut writer.new_entries))
        };
        self.counters.syncs.add(1);
        let mut outcome = Ok(());
        for dirty in &dirty {
            if let Err(error) = dirty.segment.file.sync() {
                // What the device did not take may be lost though it can still be read: it must not be
                // acknowledged by a later flush, so it goes.
                let pages = lock(&self.index).remove_pages_from(&dirty.segment, dirty.from);
                self.counters.unsynced_pages.add(pages);
                self.abandon(&dirty.segment);
                outcome = Err(TierError::io("syncing", &dirty.segment.path, &error));
            }
        }
        if new_entries {
            let directory = &self.root.own_directory;
            let synced = self.root.device.sync_directory(directory);
            let synced = synced.and_then(|()| self.root.device.sync_directory(&self.root.path));
            if let Err(error) = synced {
                lock(&self.writer).new_entries = true;
                outcome = Err(TierError::io("syncing", directory, &error));
            }
        }
        outcome
    }

    /// Writes no more to a segment whose sync failed.
    fn abandon(&self, segment: &Arc<Segment>) {
        let mut writer = lock(&self.writer);
        if writer.active.as_ref().is_some_and(|active| Arc::ptr_eq(&active.segment, segment)) {
            writer.active = None;
        }
    }

    /// The error of a device that did not answer in time.
    pub(super) fn late(&self, action: &'static str) -> TierError {
        let seconds = self.options.write_deadline.unwrap_or_default().as_secs_f64().to_string();
        TierError::Late { action, path: self.root.path.clone(), seconds }
    }
}
