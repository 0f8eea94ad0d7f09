//! Reading pages: looked up, read into memory of ours, checked there, and copied to the caller; or read straight to the
//! caller, and checked there.
//!
//! A read that is late must have somewhere to go, so what the device is asked for comes to memory of ours. A record lies
//! in the processor's cache between the read and the copy; of a long page only a piece fits there, so such a page is
//! copied while it is checked, and blanked if it is wrong. Long pages that are in memory are read straight where that
//! is faster (`docs/design/kvcache.md`). Why not through a mapping: a file that another process cuts, or a device that
//! fails, would end this process with a signal; a read gives an error.

use super::Inner;
use super::buffer::Buffer;
use super::check::PIECE_BYTES;
use super::record::{Key, RECORD_HEADER_BYTES};
use super::rows::TargetRows;
use super::segment::{Location, ReadOutcome, page_of};
use super::sync::lock;
use infer_accel_tensor::threads;
use std::cell::RefCell;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

thread_local! {
    /// A record and an unpacked page: kept, because fresh memory costs more than the read.
    static BUFFERS: RefCell<(Buffer, Vec<u8>)> = RefCell::default();
}

/// A page that is asked for.
struct Wanted {
    row: usize,
    key: Key,
    location: Location,
}

/// A page that a thread of the tier has read and checked.
enum Fetched {
    /// Behind its header.
    Record(Buffer),
    Unpacked(Vec<u8>),
}

const PENDING: u8 = 0;
const HIT: u8 = 1;
const GONE: u8 = 2;
const CORRUPT: u8 = 3;
const FAILED: u8 = 4;
const NOT_CACHED: u8 = 5;

fn state_of(outcome: &ReadOutcome) -> u8 {
    match outcome {
        ReadOutcome::Page => HIT,
        ReadOutcome::Gone => GONE,
        ReadOutcome::Corrupt => CORRUPT,
        ReadOutcome::Failed => FAILED,
        ReadOutcome::NotCached => NOT_CACHED,
    }
}

/// How pages are loaded.
#[derive(Clone, Copy)]
pub struct LoadOptions<'a> {
    /// Threads to use; `None` for the default.
    pub num_threads: Option<usize>,
    /// Asked now and then on the calling thread; true ends the call with an error.
    pub stop: &'a dyn Fn() -> bool,
}

impl Default for LoadOptions<'_> {
    fn default() -> Self {
        Self { num_threads: None, stop: &|| false }
    }
}

impl Inner {
    /// Loads what it finds of `keys` to `rows`; returns which.
    pub(super) fn load(
        &self,
        keys: &[Key],
        rows: &TargetRows<'_>,
        options: &LoadOptions<'_>,
    ) -> Result<Vec<bool>, crate::KvCacheError> {
        let mut found = vec![false; keys.len()];
        let everything: Vec<usize> = (0..keys.len()).collect();
        self.load_rows(keys, &everything, rows, options, &mut found)?;
        Ok(found)
    }

    /// Loads what it finds of the rows in `which`, and says so in `found`.
    pub(super) fn load_rows(
        &self,
        keys: &[Key],
        which: &[usize],
        rows: &TargetRows<'_>,
        options: &LoadOptions<'_>,
        found: &mut [bool],
    ) -> Result<(), crate::KvCacheError> {
        let due = self.options.deadline.map(|deadline| Instant::now() + deadline);
        let threads = threads::resolve(options.num_threads)?;
        let missing = self.load_some(keys, which, rows, threads, due, options, found)?;
        if !missing.is_empty() && self.refresh_for_misses(due) {
            self.load_some(keys, &missing, rows, threads, due, options, found)?;
        }
        let hits = which.iter().filter(|&&row| found[row]).count();
        self.counters.hits.add(hits);
        self.counters.misses.add(which.len() - hits);
        Ok(())
    }

    /// Loads the rows in `which`; returns those that no segment is known to hold.
    #[allow(clippy::too_many_arguments)] // one call's own state, passed on
    fn load_some(
        &self,
        keys: &[Key],
        which: &[usize],
        rows: &TargetRows<'_>,
        threads: usize,
        due: Option<Instant>,
        options: &LoadOptions<'_>,
        found: &mut [bool],
    ) -> Result<Vec<usize>, crate::KvCacheError> {
        let (mut wanted, mut missing) = (Vec::with_capacity(which.len()), Vec::new());
        {
            let index = lock(&self.index);
            for &row in which {
                match index.find(&keys[row]) {
                    Some(location) => wanted.push(Wanted { row, key: keys[row], location: location.clone() }),
                    None => missing.push(row),
                }
            }
        }
        // In the order of the device.
        wanted.sort_by_key(|it| (it.location.segment.header.id, it.location.offset));
        let states: Vec<AtomicU8> = wanted.iter().map(|_| AtomicU8::new(PENDING)).collect();
        threads::parallel_for_interruptible(threads, wanted.len(), options.stop, |number| {
            let state = self.read_one(&wanted[number], rows, due.is_some());
            states[number].store(state, Ordering::Relaxed);
        })?;
        let mut states: Vec<u8> = states.into_iter().map(AtomicU8::into_inner).collect();
        if let Some(due) = due {
            self.fetch(&wanted, &mut states, rows, due);
        }
        self.settle(&wanted, &states, found);
        Ok(missing)
    }

