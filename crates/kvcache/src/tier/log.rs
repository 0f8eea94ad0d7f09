//! Writing: pages are appended to this writer's own segment, a batch at a time.
//!
//! A batch becomes visible by its first header, which is written last. Whoever reads the segment meanwhile, and
//! whoever reads it after this process was killed, finds all of a batch or nothing of it.

use super::TierError;
use super::chunk::{Batch, Piece};
use super::device::write_full;
use super::record::{
    BATCH_ALIGNMENT, Key, RECORD_HEADER_BYTES, RecordHeader, SEGMENT_HEADER_BYTES, record_bytes,
};
use super::segment::Segment;
use std::ops::Range;
use std::sync::Arc;

/// The writing side, behind one lock.
#[derive(Debug, Default)]
pub(super) struct Writer {
    pub(super) active: Option<Active>,
    /// Segments with bytes that no sync has covered.
    pub(super) dirty: Vec<Dirty>,
    /// Whether files came or went since the directory was synced.
    pub(super) new_entries: bool,
}

/// The segment that is written.
#[derive(Debug)]
pub(super) struct Active {
    pub(super) segment: Arc<Segment>,
    /// Where the next batch goes.
    pub(super) position: u64,
    /// The long page of which a part is written, and where its next piece goes.
    pub(super) long: Option<(u64, u64)>,
}

/// A segment that was written to, from `from` on.
#[derive(Clone, Debug)]
pub(super) struct Dirty {
    pub(super) segment: Arc<Segment>,
    pub(super) from: u64,
}

/// A page that was written: its key, where its record begins, and the bytes behind the header.
pub(super) type Written = (Key, u64, u32);

impl Writer {
    /// Notes that a segment has bytes that are not durable yet, from `from` on.
    pub(super) fn note_dirty(&mut self, segment: &Arc<Segment>, from: u64) {
        if !self.dirty.iter().any(|dirty| Arc::ptr_eq(&dirty.segment, segment)) {
            self.dirty.push(Dirty { segment: Arc::clone(segment), from });
        }
    }
}

impl Active {
    /// A segment that was just begun.
    pub(super) fn new(segment: Arc<Segment>) -> Self {
        Self { segment, position: SEGMENT_HEADER_BYTES as u64, long: None }
    }

    /// Whether so many bytes fit.
    pub(super) fn has_room(&self, bytes: u64, segment_bytes: u64) -> bool {
        (self.position + bytes).next_multiple_of(BATCH_ALIGNMENT) <= segment_bytes
    }

    /// How many records of the batch fit, from `from` on.
    pub(super) fn fitting(&self, batch: &Batch, from: usize, segment_bytes: u64) -> usize {
        let start = batch.records[from].start;
        let fits = |end: usize| self.has_room((end - start) as u64, segment_bytes);
        batch.records[from..].iter().take_while(|record| fits(record.end)).count()
    }

    /// Writes some records behind what the segment has, and makes them visible. After an error none of them is.
    pub(super) fn write(
        &mut self,
        batch: &mut Batch,
        records: Range<usize>,
    ) -> Result<Vec<Written>, TierError> {
        let segment = &self.segment;
        let Batch { bytes, records: all } = batch;
        let records = &all[records];
        let (Some(first), Some(last)) = (records.first(), records.last()) else { return Ok(Vec::new()) };
        let mut header = [0; RECORD_HEADER_BYTES];
        for record in records {
            let (key, stored_bytes, packed, check) =
                (record.key, record.stored_bytes, record.packed, record.check);
            RecordHeader { key, stored_bytes, packed, check }.encode(&segment.header, &mut header);
            bytes[record.start..record.start + RECORD_HEADER_BYTES].copy_from_slice(&header);
        }
        // The first header stays blank until all else is written. What lies between the last record and the end of
        // the write is blank, too, or the blank header of a record that goes elsewhere and then bytes that nobody
        // reads.
        let (start, end) = (first.start, last.end);
        header.copy_from_slice(&bytes[start..start + RECORD_HEADER_BYTES]);
        bytes[start..start + RECORD_HEADER_BYTES].fill(0);
        let length = (end - start).next_multiple_of(BATCH_ALIGNMENT as usize);
        write_full(&*segment.file, &bytes[start..start + length], self.position)
            .and_then(|()| write_full(&*segment.file, &header, self.position))
            .map_err(|error| TierError::io("writing", &segment.path, &error))?;
        let place = |at: usize| self.position + (at - start) as u64;
        let written = records.iter().map(|it| (it.key, place(it.start), it.stored_bytes)).collect();
        self.position += length as u64;
        Ok(written)
    }

    /// Writes a piece of a long page, if the piece before it was written. The last one makes the page visible, by its
    /// header, as a batch becomes it.
    pub(super) fn write_piece(&mut self, piece: &Piece) -> Result<Option<Written>, TierError> {
        let at = match self.long.take() {
            _ if piece.is_first => self.position,
            Some((page, at)) if page == piece.page => at,
            _ => return Ok(None),
        };
        let segment = &self.segment;
        let failed = |error| TierError::io("writing", &segment.path, &error);
        write_full(&*segment.file, &piece.bytes, at).map_err(failed)?;
        let next = at + piece.bytes.len() as u64;
        let Some((key, check)) = piece.end else {
            self.long = Some((piece.page, next));
            return Ok(None);
        };
        let stored_bytes = segment.header.kind.page_bytes;
        let mut header = [0; RECORD_HEADER_BYTES];
        RecordHeader { key, stored_bytes, packed: false, check }.encode(&segment.header, &mut header);
        write_full(&*segment.file, &header, self.position).map_err(failed)?;
        let written = (key, self.position, stored_bytes);
        self.position = next;
        Ok(Some(written))
    }
}

/// Bytes of the smallest segment that holds a page.
pub(super) fn smallest_segment(page_bytes: u32) -> u64 {
    (SEGMENT_HEADER_BYTES as u64 + record_bytes(page_bytes)).next_multiple_of(BATCH_ALIGNMENT)
}
