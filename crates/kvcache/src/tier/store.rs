//! Writing pages, making them durable, and making room.

use super::check::PIECE_BYTES;
use super::log::{Active, BATCH_BYTES, Writer};
use super::record::{Key, SEGMENT_HEADER_BYTES, SegmentHeader, SegmentId};
use super::rows::SourceRows;
use super::segment::Segment;
use super::sync::lock;
use super::{Compression, Inner, TierError, root};
use crate::tier::device::{SegmentFile, write_full};
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::sync::Arc;

impl Inner {
    /// Stores the pages whose keys are new; returns how many those were.
    pub(super) fn store(&self, keys: &[Key], rows: &SourceRows<'_>) -> Result<usize, TierError> {
        let mut writer = lock(&self.writer);
        let mut stored = 0;
        for (row, key) in keys.iter().enumerate() {
            if writer.parts().0.holds(key) || lock(&self.index).contains(key) {
                self.counters.known_pages.add(1);
                continue;
            }
            let outcome = self.append(&mut writer, *key, rows, row);
            if let Err(error) = outcome {
                writer.parts().0.clear();
                return Err(error);
            }
            stored += 1;
        }
        self.write_batch(&mut writer)?;
        Ok(stored)
    }

    /// Adds a page to the batch, which is written when it is long enough.
    fn append(
        &self,
        writer: &mut Writer,
        key: Key,
        rows: &SourceRows<'_>,
        row: usize,
    ) -> Result<(), TierError> {
        let page_bytes = self.kind.page_bytes;
        let (batch, active) = writer.parts();
        let has_room = active
            .as_ref()
            .is_some_and(|it| it.has_room(batch.len(), page_bytes, self.options.segment_bytes));
        if !has_room {
            self.write_batch(writer)?;
            seal(writer);
            let begun = self.begin_segment(writer)?;
            writer.active = Some(begun);
        }
        let (batch, active) = writer.parts();
        let Some(active) = active else { return Ok(()) };
        if page_bytes as usize > PIECE_BYTES && self.options.compression == Compression::None {
            let (segment, before) = (Arc::clone(&active.segment), active.position);
            let outcome = batch.write_long(active, key, rows, row);
            let written = (active.position - before) as usize;
            self.finish_batch(writer, &segment, before, written, outcome)
        } else {
            batch.push(key, rows, row, self.options.compression, &active.segment);
            if batch.len() >= BATCH_BYTES { self.write_batch(writer) } else { Ok(()) }
        }
    }

    /// Writes the batch, if there is something in it, and lets its pages be found.
    fn write_batch(&self, writer: &mut Writer) -> Result<(), TierError> {
        let (batch, active) = writer.parts();
        let Some(active) = active.as_mut().filter(|_| !batch.is_empty()) else { return Ok(()) };
        let (segment, before) = (Arc::clone(&active.segment), active.position);
        let outcome = batch.write(active);
        let written = batch.len();
        self.finish_batch(writer, &segment, before, written, outcome)
    }

    /// Lets the pages of a batch that was written be found; empties the batch.
    fn finish_batch(
        &self,
        writer: &mut Writer,
        segment: &Arc<Segment>,
        before: u64,
        written: usize,
        outcome: Result<(), TierError>,
    ) -> Result<(), TierError> {
        let (batch, _) = writer.parts();
        if outcome.is_ok() {
            self.counters.stored_pages.add(batch.records.len());
            self.counters.written_bytes.add(written);
            lock(&self.index).add_pages(segment, batch.records.iter().copied());
        }
        batch.clear();
        outcome.map(|()| writer.note_dirty(segment, before))
    }

    /// Begins a segment, in a new file or in that of a segment that had to go.
    fn begin_segment(&self, writer: &mut Writer) -> Result<Active, TierError> {
        self.root.exclusively(|| {
            self.refresh()?;
            let old = self.make_room()?;
            let (path, file) = match old {
                Some(segment) => (segment.path.clone(), Arc::clone(&segment.file)),
                None => self.create_file()?,
            };
            writer.new_entries = true;
            let header = SegmentHeader { id: random_id(), kind: self.kind, sequence: self.next_sequence() };
            let begun = self.write_header(&*file, &header).map_err(|error| {
                let _ = self.root.device.remove(&path);
                TierError::io("writing", &path, &error)
            });
            begun?;
            let segment = Arc::new(Segment::new(path, header, file, true));
            segment.note_use();
            lock(&self.index).add_segment(&segment);
            self.note_own(&segment);
            writer.note_dirty(&segment, 0);
            Ok(Active { segment, position: SEGMENT_HEADER_BYTES as u64 })
        })
    }

