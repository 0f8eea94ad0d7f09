//! Seeing what other processes did: new segments, new pages in them, segments that went.

use super::device::SegmentFile;
use super::record::{Refusal, SEGMENT_HEADER_BYTES};
use super::segment::{Segment, scan};
use super::sync::lock;
use super::{Inner, TierError};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// A file that was seen.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) file: Arc<dyn SegmentFile>,
    /// `None` for a file that is no segment of this directory's kind.
    segment: Option<Arc<Segment>>,
    /// Up to where its records are in the index.
    scanned: u64,
}

/// Every file that was seen, by its path.
pub(super) type KnownFiles = HashMap<PathBuf, Known>;

impl Inner {
    /// Whether the last refresh is long enough ago.
    pub(super) fn refresh_is_due(&self) -> bool {
        lock(&self.refreshed).is_none_or(|at| at.elapsed() >= super::load::REFRESH_INTERVAL)
    }

    /// Brings the index up to what the directory holds.
    pub(super) fn refresh(&self) -> Result<(), TierError> {
        let mut known = lock(&self.known);
        let paths = self.root.segment_paths()?;
        let gone: Vec<PathBuf> =
            known.keys().filter(|path| paths.binary_search(path).is_err()).cloned().collect();
        for path in gone {
            self.drop_known(&mut known, &path);
        }
        for path in paths {
            self.refresh_file(&mut known, path);
        }
        *lock(&self.refreshed) = Some(Instant::now());
        Ok(())
    }

    fn refresh_file(&self, known: &mut KnownFiles, path: PathBuf) {
        if let Some(Known { file, segment: Some(segment), scanned }) = known.get_mut(&path) {
            if self.is_own(&path) {
                return;
            }
            match Segment::read_header(&**file, &self.kind) {
                Ok(Ok(header)) if header.id == segment.header.id => {
                    self.scan_on(segment, scanned);
                    return;
                }
                // The device may be better tomorrow; what cannot be read is a miss meanwhile.
                Err(_) => return,
                Ok(_) => {}
            }
            self.drop_known(known, &path);
        }
        self.meet(known, path);
    }

    /// Takes in a file that was not seen before, or not understood.
    fn meet(&self, known: &mut KnownFiles, path: PathBuf) {
        let seen = known.contains_key(&path);
        let Ok(file) = self.root.device.open(&path) else { return };
        match Segment::read_header(&*file, &self.kind) {
            Ok(Ok(header)) => {
                let own = self.is_own(&path);
                let segment = Arc::new(Segment::new(path.clone(), header, Arc::clone(&file), own));
                self.sequence.fetch_max(header.sequence, Ordering::Relaxed);
                let mut scanned = 0;
                lock(&self.index).add_segment(&segment);
                self.scan_on(&segment, &mut scanned);
                if own {
                    self.cut_tail(&segment, scanned);
                }
                known.insert(path, Known { file, segment: Some(segment), scanned });
            }
            Ok(Err(refusal)) => {
                if refusal == Refusal::Unreadable && Self::is_blank(&*file) {
                    // Somebody begins it just now, or died while doing so.
                    if !self.root.is_being_written(&path) || self.is_own(&path) {
                        let _ = self.root.device.remove(&path);
                    }
                    return;
                }
                if !seen {
                    self.counters.refused_segments.add(1);
                }
                known.insert(path, Known { file, segment: None, scanned: 0 });
            }
            Err(_) => {}
        }
    }

    /// Adds the records behind `scanned` to the index.
    fn scan_on(&self, segment: &Arc<Segment>, scanned: &mut u64) {
        let Ok(scan) = scan(&*segment.file, &segment.header, *scanned) else { return };
        *scanned = scan.end;
        let pages =
            scan.records.into_iter().map(|(record, offset)| (record.key, offset, record.stored_bytes));
        lock(&self.index).add_pages(segment, pages);
    }

    /// Cuts what an earlier life of this writer left behind its last whole batch.
    fn cut_tail(&self, segment: &Segment, end: u64) {
        let end = end.next_multiple_of(super::record::BATCH_ALIGNMENT);
        if segment.file.length().is_ok_and(|length| length > end) && segment.file.truncate(end).is_ok() {
            self.counters.torn_segments.add(1);
        }
    }

    fn is_blank(file: &dyn SegmentFile) -> bool {
        let mut front = vec![0; SEGMENT_HEADER_BYTES];
        let count = super::device::read_full(file, &mut front, 0).unwrap_or(front.len());
        front.get(..count).is_some_and(|front| front.iter().all(|&byte| byte == 0))
    }

    fn is_own(&self, path: &Path) -> bool {
        path.parent() == Some(&*self.root.own_directory)
    }

    /// Notes a segment that this process begins.
    pub(super) fn note_own(&self, segment: &Arc<Segment>) {
        let known = Known { file: Arc::clone(&segment.file), segment: Some(Arc::clone(segment)), scanned: 0 };
        lock(&self.known).insert(segment.path.clone(), known);
    }

    /// Forgets a segment and its pages; returns how many those were.
    pub(super) fn forget(&self, segment: &Segment) -> usize {
        segment.retire();
        lock(&self.known).remove(&segment.path);
        lock(&self.index).remove_segment(segment)
    }

    fn drop_known(&self, known: &mut KnownFiles, path: &Path) {
        if let Some(Known { segment: Some(segment), .. }) = known.remove(path) {
            segment.retire();
            let _ = lock(&self.index).remove_segment(&segment);
        }
    }
}
