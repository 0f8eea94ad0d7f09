//! One segment: a file of records, written by one writer and read by everybody.

use super::buffer::Buffer;
use super::check::{Checker, PIECE_BYTES, STRAIGHT_BYTES};
use super::device::{SegmentFile, read_full, read_full_cached, read_full_to};
use super::record::{
    BATCH_ALIGNMENT, Key, Kind, RECORD_HEADER_BYTES, RecordHeader, Refusal, SEGMENT_HEADER_BYTES,
    SegmentHeader,
};
use super::rows::TargetRows;
use crate::kernels::xxh3;
use infer_accel_tensor::simd;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How often a use is written to the file's times, for other processes to see.
const TOUCH_INTERVAL_MILLIS: u64 = 10_000;
/// Headers of pages up to this long are read many at a time.
const SMALL_PAGE_BYTES: u32 = 16 << 10;
const SMALL_PAGE_WINDOW: usize = 256 << 10;

/// An open segment.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) path: PathBuf,
    pub(super) header: SegmentHeader,
    pub(super) file: Arc<dyn SegmentFile>,
    /// Whether this process writes it, or did.
    pub(super) own: bool,
    /// Set before the file is removed, cut or written anew by this process.
    retired: AtomicBool,
    /// Milliseconds since 1970.
    used: AtomicU64,
    touched: AtomicU64,
}

/// Where a page lies.
#[derive(Clone, Debug)]
pub(super) struct Location {
    pub(super) segment: Arc<Segment>,
    pub(super) offset: u64,
    pub(super) stored_bytes: u32,
}

impl Location {
    pub(super) fn is_in(&self, segment: &Segment) -> bool {
        self.segment.header.id == segment.header.id
    }
}

/// What reading a page came to.
#[derive(Debug)]
pub(super) enum ReadOutcome {
    /// The page's bytes, checked, are where they were asked for.
    Page,
    /// The segment was removed or written anew: the page is no more.
    Gone,
    /// The bytes are not those that were stored.
    Corrupt,
    /// The device failed.
    Failed,
    /// The page is not in memory, and the device was not to be asked.
    NotCached,
}

impl Segment {
    pub(super) fn new(path: PathBuf, header: SegmentHeader, file: Arc<dyn SegmentFile>, own: bool) -> Self {
        let used = file.used().map_or(0, millis);
        Self {
            path,
            header,
            file,
            own,
            retired: AtomicBool::new(false),
            used: AtomicU64::new(used),
            touched: AtomicU64::new(used),
        }
    }

    /// Reads the front of a file that may be a segment.
    pub(super) fn read_header(
        file: &dyn SegmentFile,
        kind: &Kind,
    ) -> io::Result<Result<SegmentHeader, Refusal>> {
        let mut bytes = vec![0; SEGMENT_HEADER_BYTES];
        let count = read_full(file, &mut bytes, 0)?;
        Ok(SegmentHeader::decode(&bytes[..count], kind))
    }

    pub(super) fn retire(&self) {
        self.retired.store(true, Ordering::Release);
    }