    /// Reads one page on this thread.
    fn read_one(&self, wanted: &Wanted, rows: &TargetRows<'_>, cached: bool) -> u8 {
        BUFFERS.with_borrow_mut(|(record, unpacked)| {
            let Location { segment, offset, stored_bytes } = &wanted.location;
            if *stored_bytes == self.kind.page_bytes && *stored_bytes as usize > PIECE_BYTES {
                let target = (rows, wanted.row);
                let outcome = if self.straight && rows.is_aligned(wanted.row) {
                    segment.read_straight(&wanted.key, *offset, cached, record, target)
                } else {
                    segment.read_long_page(&wanted.key, *offset, cached, record, target)
                };
                return state_of(&outcome);
            }
            let outcome = segment.read_page(&wanted.key, (*offset, *stored_bytes), cached, record);
            if !matches!(outcome, ReadOutcome::Page) {
                return state_of(&outcome);
            }
            match page_of(record, *stored_bytes, self.kind.page_bytes, unpacked) {
                Some(page) => {
                    rows.copy_in(wanted.row, page);
                    HIT
                }
                None => CORRUPT,
            }
        })
    }

    /// Reads what lies on the device only, for as long as there is time.
    fn fetch(&self, wanted: &[Wanted], states: &mut [u8], rows: &TargetRows<'_>, due: Instant) {
        let Some(fetcher) = &self.fetcher else { return };
        let late: Vec<usize> = (0..wanted.len()).filter(|&number| states[number] == NOT_CACHED).collect();
        let page_bytes = self.kind.page_bytes;
        let spare = fetcher.spare();
        let works = late.iter().map(|&number| {
            let Wanted { key, location, .. } = &wanted[number];
            let (key, location, spare) = (*key, location.clone(), spare.clone());
            let work = move |buffer: &mut Buffer| {
                if let Some(used) = spare.take() {
                    *buffer = used;
                }
                let outcome =
                    location.segment.read_page(&key, (location.offset, location.stored_bytes), false, buffer);
                if !matches!(outcome, ReadOutcome::Page) {
                    return Err(state_of(&outcome));
                }
                let mut unpacked = Vec::new();
                match page_of(buffer, location.stored_bytes, page_bytes, &mut unpacked) {
                    None => Err(CORRUPT),
                    Some(_) if location.stored_bytes == page_bytes => {
                        Ok(Fetched::Record(std::mem::take(buffer)))
                    }
                    Some(_) => Ok(Fetched::Unpacked(unpacked)),
                }
            };
            Box::new(work) as Box<dyn FnOnce(&mut Buffer) -> Result<Fetched, u8> + Send>
        });
        fetcher.run(due, works, |position, page| {
            let number = late[position];
            states[number] = match page {
                Ok(Fetched::Record(record)) => {
                    rows.copy_in(wanted[number].row, &record[RECORD_HEADER_BYTES..]);
                    spare.keep(record);
                    HIT
                }
                Ok(Fetched::Unpacked(page)) => {
                    rows.copy_in(wanted[number].row, &page);
                    HIT
                }
                Err(state) => state,
            };
        });
    }

    /// Counts what became of each page, and forgets those that are no more.
    fn settle(&self, wanted: &[Wanted], states: &[u8], found: &mut [bool]) {
        let mut last = None;
        for (wanted, &state) in wanted.iter().zip(states) {
            let location = &wanted.location;
            match state {
                HIT => {
                    found[wanted.row] = true;
                    if last != Some(location.segment.header.id) {
                        last = Some(location.segment.header.id);
                        location.segment.note_use();
                    }
                }
                GONE => {
                    self.counters.vanished_pages.add(1);
                    lock(&self.index).remove_page(&wanted.key, location);
                }
                CORRUPT => {
                    self.counters.corrupt_pages.add(1);
                    lock(&self.index).remove_page(&wanted.key, location);
                }
                FAILED => self.counters.failed_reads.add(1),
                _ => self.counters.late_pages.add(1),
            }
        }
    }

    /// Looks for what other processes have written since, unless that was done a moment ago. Whether it was done.
    fn refresh_for_misses(&self, due: Option<Instant>) -> bool {
        if !self.refresh_is_due() {
            return false;
        }
        let (Some(due), Some(fetcher), Some(this)) = (due, &self.fetcher, self.this.upgrade()) else {
            return self.refresh().is_ok();
        };
        let work = move |_: &mut Buffer| this.refresh().is_ok();
        let works = std::iter::once(Box::new(work) as Box<dyn FnOnce(&mut Buffer) -> bool + Send>);
        let mut done = false;
        fetcher.run(due, works, |_, fresh| done = fresh);
        done
    }
}

/// How long what other processes write may stay unseen by a load that misses.
pub(super) const REFRESH_INTERVAL: Duration = Duration::from_millis(100);
