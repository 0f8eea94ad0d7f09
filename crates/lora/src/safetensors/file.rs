//! Files of unknown origin, opened so that nothing but a plain file is ever read.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use infer_accel_tensor::files::open;

use super::header::{PREFIX, too_large};
use super::{Header, Limits, TensorEntry};
use crate::Error;
use crate::problem::{Problem, ProblemCode};

/// How a file is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenOptions {
    /// Whether a symbolic link in the place of the file is followed. Caches of downloaded models are made of such
    /// links; anywhere else they can lead out of the directory.
    pub follow_symlinks: bool,
    /// How much the header may hold.
    pub limits: Limits,
}

/// An open safetensors file: its header was read and checked, its tensors are read by position.
#[derive(Debug)]
pub struct File {
    path: PathBuf,
    handle: fs::File,
    header: Header,
}

impl File {
    /// Opens a file and reads its header.
    pub fn open(path: &Path, options: &OpenOptions) -> Result<Self, Error> {
        Self::open_or_problem(path, options).map_err(|problem| Error::file(path, problem))
    }

    pub(crate) fn open_or_problem(path: &Path, options: &OpenOptions) -> Result<Self, Problem> {
        let (file, file_len) = open_plain(path, options.follow_symlinks)?;
        let mut prefix = [0; PREFIX as usize];
        if file_len < PREFIX {
            let message = format!("a file of {file_len} bytes came; the shortest safetensors file has 10");
            return Err(Problem::new(ProblemCode::Truncated, "", message));
        }
        read_exact_at(&file, &mut prefix, 0).map_err(|error| unreadable(&error))?;
        let length = u64::from_le_bytes(prefix);
        if length > options.limits.header_bytes {
            return Err(too_large(length, &options.limits));
        }
        if length > file_len - PREFIX {
            let message = format!("the header takes {length} bytes, but the file has {}", file_len - PREFIX);
            return Err(Problem::new(ProblemCode::Truncated, "", message));
        }
        let mut json = vec![0; length as usize];
        read_exact_at(&file, &mut json, PREFIX).map_err(|error| unreadable(&error))?;
        let header = Header::parse(&json, file_len, &options.limits)?;
        Ok(Self { path: path.to_owned(), handle: file, header })
    }

    /// Where the file lay when it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the file holds.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The open file, to read by position.
    pub fn handle(&self) -> &fs::File {
        &self.handle
    }

    /// Reads `target.len()` bytes of a tensor, from byte `offset` of it on. A file that was cut off since it was
    /// opened is an error; what `target` then holds is undefined.
    pub fn read_at(&self, entry: &TensorEntry, offset: u64, target: &mut [u8]) -> Result<(), Error> {
        let start = entry.range.start.checked_add(offset);
        let end = start.and_then(|start| start.checked_add(target.len() as u64));
        let (Some(start), Some(true)) = (start, end.map(|end| end <= entry.range.end)) else {
            let message = format!(
                "bytes {offset} to {} were asked of {} bytes",
                offset.saturating_add(target.len() as u64),
                entry.byte_len()
            );
            return Err(Error::file(&self.path, Problem::new(ProblemCode::Offsets, &entry.name, message)));
        };
        self.read_range(start, target).map_err(|mut problem| {
            problem.tensor.clone_from(&entry.name);
            Error::file(&self.path, problem)
        })
    }

    /// Reads bytes of the file, from its byte `start` on.
    pub(crate) fn read_range(&self, start: u64, target: &mut [u8]) -> Result<(), Problem> {
        read_exact_at(&self.handle, target, start).map_err(|error| unreadable(&error))
    }
}

/// Opens a plain file for reading and tells its length. A symbolic link in its place (unless links are followed), a
/// pipe, a device and a directory are refused. What is checked is what was opened: swapping the file between a
/// check and the opening gains nothing.
pub fn open_plain(path: &Path, follow_symlinks: bool) -> Result<(fs::File, u64), Problem> {
    let file = open(path, follow_symlinks).map_err(|error| {
        let is_link = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_symlink());
        if is_link && !follow_symlinks {
            let message = "this is a symbolic link, which can lead out of the directory; if you trust where it leads, \
                           allow links (follow_symlinks=True), or copy the file";
            return Problem::new(ProblemCode::Path, file_name(path), message);
        }
        Problem::new(ProblemCode::Read, file_name(path), format!("it cannot be opened: {error}"))
    })?;
    let metadata = file.metadata().map_err(|error| {
        Problem::new(ProblemCode::Read, file_name(path), format!("it cannot be read: {error}"))
    })?;
    if !metadata.is_file() {
        let message = "this is no plain file, but a pipe, a device or a directory";
        return Err(Problem::new(ProblemCode::Path, file_name(path), message));
    }
    Ok((file, metadata.len()))
}

fn file_name(path: &Path) -> String {
    path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

/// A file that cannot be read; one that ends too early was cut off after it was opened.
fn unreadable(error: &io::Error) -> Problem {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        return Problem::new(ProblemCode::Truncated, "", "the file became shorter while it was being read");
    }
    Problem::new(ProblemCode::Read, "", format!("the system refuses to read it: {error}"))
}

#[cfg(unix)]
fn read_exact_at(file: &fs::File, target: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, target, offset)
}

#[cfg(windows)]
fn read_exact_at(file: &fs::File, mut target: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !target.is_empty() {
        let count = std::os::windows::fs::FileExt::seek_read(file, target, offset)?;
        if count == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        }
        target = &mut target[count..];
        offset += count as u64;
    }
    Ok(())
}