    /// When this process, or another one that said so, used the segment last.
    pub(super) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed).max(self.file.used().map_or(0, millis))
    }

    /// Notes a use.
    pub(super) fn note_use(&self) {
        let now = millis(SystemTime::now());
        self.used.fetch_max(now, Ordering::Relaxed);
        let before = self.touched.load(Ordering::Relaxed);
        let due = now.saturating_sub(before) >= TOUCH_INTERVAL_MILLIS;
        if due && self.touched.compare_exchange(before, now, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            // Only for other processes' choice of what to evict: nothing depends on it.
            let _ = self.file.touch();
        }
    }

    /// Whether the file still holds this segment.
    fn is_still_there(&self) -> bool {
        !self.retired.load(Ordering::Acquire)
            && matches!(Self::read_header(&*self.file, &self.header.kind), Ok(Ok(header)) if header.id == self.header.id)
    }

    /// Reads a page into `buffer` (its header first) and checks it. A page that is found to be wrong is looked at
    /// a second time, from the segment's front on: a file that was written anew is no corruption.
    pub(super) fn read_page(
        &self,
        key: &Key,
        place: (u64, u32),
        cached: bool,
        buffer: &mut Buffer,
    ) -> ReadOutcome {
        let (offset, stored_bytes) = place;
        buffer.resize(RECORD_HEADER_BYTES + stored_bytes as usize);
        if let Some(failure) = self.fill(buffer, offset, cached) {
            return failure;
        }
        let (front, page) = buffer.split_at(RECORD_HEADER_BYTES);
        let fits = self
            .header_of(front, key, stored_bytes)
            .is_some_and(|header| header.check == self.header.kind.checksum.of(page));
        if fits { ReadOutcome::Page } else { self.wrong() }
    }

    /// Reads a page that is not packed straight to row `row`, and checks each piece there while it lies in the cache. If
    /// the page does not arrive, the row is as it was, or zeros.
    ///
    /// What is checked is memory of the caller's, which may change meanwhile. So a page that seems to be wrong is read
    /// again by way of ours, and only what is wrong there is.
    pub(super) fn read_straight(
        &self,
        key: &Key,
        offset: u64,
        cached: bool,
        buffer: &mut Buffer,
        (rows, row): (&TargetRows<'_>, usize),
    ) -> ReadOutcome {
        let page_bytes = self.header.kind.page_bytes as usize;
        let mut hasher = xxh3::Hasher::new(simd::tier(), page_bytes);
        buffer.resize(RECORD_HEADER_BYTES);
        let mut done = 0;
        while done < page_bytes {
            let room = rows.room(row, done..page_bytes.min(done + STRAIGHT_BYTES));
            let (front, at) = match done {
                0 => (&mut buffer[..], offset),
                _ => (&mut [][..], offset + (RECORD_HEADER_BYTES + done) as u64),
            };
            let expected = front.len() + room.len();
            let (count, result) = read_full_to(&*self.file, front, &room, at, cached);
            if let Some(failure) = failure(count == expected, &result, cached) {
                if done + count > 0 {
                    rows.blank(row);
                }
                return failure;
            }
            room.check(&mut hasher);
            done += room.len();
        }
        let header = self.header_of(buffer, key, self.header.kind.page_bytes);
        if header.is_some_and(|header| header.check == hasher.digest()) {
            return ReadOutcome::Page;
        }
        rows.blank(row);
        self.read_long_page(key, offset, cached, buffer, (rows, row))
    }

    /// Reads a page that is not packed piece by piece, each of which is checked while it is copied to row `row`. If the
    /// page does not arrive, the row is as it was, or zeros.
    pub(super) fn read_long_page(
        &self,
        key: &Key,
        offset: u64,
        cached: bool,
        buffer: &mut Buffer,
        (rows, row): (&TargetRows<'_>, usize),
    ) -> ReadOutcome {
        let page_bytes = self.header.kind.page_bytes as usize;
        let mut done = page_bytes.min(PIECE_BYTES);
        buffer.resize(RECORD_HEADER_BYTES + done);
        if let Some(failure) = self.fill(buffer, offset, cached) {
            return failure;
        }
        let (front, page) = buffer.split_at(RECORD_HEADER_BYTES);
        let Some(header) = self.header_of(front, key, self.header.kind.page_bytes) else {
            return self.wrong();
        };
        let mut checker = Checker::new(self.header.kind.checksum, page_bytes);
        rows.copy_checked(row, 0, page, &mut checker);
        while done < page_bytes {
            let count = (page_bytes - done).min(PIECE_BYTES);
            buffer.resize(count);
            if let Some(failure) = self.fill(buffer, offset + (RECORD_HEADER_BYTES + done) as u64, cached) {
                rows.blank(row);
                return failure;
            }
            rows.copy_checked(row, done, buffer, &mut checker);
            done += count;
        }
        if checker.finish() == header.check {
            return ReadOutcome::Page;
        }
        rows.blank(row);
        self.wrong()
    }

    /// Fills the buffer, or says why that cannot be.
    fn fill(&self, buffer: &mut Buffer, offset: u64, cached: bool) -> Option<ReadOutcome> {
        let count = if cached {
            read_full_cached(&*self.file, buffer, offset)
        } else {
            read_full(&*self.file, buffer, offset)
        };
        let whole = matches!(count, Ok(count) if count == buffer.len());
        failure(whole, &count, cached)
    }

    /// The header of the page that is asked for, if these bytes are it.
    fn header_of(&self, front: &[u8], key: &Key, stored_bytes: u32) -> Option<RecordHeader> {
        RecordHeader::decode(front, &self.header)
            .filter(|header| header.key == *key && header.stored_bytes == stored_bytes)
    }

    /// What it means that the bytes of a page are wrong.
    fn wrong(&self) -> ReadOutcome {
        if self.is_still_there() { ReadOutcome::Corrupt } else { ReadOutcome::Gone }
    }
}

/// What a read came to that was to be whole; `None` where it is.
fn failure<T>(is_whole: bool, result: &io::Result<T>, cached: bool) -> Option<ReadOutcome> {
    match result {
        Ok(_) if is_whole => None,
        _ if cached => Some(ReadOutcome::NotCached),
        Ok(_) => Some(ReadOutcome::Gone),
        Err(_) => Some(ReadOutcome::Failed),
    }
}

/// The page in a record that was read and checked; `None` where it cannot be unpacked to the size of a page.
pub(super) fn page_of<'a>(
    record: &'a [u8],
    stored_bytes: u32,
    page_bytes: u32,
    unpacked: &'a mut Vec<u8>,
) -> Option<&'a [u8]> {
    let page = record.get(RECORD_HEADER_BYTES..)?.get(..stored_bytes as usize)?;
    if stored_bytes == page_bytes {
        return Some(page);
    }
    unpacked.resize(page_bytes as usize, 0);
    let count = zstd::bulk::decompress_to_buffer(page, &mut unpacked[..]).ok()?;
    (count == page_bytes as usize).then_some(&unpacked[..])
}

