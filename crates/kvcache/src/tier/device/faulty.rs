//! A device that fails as it is told to.

use super::super::rows::Room;
use super::{Device, SegmentFile, read_by_copy, system};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::SystemTime;

/// What goes wrong, changed while the device is used.
#[derive(Debug)]
pub(crate) struct Faults {
    /// Bytes that can still be written.
    pub(crate) room: AtomicI64,
    /// Most bytes of one write.
    pub(crate) longest_write: AtomicUsize,
    pub(crate) fail_reads: AtomicBool,
    pub(crate) fail_writes: AtomicBool,
    pub(crate) fail_syncs: AtomicBool,
    /// Nothing is found in memory.
    pub(crate) cold: AtomicBool,
    /// Only so many bytes more are, where this is not negative.
    pub(crate) cached_bytes: AtomicI64,
    /// The caller's memory changes behind every read.
    pub(crate) spoil_rooms: AtomicBool,
    /// Where writes went, and how long each was.
    pub(crate) writes: Mutex<Vec<(u64, usize)>>,
    hanging: Mutex<bool>,
    hanging_writes: Mutex<bool>,
    released: Condvar,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            room: AtomicI64::new(i64::MAX),
            longest_write: AtomicUsize::new(usize::MAX),
            fail_reads: AtomicBool::new(false),
            fail_writes: AtomicBool::new(false),
            fail_syncs: AtomicBool::new(false),
            cold: AtomicBool::new(false),
            cached_bytes: AtomicI64::new(-1),
            spoil_rooms: AtomicBool::new(false),
            writes: Mutex::default(),
            hanging: Mutex::new(false),
            hanging_writes: Mutex::new(false),
            released: Condvar::new(),
        }
    }
}

impl Faults {
    /// Reads wait until the device answers again.
    pub(crate) fn hang(&self, hanging: bool) {
        *self.hanging.lock().unwrap() = hanging;
        self.released.notify_all();
    }

    /// Writes and syncs wait until the device answers again.
    pub(crate) fn hang_writes(&self, hanging: bool) {
        *self.hanging_writes.lock().unwrap() = hanging;
        self.released.notify_all();
    }

    fn wait(&self, hanging: &Mutex<bool>) {
        let hanging = hanging.lock().unwrap();
        drop(self.released.wait_while(hanging, |hanging| *hanging).unwrap());
    }
}

/// The system's device, with faults.
#[derive(Debug)]
pub(crate) struct FaultyDevice {
    pub(crate) faults: Arc<Faults>,
    inner: Arc<dyn Device>,
}

impl FaultyDevice {
    pub(crate) fn make() -> (Arc<dyn Device>, Arc<Faults>) {
        let faults = Arc::new(Faults::default());
        (Arc::new(Self { faults: Arc::clone(&faults), inner: system() }), faults)
    }

    fn wrap(&self, file: Arc<dyn SegmentFile>) -> Arc<dyn SegmentFile> {
        Arc::new(FaultyFile { faults: Arc::clone(&self.faults), inner: file })
    }
}

impl Device for FaultyDevice {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn SegmentFile>> {
        self.inner.create(path).map(|file| self.wrap(file))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn SegmentFile>> {
        self.inner.open(path).map(|file| self.wrap(file))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.inner.remove(path)
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<PathBuf>> {
        self.inner.list(directory)
    }

    fn sync_directory(&self, directory: &Path) -> io::Result<()> {
        self.inner.sync_directory(directory)
    }
}

#[derive(Debug)]
struct FaultyFile {
    faults: Arc<Faults>,
    inner: Arc<dyn SegmentFile>,
}

fn broken() -> io::Error {
    io::Error::from_raw_os_error(libc::EIO)
}

impl SegmentFile for FaultyFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.faults.wait(&self.faults.hanging);
        if self.faults.fail_reads.load(Ordering::Relaxed) {
            return Err(broken());
        }
        self.inner.read_at(buffer, offset)
    }

    fn read_cached_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        if self.faults.cold.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let left = self.faults.cached_bytes.load(Ordering::Relaxed);
        if left >= 0 {
            let count = buffer.len().min(left as usize);
            self.faults.cached_bytes.fetch_sub(count as i64, Ordering::Relaxed);
            let none = || io::ErrorKind::WouldBlock.into();
            return if count == 0 { Err(none()) } else { self.inner.read_at(&mut buffer[..count], offset) };
        }
        if self.faults.fail_reads.load(Ordering::Relaxed) {
            return Err(broken());
        }
        self.inner.read_at(buffer, offset)
    }

    fn read_to(&self, front: &mut [u8], room: &Room<'_>, offset: u64, cached: bool) -> io::Result<usize> {
        let count = read_by_copy(self, front, room, offset, cached)?;
        if self.faults.spoil_rooms.load(Ordering::Relaxed) {
            room.put(&[0xee; 64][..count.saturating_sub(front.len()).min(64)]);
        }
        Ok(count)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        self.faults.wait(&self.faults.hanging_writes);
        if self.faults.fail_writes.load(Ordering::Relaxed) {
            return Err(broken());
        }
        let room = self.faults.room.load(Ordering::Relaxed);
        if room <= 0 {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        let longest = self.faults.longest_write.load(Ordering::Relaxed).min(room as usize);
        let count = self.inner.write_at(&bytes[..bytes.len().min(longest)], offset)?;
        self.faults.room.fetch_sub(count as i64, Ordering::Relaxed);
        self.faults.writes.lock().unwrap().push((offset, count));
        Ok(count)
    }

    fn sync(&self) -> io::Result<()> {
        self.faults.wait(&self.faults.hanging_writes);
        if self.faults.fail_syncs.load(Ordering::Relaxed) { Err(broken()) } else { self.inner.sync() }
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        self.inner.truncate(length)
    }

    fn length(&self) -> io::Result<u64> {
        self.inner.length()
    }

    fn used(&self) -> io::Result<SystemTime> {
        self.inner.used()
    }

    fn touch(&self) -> io::Result<()> {
        self.inner.touch()
    }
}
