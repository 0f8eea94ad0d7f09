//! The directory of a tier: what it holds, who writes, and who may change it.
//!
//! ```text
//! root/tier                       what all pages have in common
//! root/lock                       held while segments are begun and removed
//! root/writer-0007/lock           held by the process that writes here
//! root/writer-0007/000003.segment
//! ```

use super::TierError;
use super::check::Checksum;
use super::device::Device;
use super::record::Kind;
use infer_accel_tensor::files::open_plain;
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// As many processes can share a directory.
pub(super) const MAX_WRITERS: u32 = 256;

const MANIFEST: &str = "tier";
const LOCK: &str = "lock";
const MANIFEST_TITLE: &str = "infer-accel kvcache tier, version 1";
const SEGMENT_EXTENSION: &str = "segment";
const WRITER_PREFIX: &str = "writer-";

/// An open directory, with a writer's place in it.
#[derive(Debug)]
pub(super) struct Root {
    pub(super) path: PathBuf,
    pub(super) device: Arc<dyn Device>,
    /// Where this process's segments lie.
    pub(super) own_directory: PathBuf,
    pub(super) writer: u32,
    lock: File,
    /// Held as long as it lives.
    _writer_lock: File,
}

impl Root {
    pub(super) fn open(
        path: &Path,
        kind: &Kind,
        writer: Option<u32>,
        device: Arc<dyn Device>,
    ) -> Result<Self, TierError> {
        fs::create_dir_all(path).map_err(|error| TierError::io("creating", path, &error))?;
        let lock_path = path.join(LOCK);
        let lock = open_lock(&lock_path).map_err(|error| TierError::io("opening", &lock_path, &error))?;
        lock.lock().map_err(|error| TierError::io("locking", &lock_path, &error))?;
        let opened = check_manifest(path, kind).and_then(|()| take_writer(path, writer));
        let _ = lock.unlock();
        let (writer, own_directory, writer_lock) = opened?;
        Ok(Self { path: path.to_owned(), device, own_directory, writer, lock, _writer_lock: writer_lock })
    }

    /// Runs `work` while no other process begins or removes segments. One thread at a time may call this.
    pub(super) fn exclusively<T>(&self, work: impl FnOnce() -> Result<T, TierError>) -> Result<T, TierError> {
        let path = || self.path.join(LOCK);
        self.lock.lock().map_err(|error| TierError::io("locking", &path(), &error))?;
        let outcome = work();
        let _ = self.lock.unlock();
        outcome
    }

    /// Every file that is named like a segment.
    pub(super) fn segment_paths(&self) -> Result<Vec<PathBuf>, TierError> {
        let list = |path: &Path| match self.device.list(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(TierError::io("listing", path, &error))
            }
            other => Ok(other.unwrap_or_default()),
        };
        let mut paths = Vec::new();
        for directory in list(&self.path)? {
            let name = directory.file_name().and_then(|name| name.to_str());
            if name.is_some_and(|name| name.starts_with(WRITER_PREFIX)) {
                let is_segment = |path: &PathBuf| path.extension().is_some_and(|it| it == SEGMENT_EXTENSION);
                paths.extend(list(&directory)?.into_iter().filter(is_segment));
            }
        }
        paths.sort();
        Ok(paths)
    }

    /// The path of a segment of this writer.
    pub(super) fn segment_path(&self, number: u64) -> PathBuf {
        self.own_directory.join(format!("{number:06}.{SEGMENT_EXTENSION}"))
    }

    /// Whether a process that is alive writes to the directory that a segment lies in.
    pub(super) fn is_being_written(&self, segment: &Path) -> bool {
        let Some(directory) = segment.parent() else { return false };
        if directory == self.own_directory {
            return true;
        }
        let Ok(lock) = open_lock(&directory.join(LOCK)) else { return false };
        matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock))
    }
}

/// The number of a segment's file.
pub(super) fn segment_number(path: &Path) -> Option<u64> {
    path.file_stem()?.to_str()?.parse().ok()
}

