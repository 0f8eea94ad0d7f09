//! What a store hands to the writing side: pages copied, checked, and ready to be written, in memory of ours.
//!
//! A device may answer late or never, and then the caller must have its memory back. So whatever is written is ours, and
//! while one chunk is written the next is filled.

use super::Compression;
use super::buffer::Buffer;
use super::check::{CHECK_BYTES, Checker, PIECE_BYTES, SHORT_BYTES};
use super::record::{
    BATCH_ALIGNMENT, Key, Kind, RECORD_ALIGNMENT, RECORD_HEADER_BYTES, SEGMENT_HEADER_BYTES, record_bytes,
};
use super::rows::SourceRows;
use std::collections::HashSet;

/// A batch is about this long: long enough that a call is nothing beside the bytes, short enough to lie in the cache of
/// a core when the system copies it.
const BATCH_BYTES: usize = 256 << 10;
/// zstd's fastest ordinary level; pages are cold when they come here, and disks are not slow.
const ZSTD_LEVEL: i32 = 1;

/// What is written by one job.
#[derive(Debug)]
pub(super) enum Chunk {
    Batch(Batch),
    Piece(Piece),
}

/// Records of whole pages, their headers blank.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// Zeros follow the last record, up to a multiple of [`BATCH_ALIGNMENT`] from any of them.
    pub(super) bytes: Buffer,
    pub(super) records: Vec<Record>,
}

/// A record of a batch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record {
    pub(super) key: Key,
    /// Where it begins in the batch, and where the next one would.
    pub(super) start: usize,
    pub(super) end: usize,
    pub(super) stored_bytes: u32,
    pub(super) packed: bool,
    pub(super) check: [u8; CHECK_BYTES],
}

/// A part of the record of a long page: whole pages of the page cache.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) bytes: Buffer,
    /// Which page of the tier this is.
    pub(super) page: u64,
    pub(super) is_first: bool,
    /// Of the last piece: what its header says.
    pub(super) end: Option<(Key, [u8; CHECK_BYTES])>,
}

impl Chunk {
    fn into_buffer(self) -> Buffer {
        match self {
            Self::Batch(batch) => batch.bytes,
            Self::Piece(piece) => piece.bytes,
        }
    }
}

/// Buffers that were used before, and the number of the next long page.
#[derive(Debug, Default)]
pub(super) struct Spare {
    buffers: Vec<Buffer>,
    packing: Buffer,
    next_page: u64,
}

impl Spare {
    fn buffer(&mut self) -> Buffer {
        let mut buffer = self.buffers.pop().unwrap_or_default();
        buffer.clear();
        buffer
    }

    /// Keeps what a chunk was written from.
    pub(super) fn keep(&mut self, chunk: Chunk) {
        self.buffers.push(chunk.into_buffer());
    }
}

/// A page of which a part has been handed over.
struct LongPage {
    row: usize,
    key: Key,
    number: u64,
    done: usize,
    /// Where its record is expected to go.
    at: u64,
    checker: Checker,
    /// What was filled and is no whole page of the page cache.
    rest: Vec<u8>,
}

/// Where the next long page is expected to go. Nothing depends on it but how fast it is read back.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) position: u64,
    pub(super) segment_bytes: u64,
}

impl Place {
    /// Where a page of so many bytes goes; the next one goes behind it.
    fn of_next(&mut self, page_bytes: u32) -> u64 {
        let end = |at: u64| (at + record_bytes(page_bytes)).next_multiple_of(BATCH_ALIGNMENT);
        let front = SEGMENT_HEADER_BYTES as u64;
        let at = self.position.max(front);
        let at = if end(at) <= self.segment_bytes { at } else { front };
        self.position = end(at);
        at
    }
}

/// Makes chunks of the pages whose keys are new.
pub(super) struct Filler<'a> {
    keys: &'a [Key],
    rows: &'a SourceRows<'a>,
    kind: Kind,
    compression: Compression,
    row: usize,
    seen: HashSet<Key>,
    long: Option<LongPage>,
    place: Place,
    /// Pages that were there already.
    pub(super) known: usize,
}

impl<'a> Filler<'a> {
    pub(super) fn new(
        keys: &'a [Key],
        rows: &'a SourceRows<'a>,
        kind: Kind,
        compression: Compression,
        place: Place,
    ) -> Self {
        let seen = HashSet::with_capacity(keys.len());
        Self { keys, rows, kind, compression, row: 0, seen, long: None, place, known: 0 }
    }

    /// Pages that were handed over, or begun.
    pub(super) fn new_pages(&self) -> usize {
        self.seen.len()
    }

