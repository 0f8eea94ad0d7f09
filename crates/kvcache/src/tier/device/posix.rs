#![allow(unsafe_code)] // preadv2 with RWF_NOWAIT, which the standard library does not have
//! Files of a POSIX system.

use super::super::rows::Room;
use super::{Device, SegmentFile};
use std::fs::{self, File, FileTimes, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

/// The system's own files.
#[derive(Debug)]
pub(super) struct Posix;

impl Device for Posix {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn SegmentFile>> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
        Ok(Arc::new(PosixFile(file)))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn SegmentFile>> {
        Ok(Arc::new(PosixFile(OpenOptions::new().read(true).write(true).open(path)?)))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<PathBuf>> {
        fs::read_dir(directory)?.map(|entry| entry.map(|entry| entry.path())).collect()
    }

    fn sync_directory(&self, directory: &Path) -> io::Result<()> {
        File::open(directory)?.sync_all()
    }
}

#[derive(Debug)]
struct PosixFile(File);

impl SegmentFile for PosixFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(&self.0, buffer, offset)
    }

    #[cfg(target_os = "linux")]
    fn read_cached_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        use std::os::fd::AsRawFd;

        let piece = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        let offset = offset.try_into().map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: one piece, which is the buffer that is borrowed for the call; the descriptor is open.
        let count =
            unsafe { libc::preadv2(self.0.as_raw_fd(), &raw const piece, 1, offset, libc::RWF_NOWAIT) };
        usize::try_from(count).map_err(|_| io::Error::last_os_error())
    }

    #[cfg(not(target_os = "linux"))]
    fn read_cached_at(&self, _: &mut [u8], _: u64) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    #[cfg(target_os = "linux")]
    fn read_to(&self, front: &mut [u8], room: &Room<'_>, offset: u64, cached: bool) -> io::Result<usize> {
        use std::os::fd::AsRawFd;

        let pieces = [
            libc::iovec { iov_base: front.as_mut_ptr().cast(), iov_len: front.len() },
            libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: room.len() },
        ];
        let offset = offset.try_into().map_err(|_| io::ErrorKind::InvalidInput)?;
        let flags = if cached { libc::RWF_NOWAIT } else { 0 };
        // SAFETY: two pieces: the buffer that is borrowed for the call, and a part of a page that may be written, for
        // as long as the room is there; the descriptor is open.
        let count = unsafe { libc::preadv2(self.0.as_raw_fd(), pieces.as_ptr(), 2, offset, flags) };
        usize::try_from(count).map_err(|_| io::Error::last_os_error())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        FileExt::write_at(&self.0, bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        self.0.set_len(length)
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn used(&self) -> io::Result<SystemTime> {
        let metadata = self.0.metadata()?;
        Ok(metadata.accessed()?.max(metadata.modified()?))
    }

    fn touch(&self) -> io::Result<()> {
        self.0.set_times(FileTimes::new().set_accessed(SystemTime::now()))
    }
}