/// The records of a segment, from `offset` on.
pub(super) struct Scan {
    pub(super) records: Vec<(RecordHeader, u64)>,
    /// Where the next record will be.
    pub(super) end: u64,
}

/// Finds records by their headers; stops at the first place that is none. Pages are checked when they are read.
pub(super) fn scan(file: &dyn SegmentFile, header: &SegmentHeader, offset: u64) -> io::Result<Scan> {
    let length = file.length()?;
    let small = header.kind.page_bytes <= SMALL_PAGE_BYTES;
    let mut window = Window {
        file,
        bytes: vec![0; if small { SMALL_PAGE_WINDOW } else { RECORD_HEADER_BYTES }],
        start: 0,
        filled: 0,
    };
    let mut records = Vec::new();
    let mut at = offset.max(SEGMENT_HEADER_BYTES as u64);
    loop {
        let mut start = at;
        let mut found = window.header_at(start, header)?;
        if found.is_none() {
            // The next batch begins behind what fills the last one up.
            start = at.next_multiple_of(BATCH_ALIGNMENT);
            found = window.header_at(start, header)?;
        }
        let Some(record) = found else { break };
        if start + RECORD_HEADER_BYTES as u64 + u64::from(record.stored_bytes) > length {
            break;
        }
        at = start + record.record_bytes();
        records.push((record, start));
    }
    Ok(Scan { records, end: at })
}

/// A part of a file that was read at once.
struct Window<'a> {
    file: &'a dyn SegmentFile,
    bytes: Vec<u8>,
    start: u64,
    filled: usize,
}

impl Window<'_> {
    fn header_at(&mut self, offset: u64, segment: &SegmentHeader) -> io::Result<Option<RecordHeader>> {
        let end = self.start + self.filled as u64;
        if offset < self.start || offset + RECORD_HEADER_BYTES as u64 > end {
            self.filled = read_full(self.file, &mut self.bytes, offset)?;
            self.start = offset;
        }
        let from = (offset - self.start) as usize;
        let bytes = self.bytes[..self.filled].get(from..from + RECORD_HEADER_BYTES);
        Ok(bytes.and_then(|bytes| RecordHeader::decode(bytes, segment)))
    }
}

fn millis(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_millis() as u64
}
