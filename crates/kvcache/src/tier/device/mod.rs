//! The device under a tier: what reads, writes and syncs files, so that tests can put one that fails in its place.

#[cfg(test)]
pub(crate) mod faulty;
#[cfg(unix)]
mod posix;

use super::rows::Room;
use std::fmt::Debug;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

/// Where segments lie.
pub(super) trait Device: Debug + Send + Sync {
    /// Makes a file that does not exist yet, to read and write.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn SegmentFile>>;
    /// Opens a file, to read and write.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn SegmentFile>>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Every entry of a directory.
    fn list(&self, directory: &Path) -> io::Result<Vec<PathBuf>>;
    /// Makes what happened to the entries of a directory durable.
    fn sync_directory(&self, directory: &Path) -> io::Result<()>;
}

/// One file of a device. Reads and writes name their place; none moves a position that threads would share.
pub(super) trait SegmentFile: Debug + Send + Sync {
    /// Reads up to as many bytes as the buffer holds; fewer at the file's end.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// As `read_at`, but only what lies in memory; `WouldBlock` where the device would have to be asked.
    fn read_cached_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Reads to `front`, and behind it to memory of a caller, up to as many bytes as both hold; `cached` as in
    /// `read_cached_at`. Here by way of memory of our own.
    fn read_to(&self, front: &mut [u8], room: &Room<'_>, offset: u64, cached: bool) -> io::Result<usize> {
        read_by_copy(self, front, room, offset, cached)
    }
    /// Writes some of the bytes.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize>;
    /// Makes what was written durable.
    fn sync(&self) -> io::Result<()>;
    /// Cuts the file, or lets it grow.
    fn truncate(&self, length: u64) -> io::Result<()>;
    /// Bytes in the file.
    fn length(&self) -> io::Result<u64>;
    /// When the file was read or written last, by anybody who said so.
    fn used(&self) -> io::Result<SystemTime>;
    /// Says that the file was used now.
    fn touch(&self) -> io::Result<()>;
}

/// The device of this system.
pub(super) fn system() -> Arc<dyn Device> {
    #[cfg(unix)]
    return Arc::new(posix::Posix);
    #[cfg(not(unix))]
    return Arc::new(Missing);
}

fn read_by_copy(
    file: &(impl SegmentFile + ?Sized),
    front: &mut [u8],
    room: &Room<'_>,
    offset: u64,
    cached: bool,
) -> io::Result<usize> {
    let mut bytes = vec![0; front.len() + room.len()];
    let count =
        if cached { file.read_cached_at(&mut bytes, offset) } else { file.read_at(&mut bytes, offset) }?;
    let (for_front, for_room) = bytes[..count].split_at(count.min(front.len()));
    front[..for_front.len()].copy_from_slice(for_front);
    room.put(for_room);
    Ok(count)
}

/// Fills the buffer from `offset` on; returns how much there was.
pub(super) fn read_full(file: &dyn SegmentFile, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    fill(buffer, offset, |rest, at| file.read_at(rest, at))
}

/// As [`read_full`], without asking the device.
pub(super) fn read_full_cached(file: &dyn SegmentFile, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    fill(buffer, offset, |rest, at| file.read_cached_at(rest, at))
}

/// Fills `front` and `room` from `offset` on. Returns how much there was, and what went wrong, if anything did.
pub(super) fn read_full_to(
    file: &dyn SegmentFile,
    front: &mut [u8],
    room: &Room<'_>,
    offset: u64,
    cached: bool,
) -> (usize, io::Result<()>) {
    let (fronts, mut done) = (front.len(), 0);
    while done < fronts + room.len() {
        let rest = room.rest(done.saturating_sub(fronts));
        match file.read_to(&mut front[done.min(fronts)..], &rest, offset + done as u64, cached) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (done, Err(error)),
        }
    }
    (done, Ok(()))
}

fn fill(
    buffer: &mut [u8],
    offset: u64,
    mut read: impl FnMut(&mut [u8], u64) -> io::Result<usize>,
) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match read(&mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count.min(buffer.len() - done),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// Writes all of the bytes.
pub(super) fn write_full(file: &dyn SegmentFile, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.write_at(bytes, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => {
                let count = count.min(bytes.len());
                bytes = &bytes[count..];
                offset += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The device of a system whose files cannot be read and written at a place.
#[cfg(not(unix))]
#[derive(Debug)]
struct Missing;

#[cfg(not(unix))]
impl Device for Missing {
    fn create(&self, _: &Path) -> io::Result<Arc<dyn SegmentFile>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn open(&self, _: &Path) -> io::Result<Arc<dyn SegmentFile>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn remove(&self, _: &Path) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn list(&self, _: &Path) -> io::Result<Vec<PathBuf>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn sync_directory(&self, _: &Path) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