    /// The next chunk; `is_known` says of a key whether its page need not be stored.
    pub(super) fn next(&mut self, spare: &mut Spare, is_known: impl Fn(&Key) -> bool) -> Option<Chunk> {
        if self.long.is_some() {
            return self.piece(spare).map(Chunk::Piece);
        }
        let is_long = self.kind.page_bytes as usize > PIECE_BYTES && self.compression == Compression::None;
        let mut batch = None;
        while self.row < self.keys.len() {
            let (row, key) = (self.row, self.keys[self.row]);
            self.row += 1;
            if self.seen.contains(&key) || is_known(&key) {
                self.known += 1;
                continue;
            }
            self.seen.insert(key);
            if is_long {
                let checker = Checker::new(self.kind.checksum, self.kind.page_bytes as usize);
                spare.next_page += 1;
                let number = spare.next_page;
                let at = self.place.of_next(self.kind.page_bytes);
                self.long = Some(LongPage { row, key, number, done: 0, at, checker, rest: Vec::new() });
                return self.piece(spare).map(Chunk::Piece);
            }
            let batch = batch.get_or_insert_with(|| Batch { bytes: spare.buffer(), records: Vec::new() });
            self.push(batch, key, row, &mut spare.packing);
            if batch.bytes.len() >= BATCH_BYTES {
                break;
            }
        }
        batch.map(|mut batch| {
            let padded = batch.bytes.len() + BATCH_ALIGNMENT as usize;
            batch.bytes.resize(padded);
            Chunk::Batch(batch)
        })
    }

    /// Appends a record of one page.
    fn push(&self, batch: &mut Batch, key: Key, row: usize, packing: &mut Buffer) {
        let Batch { bytes, records } = batch;
        let start = bytes.len();
        let page_bytes = self.kind.page_bytes as usize;
        bytes.resize(start + RECORD_HEADER_BYTES);
        let body = bytes.len();
        let packed = self.compression == Compression::Zstd && self.pack(bytes, row, packing);
        let check = if packed || page_bytes <= SHORT_BYTES {
            if !packed {
                self.rows.append_to(row, bytes);
            }
            self.kind.checksum.of(&bytes[body..])
        } else {
            let mut checker = Checker::new(self.kind.checksum, page_bytes);
            self.rows.append_checked(row, 0..page_bytes, bytes, &mut checker);
            checker.finish()
        };
        let stored_bytes = (bytes.len() - body) as u32;
        let end = bytes.len().next_multiple_of(RECORD_ALIGNMENT as usize);
        bytes.resize(end);
        records.push(Record { key, start, end, stored_bytes, packed, check });
    }

    /// Appends the packed form of a page, if that is shorter.
    fn pack(&self, bytes: &mut Buffer, row: usize, packing: &mut Buffer) -> bool {
        packing.clear();
        self.rows.append_to(row, packing);
        let body = bytes.len();
        // No room for as many bytes as the page has: what does not shrink fails, and is stored as it is.
        bytes.resize(body + self.kind.page_bytes as usize - 1);
        let packed = zstd::bulk::compress_to_buffer(packing, &mut bytes[body..], ZSTD_LEVEL);
        bytes.resize(body + packed.as_ref().copied().unwrap_or(0));
        packed.is_ok()
    }

    /// The next piece of the page that was begun.
    fn piece(&mut self, spare: &mut Spare) -> Option<Piece> {
        let long = self.long.as_mut()?;
        let page_bytes = self.kind.page_bytes as usize;
        let mut bytes = spare.buffer();
        let is_first = long.done == 0;
        if is_first {
            bytes.resize(RECORD_HEADER_BYTES);
        } else {
            bytes.room_for(long.rest.len()).extend_from_slice(&long.rest);
        }
        // To the file's next multiple of a piece: what is written there at once is one folio of the page cache, or few.
        let behind_border = (long.at as usize + long.done) % PIECE_BYTES;
        let until = page_bytes.min(long.done + PIECE_BYTES - behind_border);
        self.rows.append_checked(long.row, long.done..until, &mut bytes, &mut long.checker);
        long.done = until;
        let page = long.number;
        if until == page_bytes {
            let whole = bytes.len().next_multiple_of(BATCH_ALIGNMENT as usize);
            bytes.resize(whole);
            let end = Some((long.key, long.checker.finish()));
            self.long = None;
            return Some(Piece { bytes, page, is_first, end });
        }
        let whole = bytes.len() - bytes.len() % BATCH_ALIGNMENT as usize;
        long.rest.clear();
        long.rest.extend_from_slice(&bytes[whole..]);
        bytes.resize(whole);
        Some(Piece { bytes, page, is_first, end: None })
    }
}
