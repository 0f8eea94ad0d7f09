//! What is written: the header of a segment and the header of a page.
//!
//! ```text
//! segment   header (4096) | record | record | … | zeros up to 4096 | record | …
//! record    header (192) | the page, or its packed form | zeros up to 64
//! ```
//!
//! Every header ends with its own check. A record names its segment by the random id that the segment got when it
//! was begun, so what an earlier life of the same file left behind is never taken for a record of this one.

use super::check::{CHECK_BYTES, Checksum};

/// The format that this build writes, and the only one that it reads.
pub(super) const VERSION: u16 = 1;
/// Bytes in front of the first record.
pub(super) const SEGMENT_HEADER_BYTES: usize = 4096;
/// Bytes in front of a page.
pub(super) const RECORD_HEADER_BYTES: usize = 192;
/// Records begin at multiples of this.
pub(super) const RECORD_ALIGNMENT: u64 = 64;
/// What is written by one call ends at a multiple of this, a page of the page cache: to change half of one that is
/// not in memory, the system would read it first.
pub(super) const BATCH_ALIGNMENT: u64 = 4096;
/// The longest key.
pub const MAX_KEY_BYTES: usize = 64;
/// The longest page.
pub const MAX_PAGE_BYTES: usize = 1 << 30;

const SEGMENT_MAGIC: [u8; 8] = *b"IA-KVSEG";
const RECORD_MAGIC: [u8; 4] = *b"IAPG";

pub(super) type SegmentId = [u8; 16];
pub(super) type Fingerprint = [u8; 32];

/// A key, in place.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Key {
    length: u8,
    bytes: [u8; MAX_KEY_BYTES],
}

impl Key {
    /// `None` where the key is empty or too long.
    pub(super) fn new(key: &[u8]) -> Option<Self> {
        if key.is_empty() || key.len() > MAX_KEY_BYTES {
            return None;
        }
        let mut bytes = [0; MAX_KEY_BYTES];
        bytes[..key.len()].copy_from_slice(key);
        Some(Self { length: key.len() as u8, bytes })
    }
}

/// What all pages of a directory have in common.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Kind {
    pub(super) page_bytes: u32,
    pub(super) checksum: Checksum,
    pub(super) fingerprint: Fingerprint,
}

/// The front of a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct SegmentHeader {
    pub(super) id: SegmentId,
    pub(super) kind: Kind,
    /// Rises within a writer.
    pub(super) sequence: u64,
}

/// Why a segment is not read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Refusal {
    /// Not a segment, or a damaged one, or one that was just begun.
    Unreadable,
    /// A segment of another version or of another kind of pages.
    Foreign,
}

impl SegmentHeader {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(SEGMENT_HEADER_BYTES);
        out.extend_from_slice(&SEGMENT_MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&[self.kind.checksum.number(), 0]);
        out.extend_from_slice(&self.kind.page_bytes.to_le_bytes());
        out.extend_from_slice(&self.id);
        out.extend_from_slice(&self.sequence.to_le_bytes());
        out.extend_from_slice(&self.kind.fingerprint);
        out.resize(SEGMENT_HEADER_BYTES - CHECK_BYTES, 0);
        let check = Checksum::Xxh3.of(&out);
        out.extend_from_slice(&check);
        out
    }

    pub(super) fn decode(bytes: &[u8], kind: &Kind) -> Result<Self, Refusal> {
        let mut reader = Reader::checked(bytes, SEGMENT_HEADER_BYTES, &SEGMENT_MAGIC)?;
        if reader.take(u16::from_le_bytes)? != VERSION {
            return Err(Refusal::Foreign);
        }
        let [checksum, _] = reader.take(|bytes: [u8; 2]| bytes)?;
        let page_bytes = reader.take(u32::from_le_bytes)?;
        let id = reader.take(|id| id)?;
        let sequence = reader.take(u64::from_le_bytes)?;
        let fingerprint: Fingerprint = reader.take(|bytes| bytes)?;
        let same = (checksum, page_bytes, fingerprint)
            == (kind.checksum.number(), kind.page_bytes, kind.fingerprint);
        if same { Ok(Self { id, kind: *kind, sequence }) } else { Err(Refusal::Foreign) }
    }
}

