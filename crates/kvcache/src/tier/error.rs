//! What can be wrong with a tier.

use infer_accel_tensor::ErrorKind;
use std::io;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// What can be wrong with opening or using a tier.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum TierError {
    /// A checksum that does not exist.
    #[error("checksum={name:?} came; allowed are 'xxh3' and 'blake3'")]
    UnknownChecksum {
        /// The name that came.
        name: String,
    },
    /// A compression that does not exist.
    #[error("compression={name:?} came; allowed are 'zstd' and None")]
    UnknownCompression {
        /// The name that came.
        name: String,
    },
    /// Pages of no bytes, or of more than a record can hold.
    #[error("page_bytes={got} came; allowed are 1 to {max}")]
    PageBytes {
        /// Bytes that came.
        got: usize,
        /// Most bytes.
        max: usize,
    },
    /// Less room than two segments need.
    #[error(
        "capacity_bytes={capacity} came with segments of {segment} bytes; a tier needs room for {needed}: one segment \
         that is written and one that is kept"
    )]
    Capacity {
        /// Bytes that came.
        capacity: u64,
        /// Bytes of a segment.
        segment: u64,
        /// Fewest bytes.
        needed: u64,
    },
    /// Segments that cannot hold a page.
    #[error("segment_bytes={got} came; one page takes {needed}")]
    SegmentBytes {
        /// Bytes that came.
        got: u64,
        /// Fewest bytes.
        needed: u64,
    },
    /// A deadline that is no time.
    #[error("a deadline of {seconds} s came; pass a positive number of seconds, or None")]
    Deadline {
        /// What came.
        seconds: String,
    },
    /// A number that a tier must have at least one of.
    #[error("{what}={got} came; allowed are {min} to {max}")]
    Count {
        /// The argument.
        what: &'static str,
        /// What came.
        got: usize,
        /// Fewest.
        min: usize,
        /// Most.
        max: usize,
    },
    /// Keys that are empty or too long.
    #[error("keys of {got} bytes came; allowed are 1 to {max}")]
    KeyBytes {
        /// Bytes that came.
        got: usize,
        /// Most bytes.
        max: usize,
    },
    /// Keys and pages that differ in number.
    #[error("{pages} pages came for {keys} keys; pass one for each")]
    PageCount {
        /// Keys that came.
        keys: usize,
        /// Pages that came.
        pages: usize,
    },
    /// Pages of another size, or with gaps inside.
    #[error(
        "pages of the shape {shape:?} came, {got} bytes each; pass [n, …] of {expected} bytes each, contiguous within a page"
    )]
    PageShape {
        /// The shape that came.
        shape: Vec<usize>,
        /// Bytes of a page that came.
        got: usize,
        /// Bytes of a page of this tier.
        expected: usize,
    },
    /// Pages to load to that share memory.
    #[error("pages {first} and {second} to load to share memory; pass memory of its own for each")]
    PagesOverlap {
        /// The number of one page.
        first: usize,
        /// The number of the other one.
        second: usize,
    },
    /// The directory holds pages of another kind.
    #[error(
        "{} holds pages of another {what} (here {expected}, there {found}); open it with that, or use another directory",
        path.display()
    )]
    Layout {
        /// The directory.
        path: PathBuf,
        /// What differs.
        what: &'static str,
        /// What was asked for.
        expected: String,
        /// What is there.
        found: String,
    },
    /// The file that says what the directory holds cannot be understood.
    #[error("{} is damaged; if nothing in the directory is needed, remove the directory", path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
    },
    /// Another tier writes as the same writer.
    #[error(
        "writer {writer} of {} is in use, by another process or by another tier of this one; take another number, \
         or None for the first free one",
        path.display()
    )]
    WriterInUse {
        /// The directory.
        path: PathBuf,
        /// The writer's number.
        writer: u32,
    },
    /// As many tiers share the directory as can.
    #[error("all {max} writers of {} are in use", path.display())]
    NoWriter {
        /// The directory.
        path: PathBuf,
        /// Most writers.
        max: u32,
    },
    /// Nothing can be evicted for a new segment.
    #[error(
        "no room for another segment of {segment} bytes within {capacity}: the others that write to this directory \
         hold the rest; raise capacity_bytes or lower segment_bytes"
    )]
    NoRoom {
        /// Bytes of a segment.
        segment: u64,
        /// Bytes in all.
        capacity: u64,
    },
    /// The device is full.
    #[error("{} is full: {reason}; what was stored before is intact", path.display())]
    Full {
        /// The file that was written.
        path: PathBuf,
        /// The system's words.
        reason: String,
    },
    /// Any other failure of the device.
    #[error("{action} {} failed: {reason}", path.display())]
    Io {
        /// What was done.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's words.
        reason: String,
    },
    /// The device did not answer in time.
    #[error(
        "{action} in {} was not done within {seconds} s; the device may be slow or gone: try again later, or raise \
         write_deadline",
        path.display()
    )]
    Late {
        /// What was done.
        action: &'static str,
        /// The directory.
        path: PathBuf,
        /// How long it was waited for.
        seconds: String,
    },
    /// The tier was opened before a fork.
    #[error("this tier was opened before a fork and belongs to the parent; open one here, after the fork")]
    Forked,
    /// The tier was closed.
    #[error("this tier is closed")]
    Closed,
    /// A thread could not be made.
    #[error("the system gave no thread for the tier: {reason}")]
    Thread {
        /// The system's words.
        reason: String,
    },
    /// There is no memory for the host's pages.
    #[error("there is no memory for {pages} host pages of {page_bytes} bytes; ask for fewer")]
    HostMemory {
        /// Pages that came.
        pages: usize,
        /// Bytes of a page.
        page_bytes: usize,
    },
}

