//! Storing pages: from the caller's memory to a segment, and making room for one.

use super::chunk::{Batch, Chunk, Filler, Piece, Place};
use super::log::{Active, Writer, Written};
use super::record::{Key, SegmentHeader, SegmentId, record_bytes};
use super::rows::SourceRows;
use super::segment::Segment;
use super::sync::lock;
use super::{Inner, TierError, root};
use crate::tier::device::{SegmentFile, write_full};
use std::cell::RefCell;
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

impl Inner {
    /// Stores the pages whose keys are new; returns how many those were.
    ///
    /// The caller's thread copies and checks; where there is a deadline, a thread of the tier writes.
    pub(super) fn store(&self, keys: &[Key], rows: &SourceRows<'_>) -> Result<usize, TierError> {
        let spare = RefCell::new(lock(&self.spare));
        let place = Place {
            position: self.position.load(Ordering::Relaxed),
            segment_bytes: self.options.segment_bytes,
        };
        let filler = RefCell::new(Filler::new(keys, rows, self.kind, self.options.compression, place));
        let outcome = RefCell::new(Ok(()));
        let chunks = std::iter::from_fn(|| {
            if outcome.borrow().is_err() {
                return None;
            }
            filler.borrow_mut().next(&mut spare.borrow_mut(), |key| lock(&self.index).contains(key))
        });
        let settle = |chunk: Chunk, written: Result<(), TierError>| {
            spare.borrow_mut().keep(chunk);
            if written.is_err() {
                *outcome.borrow_mut() = written;
            }
        };
        if let (Some(background), Some(this)) = (&self.background, self.this.upgrade()) {
            let jobs = chunks.map(|mut chunk| {
                let this = Arc::clone(&this);
                move || {
                    let written = this.put(&mut chunk);
                    (chunk, written)
                }
            });
            let in_time = background.write(jobs, |(chunk, written)| settle(chunk, written));
            if !in_time && outcome.borrow().is_ok() {
                self.counters.late_writes.add(1);
                *outcome.borrow_mut() = Err(self.late("storing"));
            }
        } else {
            for mut chunk in chunks {
                let written = self.put(&mut chunk);
                settle(chunk, written);
            }
        }
        let filler = filler.into_inner();
        self.counters.known_pages.add(filler.known);
        outcome.into_inner().map(|()| filler.new_pages())
    }

    /// Writes a chunk, and lets its pages be found.
    fn put(&self, chunk: &mut Chunk) -> Result<(), TierError> {
        let mut writer = lock(&self.writer);
        let written = match chunk {
            Chunk::Batch(batch) => self.put_batch(&mut writer, batch),
            Chunk::Piece(piece) => self.put_piece(&mut writer, piece),
        };
        self.position.store(writer.active.as_ref().map_or(0, |active| active.position), Ordering::Relaxed);
        written
    }

    fn put_batch(&self, writer: &mut Writer, batch: &mut Batch) -> Result<(), TierError> {
        let mut done = 0;
        while done < batch.records.len() {
            let start = batch.records[done].start;
            let first = (batch.records[done].end - start) as u64;
            let active = self.segment_with_room(writer, first)?;
            let until = done + active.fitting(batch, done, self.options.segment_bytes);
            let before = active.position;
            let written = active.write(batch, done..until)?;
            self.publish(writer, before, &written);
            done = until;
        }
        Ok(())
    }

    fn put_piece(&self, writer: &mut Writer, piece: &Piece) -> Result<(), TierError> {
        if piece.is_first {
            self.segment_with_room(writer, record_bytes(self.kind.page_bytes))?;
        }
        // A piece behind one that could not be written has no segment, or another one.
        let Some(active) = &mut writer.active else { return Ok(()) };
        let before = active.position;
        if let Some(written) = active.write_piece(piece)? {
            self.publish(writer, before, &[written]);
        }
        Ok(())
    }

    /// The segment that is written, or a new one where that has no room for so many bytes.
    fn segment_with_room<'a>(&self, writer: &'a mut Writer, bytes: u64) -> Result<&'a mut Active, TierError> {
        let has_room =
            writer.active.as_ref().is_some_and(|it| it.has_room(bytes, self.options.segment_bytes));
        if !has_room {
            seal(writer);
            let begun = self.begin_segment(writer)?;
            return Ok(writer.active.insert(begun));
        }
        // The smallest segment holds a page, so a new one has room; and there is one.
        writer.active.as_mut().ok_or(TierError::Closed)
    }

    /// Lets pages be found that were written from `before` on.
    fn publish(&self, writer: &mut Writer, before: u64, written: &[Written]) {
        let Some(active) = &writer.active else { return };
        let segment = Arc::clone(&active.segment);
        self.counters.stored_pages.add(written.len());
        self.counters.written_bytes.add((active.position - before) as usize);
        lock(&self.index).add_pages(&segment, written.iter().copied());
        writer.note_dirty(&segment, before);
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
            Ok(Active::new(segment))
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

    /// Ends writing: the active segment is cut to what it has. Not where a thread still waits for the device to take
    /// something: then the segment stays open, as after a crash.
    pub(super) fn finish(&self) {
        if let Ok(mut writer) = self.writer.try_lock() {
            seal(&mut writer);
        }
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