fn open_lock(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)
}

/// Takes the place of a writer: the one that was asked for, or the first that is free.
fn take_writer(path: &Path, writer: Option<u32>) -> Result<(u32, PathBuf, File), TierError> {
    let all = 0..MAX_WRITERS;
    for number in writer.map_or(all, |number| number..number + 1) {
        let directory = path.join(format!("{WRITER_PREFIX}{number:04}"));
        fs::create_dir_all(&directory).map_err(|error| TierError::io("creating", &directory, &error))?;
        let lock_path = directory.join(LOCK);
        let lock = open_lock(&lock_path).map_err(|error| TierError::io("opening", &lock_path, &error))?;
        match lock.try_lock() {
            Ok(()) => return Ok((number, directory, lock)),
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => return Err(TierError::io("locking", &lock_path, &error)),
        }
    }
    let path = path.to_owned();
    Err(match writer {
        Some(writer) => TierError::WriterInUse { path, writer },
        None => TierError::NoWriter { path, max: MAX_WRITERS },
    })
}

fn read_plain(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_plain(path)?.0.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Writes the manifest of a new directory, or compares that of an old one.
fn check_manifest(path: &Path, kind: &Kind) -> Result<(), TierError> {
    let manifest = path.join(MANIFEST);
    let expected = fields(kind);
    match read_plain(&manifest) {
        Ok(bytes) => compare(&manifest, path, &String::from_utf8_lossy(&bytes), &expected),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mut text = format!("{MANIFEST_TITLE}\n");
            for (name, value) in &expected {
                let _ = writeln!(text, "{name} {value}");
            }
            // Whole or not at all: a crash in between leaves no manifest, and no segment either.
            let fresh = path.join("tier.new");
            let written = fs::write(&fresh, &text)
                .and_then(|()| File::open(&fresh)?.sync_all())
                .and_then(|()| fs::rename(&fresh, &manifest))
                .and_then(|()| File::open(path)?.sync_all());
            // The directory's own entry; what cannot be opened for that (a mount point's parent) is not ours to sync.
            if let Some(parent) = path.parent().and_then(|parent| File::open(parent).ok()) {
                let _ = parent.sync_all();
            }
            written.map_err(|error| TierError::io("writing", &manifest, &error))
        }
        Err(error) => Err(TierError::io("reading", &manifest, &error)),
    }
}

fn compare(
    manifest: &Path,
    path: &Path,
    text: &str,
    expected: &[(&'static str, String)],
) -> Result<(), TierError> {
    let mut lines = text.lines();
    let title = lines.next().unwrap_or_default();
    if title != MANIFEST_TITLE {
        let known = title.strip_prefix("infer-accel kvcache tier, ").filter(|it| it.starts_with("version "));
        return Err(known.map_or_else(
            || TierError::Manifest { path: manifest.to_owned() },
            |found| TierError::Layout {
                path: path.to_owned(),
                what: "version",
                expected: "version 1".to_owned(),
                found: found.to_owned(),
            },
        ));
    }
    for (name, value) in expected {
        let found = lines.next().and_then(|line| line.split_once(' '));
        let Some((_, found)) = found.filter(|(found, _)| found == name) else {
            return Err(TierError::Manifest { path: manifest.to_owned() });
        };
        if found != value {
            return Err(TierError::Layout {
                path: path.to_owned(),
                what: name,
                expected: value.clone(),
                found: found.to_owned(),
            });
        }
    }
    Ok(())
}

fn fields(kind: &Kind) -> [(&'static str, String); 3] {
    let mut fingerprint = String::new();
    for byte in kind.fingerprint {
        let _ = write!(fingerprint, "{byte:02x}");
    }
    let checksum = match kind.checksum {
        Checksum::Xxh3 => "xxh3",
        Checksum::Blake3 => "blake3",
    };
    [
        ("page_bytes", kind.page_bytes.to_string()),
        ("checksum", checksum.to_owned()),
        ("fingerprint", fingerprint),
    ]
}
