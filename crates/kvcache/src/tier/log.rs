//! Writing: pages are appended to this writer's own segment, a batch at a time.
//!
//! A batch becomes visible by its first header, which is written last. Whoever reads the segment meanwhile, and
//! whoever reads it after this process was killed, finds all of a batch or nothing of it.

use super::Compression;
use super::TierError;
use super::buffer::Buffer;
use super::check::{Checker, Checksum, PIECE_BYTES, SHORT_BYTES};
use super::device::write_full;
use super::record::{
    BATCH_ALIGNMENT, Key, RECORD_ALIGNMENT, RECORD_HEADER_BYTES, RecordHeader, SEGMENT_HEADER_BYTES,
    record_bytes,
};
use super::rows::SourceRows;
use super::segment::Segment;
use std::sync::Arc;

/// A batch is about this long: long enough that a call is nothing beside the bytes, short enough to lie in the cache of
/// a core when the system copies it.
pub(super) const BATCH_BYTES: usize = 256 << 10;
/// zstd's fastest ordinary level; pages are cold when they come here, and disks are not slow.
const ZSTD_LEVEL: i32 = 1;

/// The writing side, behind one lock.
#[derive(Debug, Default)]
pub(super) struct Writer {
    pub(super) active: Option<Active>,
    /// Segments with bytes that no sync has covered.
    pub(super) dirty: Vec<Dirty>,
    /// Whether files came or went since the directory was synced.
    pub(super) new_entries: bool,
    batch: Batch,
}

/// The segment that is written.
#[derive(Debug)]
pub(super) struct Active {
    pub(super) segment: Arc<Segment>,
    /// Where the next batch goes.
    pub(super) position: u64,
}

/// A segment that was written to, from `from` on.
#[derive(Clone, Debug)]
pub(super) struct Dirty {
    pub(super) segment: Arc<Segment>,
    pub(super) from: u64,
}

/// Records that are written together.
#[derive(Debug, Default)]
pub(super) struct Batch {
    bytes: Buffer,
    first_header: Vec<u8>,
    pub(super) records: Vec<(Key, u64, u32)>,
    page: Buffer,
}

impl Writer {
    /// The batch, to fill and to write.
    pub(super) fn parts(&mut self) -> (&mut Batch, &mut Option<Active>) {
        (&mut self.batch, &mut self.active)
    }

    /// Notes that a segment has bytes that are not durable yet, from `from` on.
    pub(super) fn note_dirty(&mut self, segment: &Arc<Segment>, from: u64) {
        if !self.dirty.iter().any(|dirty| Arc::ptr_eq(&dirty.segment, segment)) {
            self.dirty.push(Dirty { segment: Arc::clone(segment), from });
        }
    }
}

impl Active {
    /// Whether a page of `page_bytes` fits behind `batched` bytes.
    pub(super) fn has_room(&self, batched: usize, page_bytes: u32, segment_bytes: u64) -> bool {
        let end = self.position + batched as u64 + record_bytes(page_bytes);
        end.next_multiple_of(BATCH_ALIGNMENT) <= segment_bytes
    }
}