/// The front of a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct RecordHeader {
    pub(super) key: Key,
    /// Bytes behind this header.
    pub(super) stored_bytes: u32,
    /// Whether they are packed.
    pub(super) packed: bool,
    /// Their check.
    pub(super) check: [u8; CHECK_BYTES],
}

impl RecordHeader {
    pub(super) fn encode(&self, segment: &SegmentHeader, out: &mut [u8]) {
        debug_assert_eq!(out.len(), RECORD_HEADER_BYTES);
        out.fill(0);
        out[..4].copy_from_slice(&RECORD_MAGIC);
        out[4..6].copy_from_slice(&VERSION.to_le_bytes());
        out[6] = self.key.length;
        out[7] = u8::from(self.packed);
        out[8..12].copy_from_slice(&self.stored_bytes.to_le_bytes());
        out[16..32].copy_from_slice(&segment.id);
        out[32..64].copy_from_slice(&segment.kind.fingerprint);
        out[64..128].copy_from_slice(&self.key.bytes);
        out[128..144].copy_from_slice(&self.check);
        let (front, check) = out.split_at_mut(RECORD_HEADER_BYTES - CHECK_BYTES);
        check.copy_from_slice(&Checksum::Xxh3.of(front));
    }

    /// `None` where these bytes are no header of a record of that segment.
    pub(super) fn decode(bytes: &[u8], segment: &SegmentHeader) -> Option<Self> {
        let mut reader = Reader::checked(bytes, RECORD_HEADER_BYTES, &RECORD_MAGIC).ok()?;
        let version = reader.take(u16::from_le_bytes).ok()?;
        let [length, packed] = reader.take(|bytes: [u8; 2]| bytes).ok()?;
        let stored_bytes = reader.take(u32::from_le_bytes).ok()?;
        let _reserved: [u8; 4] = reader.take(|bytes| bytes).ok()?;
        let id: SegmentId = reader.take(|bytes| bytes).ok()?;
        let fingerprint: Fingerprint = reader.take(|bytes| bytes).ok()?;
        let key: [u8; MAX_KEY_BYTES] = reader.take(|bytes| bytes).ok()?;
        let check = reader.take(|bytes| bytes).ok()?;
        let page_bytes = segment.kind.page_bytes;
        let fits = if packed == 0 { stored_bytes == page_bytes } else { stored_bytes < page_bytes };
        let known =
            version == VERSION && packed <= 1 && id == segment.id && fingerprint == segment.kind.fingerprint;
        if !(fits && known) {
            return None;
        }
        let key = Key::new(key.get(..usize::from(length))?)?;
        Some(Self { key, stored_bytes, packed: packed == 1, check })
    }

    /// Bytes from the beginning of this record to the next.
    pub(super) fn record_bytes(&self) -> u64 {
        record_bytes(self.stored_bytes)
    }
}

/// Bytes that a page of `stored_bytes` takes, its header included.
pub(super) fn record_bytes(stored_bytes: u32) -> u64 {
    (RECORD_HEADER_BYTES as u64 + u64::from(stored_bytes)).next_multiple_of(RECORD_ALIGNMENT)
}

/// Takes fields off the front of a header.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// The bytes behind the magic, if the header's own check fits.
    fn checked(bytes: &'a [u8], length: usize, magic: &[u8]) -> Result<Self, Refusal> {
        let bytes = bytes.get(..length).ok_or(Refusal::Unreadable)?;
        let (front, check) = bytes.split_at(length - CHECK_BYTES);
        let fields = front.strip_prefix(magic).ok_or(Refusal::Unreadable)?;
        if Checksum::Xxh3.of(front) == *check { Ok(Self(fields)) } else { Err(Refusal::Unreadable) }
    }

    fn take<const N: usize, T>(&mut self, of: impl FnOnce([u8; N]) -> T) -> Result<T, Refusal> {
        let (field, rest) = self.0.split_first_chunk().ok_or(Refusal::Unreadable)?;
        self.0 = rest;
        Ok(of(*field))
    }
}