    fn write_header(&self, file: &dyn SegmentFile, header: &SegmentHeader) -> std::io::Result<()> {
        write_full(file, &header.encode(), 0)?;
        // Its whole room is counted from now on, though the device gives it only as it is written.
        file.truncate(self.options.segment_bytes)
    }

    fn create_file(&self) -> Result<(PathBuf, Arc<dyn SegmentFile>), TierError> {
        let taken = self.root.segment_paths()?;
        let own = taken.iter().filter(|path| path.parent() == Some(&*self.root.own_directory));
        let number = own.filter_map(|path| root::segment_number(path)).max().map_or(0, |last| last + 1);
        let path = self.root.segment_path(number);
        let file =
            self.root.device.create(&path).map_err(|error| TierError::io("creating", &path, &error))?;
        Ok((path, file))
    }

    /// Removes the segments that were used longest ago until another one fits. The last of them, if it is ours, is
    /// given back to be written anew: its pages of the page cache are there already, and fresh ones cost more than
    /// the copy into them.
    fn make_room(&self) -> Result<Option<Arc<Segment>>, TierError> {
        let needed = self.options.segment_bytes;
        let capacity = self.options.capacity_bytes;
        let mut total = self.total_bytes()?;
        if total + needed <= capacity {
            return Ok(None);
        }
        for segment in self.victims() {
            let length = segment.file.length().unwrap_or(0);
            total = total.saturating_sub(length);
            let pages = self.forget(&segment);
            self.counters.evicted_segments.add(1);
            self.counters.evicted_pages.add(pages);
            let enough = total + needed <= capacity;
            if enough && segment.own && segment.path.parent() == Some(&*self.root.own_directory) {
                return Ok(Some(segment));
            }
            self.remove_file(&segment.path, &*segment.file);
            if enough {
                return Ok(None);
            }
        }
        Err(TierError::NoRoom { segment: needed, capacity })
    }

    /// Segments that may go, the least recently used first: all but those that somebody is writing.
    fn victims(&self) -> Vec<Arc<Segment>> {
        let index = lock(&self.index);
        let mut all: Vec<_> = index.segments().cloned().collect();
        drop(index);
        let newest_of = |directory: Option<&Path>| {
            let same = all.iter().filter(|it| it.path.parent() == directory);
            same.map(|it| it.header.sequence).max()
        };
        let is_written = |segment: &Arc<Segment>| {
            let directory = segment.path.parent();
            !segment.own
                && directory != Some(&*self.root.own_directory)
                && newest_of(directory) == Some(segment.header.sequence)
                && self.root.is_being_written(&segment.path)
        };
        let written: Vec<SegmentId> = all.iter().filter(|it| is_written(it)).map(|it| it.header.id).collect();
        all.retain(|it| !written.contains(&it.header.id));
        all.sort_by_cached_key(|it| (it.used(), it.header.sequence));
        all
    }

    /// Removes a file and gives its bytes back at once, though other processes may have it open: they then read
    /// nothing, which is a miss.
    fn remove_file(&self, path: &Path, file: &dyn SegmentFile) {
        let _ = self.root.device.remove(path);
        let _ = file.truncate(0);
    }

    /// Bytes of all segment files, whoever wrote them.
    pub(super) fn total_bytes(&self) -> Result<u64, TierError> {
        let known = lock(&self.known);
        let mut total = 0;
        for path in self.root.segment_paths()? {
            let file = known.get(&path).map(|known| Arc::clone(&known.file));
            let length =
                file.or_else(|| self.root.device.open(&path).ok()).and_then(|file| file.length().ok());
            total += length.unwrap_or(0);
        }
        Ok(total)
    }

    /// Makes all that was stored before this call durable.
    pub(super) fn flush(&self) -> Result<(), TierError> {
        self.commit.commit(|| {
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
        })
    }

    /// Writes no more to a segment whose sync failed.
    fn abandon(&self, segment: &Arc<Segment>) {
        let mut writer = lock(&self.writer);
        if writer.active.as_ref().is_some_and(|active| Arc::ptr_eq(&active.segment, segment)) {
            writer.active = None;
        }
    }

    /// Ends writing: the active segment is cut to what it has.
    pub(super) fn finish(&self) {
        seal(&mut lock(&self.writer));
    }
}

/// Ends the segment that is written: it keeps the bytes that it has.
fn seal(writer: &mut Writer) {
    if let Some(active) = writer.active.take() {
        // What is cut is room that was never written; if that fails, it stays counted, and goes with the segment.
        let _ = active.segment.file.truncate(active.position);
        active.segment.note_use();
    }
}

/// Two random words; no two segments of a directory ever have the same.
fn random_id() -> SegmentId {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&RandomState::new().hash_one(std::process::id()).to_le_bytes());
    id[8..].copy_from_slice(&RandomState::new().hash_one(std::time::SystemTime::now()).to_le_bytes());
    id
}