impl Batch {
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.records.clear();
    }

    /// Whether the key is in the batch already.
    pub(super) fn holds(&self, key: &Key) -> bool {
        self.records.iter().any(|(held, _, _)| held == key)
    }

    /// Appends a record of one page.
    pub(super) fn push(
        &mut self,
        key: Key,
        rows: &SourceRows<'_>,
        row: usize,
        compression: Compression,
        segment: &Segment,
    ) {
        let start = self.bytes.len();
        let page_bytes = segment.header.kind.page_bytes;
        self.bytes.resize(start + RECORD_HEADER_BYTES);
        let body = self.bytes.len();
        let packed = compression == Compression::Zstd && self.push_packed(rows, row, page_bytes);
        let checksum: Checksum = segment.header.kind.checksum;
        let check = if packed || page_bytes as usize <= SHORT_BYTES {
            if !packed {
                rows.append_to(row, &mut self.bytes);
            }
            checksum.of(&self.bytes[body..])
        } else {
            let mut checker = Checker::new(checksum, page_bytes as usize);
            rows.append_checked(row, 0..page_bytes as usize, &mut self.bytes, &mut checker);
            checker.finish()
        };
        let stored_bytes = (self.bytes.len() - body) as u32;
        let header = RecordHeader { key, stored_bytes, packed, check };
        header.encode(&segment.header, &mut self.bytes[start..body]);
        let end = self.bytes.len().next_multiple_of(RECORD_ALIGNMENT as usize);
        self.bytes.resize(end);
        self.records.push((key, start as u64, stored_bytes));
    }

    /// Appends the packed form of a page, if that is shorter.
    fn push_packed(&mut self, rows: &SourceRows<'_>, row: usize, page_bytes: u32) -> bool {
        self.page.clear();
        rows.append_to(row, &mut self.page);
        let body = self.bytes.len();
        // No room for as many bytes as the page has: what does not shrink fails, and is stored as it is.
        self.bytes.resize(body + page_bytes as usize - 1);
        let packed = zstd::bulk::compress_to_buffer(&self.page, &mut self.bytes[body..], ZSTD_LEVEL);
        self.bytes.resize(body + packed.as_ref().copied().unwrap_or(0));
        packed.is_ok()
    }

    /// Writes a page that is longer than a batch, piece by piece: each is copied, checked and written while it lies in
    /// the cache. It becomes visible by its header, as a batch does. The batch is empty, before and after.
    pub(super) fn write_long(
        &mut self,
        active: &mut Active,
        key: Key,
        rows: &SourceRows<'_>,
        row: usize,
    ) -> Result<(), TierError> {
        let segment = &active.segment;
        let page_bytes = segment.header.kind.page_bytes as usize;
        let failed = |error| TierError::io("writing", &segment.path, &error);
        let mut checker = Checker::new(segment.header.kind.checksum, page_bytes);
        let (mut done, mut at) = (0, active.position);
        self.bytes.clear();
        self.bytes.resize(RECORD_HEADER_BYTES);
        while done < page_bytes {
            let end = page_bytes.min(done + PIECE_BYTES);
            rows.append_checked(row, done..end, &mut self.bytes, &mut checker);
            if end == page_bytes {
                let whole = self.bytes.len().next_multiple_of(BATCH_ALIGNMENT as usize);
                self.bytes.resize(whole);
            }
            // Whole pages of the page cache; what is behind them goes with the next piece.
            let whole = self.bytes.len() - self.bytes.len() % BATCH_ALIGNMENT as usize;
            write_full(&*segment.file, &self.bytes[..whole], at).map_err(failed)?;
            at += whole as u64;
            let rest = self.bytes.len() - whole;
            self.bytes.copy_within(whole.., 0);
            self.bytes.resize(rest);
            done = end;
        }
        let stored_bytes = page_bytes as u32;
        let header = RecordHeader { key, stored_bytes, packed: false, check: checker.finish() };
        self.first_header.resize(RECORD_HEADER_BYTES, 0);
        header.encode(&segment.header, &mut self.first_header);
        write_full(&*segment.file, &self.first_header, active.position).map_err(failed)?;
        self.bytes.clear();
        self.records.push((key, active.position, stored_bytes));
        active.position = at;
        Ok(())
    }

    /// Writes the batch behind what the segment has, and makes it visible. After an error nothing of it is.
    pub(super) fn write(&mut self, active: &mut Active) -> Result<(), TierError> {
        let end = self.bytes.len().next_multiple_of(BATCH_ALIGNMENT as usize);
        self.bytes.resize(end);
        let (front, _) = self.bytes.split_at_mut(RECORD_HEADER_BYTES);
        self.first_header.clear();
        self.first_header.extend_from_slice(front);
        front.fill(0);
        let segment = &active.segment;
        write_full(&*segment.file, &self.bytes, active.position)
            .and_then(|()| write_full(&*segment.file, &self.first_header, active.position))
            .map_err(|error| TierError::io("writing", &segment.path, &error))?;
        for (_, offset, _) in &mut self.records {
            *offset += active.position;
        }
        active.position += end as u64;
        Ok(())
    }
}

/// Bytes of the smallest segment that holds a page.
pub(super) fn smallest_segment(page_bytes: u32) -> u64 {
    (SEGMENT_HEADER_BYTES as u64 + record_bytes(page_bytes)).next_multiple_of(BATCH_ALIGNMENT)
}
