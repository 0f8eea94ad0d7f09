//! Files as a merge opens them: nothing is followed that an attacker could have put there.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::error::CheckpointError;

/// Reads exactly `buffer.len()` bytes at an offset.
pub(super) fn read_at(
    file: &File,
    path: &Path,
    buffer: &mut [u8],
    offset: u64,
) -> Result<(), CheckpointError> {
    system::read_exact_at(file, buffer, offset).map_err(CheckpointError::read(path))
}

/// A file of the output, written in large blocks.
///
/// Blocks go around the page cache where the file system allows it (`O_DIRECT`): a checkpoint is larger than what
/// a cache can usefully keep, its pages would push out the base's, and the first touch of a fresh page costs more than the
/// disk's own work.
pub(super) struct OutputFile {
    path: PathBuf,
    plain: File,
    direct: Option<File>,
}

/// Offsets, lengths and addresses of direct writes are multiples of this.
pub(super) const DIRECT_ALIGNMENT: usize = 4096;

impl OutputFile {
    /// Opens or creates a file to write; what is there beyond `keep` bytes is cut off.
    pub(super) fn open(path: &Path, keep: u64) -> Result<Self, CheckpointError> {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        no_follow(&mut options);
        let plain = options.open(path).map_err(CheckpointError::write(path))?;
        plain.set_len(keep).map_err(CheckpointError::write(path))?;
        Ok(Self { path: path.to_owned(), plain, direct: system::open_direct(path) })
    }

    /// Opens a file that is there, to read it back.
    pub(super) fn reopen(path: &Path) -> Result<Self, CheckpointError> {
        let mut options = File::options();
        options.read(true);
        no_follow(&mut options);
        let plain = options.open(path).map_err(CheckpointError::read(path))?;
        Ok(Self { path: path.to_owned(), plain, direct: None })
    }

    /// Writes the first `length` bytes of a block at an offset. The block's bytes up to the next multiple of
    /// [`DIRECT_ALIGNMENT`] may reach the file too; [`Self::finish`] cuts them off.
    pub(super) fn write_block(
        &mut self,
        block: &[u8],
        length: usize,
        offset: u64,
    ) -> Result<(), CheckpointError> {
        let padded = length.next_multiple_of(DIRECT_ALIGNMENT);
        let is_aligned = offset.is_multiple_of(DIRECT_ALIGNMENT as u64)
            && block.as_ptr().addr().is_multiple_of(DIRECT_ALIGNMENT);
        if let (Some(direct), Some(bytes), true) = (&self.direct, block.get(..padded), is_aligned) {
            match system::write_all_at(direct, bytes, offset) {
                // Some file systems take the flag when a file is opened and refuse it afterwards; and a limit on
                // the file's size cuts a block into a part that is no longer aligned.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => self.direct = None,
                other => return other.map_err(CheckpointError::write(&self.path)),
            }
        }
        self.write_plain(block.get(..length).unwrap_or(block), offset)
    }

    /// Writes bytes at any offset, through the page cache.
    pub(super) fn write_plain(&self, bytes: &[u8], offset: u64) -> Result<(), CheckpointError> {
        system::write_all_at(&self.plain, bytes, offset).map_err(CheckpointError::write(&self.path))
    }

    /// Reads bytes back.
    pub(super) fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), CheckpointError> {
        read_at(&self.plain, &self.path, buffer, offset)
    }

    /// Cuts the file to its length and flushes it to the disk.
    pub(super) fn finish(self, length: u64) -> Result<(), CheckpointError> {
        self.plain
            .set_len(length)
            .and_then(|()| self.plain.sync_all())
            .map_err(CheckpointError::write(&self.path))
    }
}

pub(super) use system::{identity, no_follow, sync_directory};

#[cfg(unix)]
mod system {
    use std::fs::{self, File, OpenOptions};
    use std::io;
    use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
    use std::path::Path;

    /// Refuses to open a symbolic link, and does not wait for the other end of a pipe.
    pub(in super::super) fn no_follow(options: &mut OpenOptions) {
        options.custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK);
    }

    /// Device and inode: two paths that have the same are the same thing.
    pub(in super::super) fn identity(path: &Path) -> io::Result<(u64, u64)> {
        fs::metadata(path).map(|found| (found.dev(), found.ino()))
    }

    /// Flushes a directory's entries to the disk.
    pub(in super::super) fn sync_directory(path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    pub(super) fn read_exact_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        file.read_exact_at(buffer, offset)
    }

    pub(super) fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        file.write_all_at(bytes, offset)
    }

    #[cfg(target_os = "linux")]
    pub(super) fn open_direct(path: &Path) -> Option<File> {
        let flags = libc::O_DIRECT | libc::O_NOFOLLOW | libc::O_CLOEXEC;
        File::options().write(true).custom_flags(flags).open(path).ok()
    }

    #[cfg(not(target_os = "linux"))]
    pub(super) fn open_direct(_: &Path) -> Option<File> {
        None
    }
}

#[cfg(windows)]
mod system {
    use std::fs::{File, OpenOptions};
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};
    use std::io;
    use std::os::windows::fs::FileExt as _;
    use std::path::Path;

    /// Symbolic links need a privilege here; nothing to refuse.
    pub(in super::super) fn no_follow(_: &mut OpenOptions) {}

    /// What stands for device and inode: the true path.
    pub(in super::super) fn identity(path: &Path) -> io::Result<(u64, u64)> {
        let mut hasher = DefaultHasher::new();
        path.canonicalize()?.hash(&mut hasher);
        Ok((0, hasher.finish()))
    }

    /// Directories cannot be flushed here.
    pub(in super::super) fn sync_directory(_: &Path) -> io::Result<()> {
        Ok(())
    }

    pub(super) fn read_exact_at(file: &File, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
        while !buffer.is_empty() {
            match file.seek_read(buffer, offset) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    buffer = buffer.get_mut(count..).unwrap_or_default();
                    offset += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    pub(super) fn write_all_at(file: &File, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
        while !bytes.is_empty() {
            match file.seek_write(bytes, offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    bytes = bytes.get(count..).unwrap_or_default();
                    offset += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    pub(super) fn open_direct(_: &Path) -> Option<File> {
        None
    }
}