impl TierError {
    /// An error of the device.
    pub(super) fn io(action: &'static str, path: &Path, error: &io::Error) -> Self {
        let (path, reason) = (path.to_owned(), error.to_string());
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                Self::Full { path, reason }
            }
            _ => Self::Io { action, path, reason },
        }
    }

    /// The class of this error.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::PageCount { .. } | Self::PageShape { .. } | Self::KeyBytes { .. } => ErrorKind::Shape,
            Self::PagesOverlap { .. } => ErrorKind::Overlap,
            Self::Layout { .. } | Self::Manifest { .. } => ErrorKind::Integrity,
            Self::WriterInUse { .. }
            | Self::NoWriter { .. }
            | Self::NoRoom { .. }
            | Self::Full { .. }
            | Self::Io { .. }
            | Self::Late { .. }
            | Self::Thread { .. }
            | Self::HostMemory { .. }
            | Self::Forked
            | Self::Closed => ErrorKind::Storage,
            Self::UnknownChecksum { .. }
            | Self::UnknownCompression { .. }
            | Self::PageBytes { .. }
            | Self::Capacity { .. }
            | Self::SegmentBytes { .. }
            | Self::Deadline { .. }
            | Self::Count { .. } => ErrorKind::Argument,
        }
    }

    /// A name for this case that stays the same between releases.
    pub fn code(&self) -> &'static str {
        match self {
            Self::UnknownChecksum { .. } => "argument.checksum",
            Self::UnknownCompression { .. } => "argument.compression",
            Self::PageBytes { .. } => "argument.page_bytes",
            Self::Capacity { .. } => "argument.capacity_bytes",
            Self::SegmentBytes { .. } => "argument.segment_bytes",
            Self::Deadline { .. } => "argument.deadline",
            Self::Count { .. } => "argument.tier_count",
            Self::KeyBytes { .. } => "shape.keys",
            Self::PageCount { .. } => "shape.page_count",
            Self::PageShape { .. } => "shape.stored_pages",
            Self::PagesOverlap { .. } => "overlap.pages",
            Self::Layout { .. } => "integrity.tier_layout",
            Self::Manifest { .. } => "integrity.tier_manifest",
            Self::WriterInUse { .. } => "storage.writer_in_use",
            Self::NoWriter { .. } => "storage.no_writer",
            Self::NoRoom { .. } => "storage.no_room",
            Self::Full { .. } => "storage.full",
            Self::Io { .. } => "storage.io",
            Self::Late { .. } => "storage.late",
            Self::Forked => "storage.forked",
            Self::Closed => "storage.closed",
            Self::Thread { .. } => "storage.thread",
            Self::HostMemory { .. } => "storage.host_memory",
        }
    }
}
