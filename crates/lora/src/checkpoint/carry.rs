//! Small files that go along with a checkpoint.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::Path;

use super::base::{Base, admit};
use super::checksum::Checksum;
use super::error::CheckpointError;
use super::files::no_follow;
use super::report::FileReport;
use crate::safetensors::open_plain;

/// Bytes that are copied at once.
const COPY_BYTES: usize = 1 << 18;

/// Copies a file of the base that goes along.
pub(super) fn carry(base: &Base, relative: &Path, files: &Path) -> Result<FileReport, CheckpointError> {
    let source = admit(&base.directory, &base.directory.join(relative))?;
    let (mut from, _) = open_plain(&source, false)
        .map_err(|problem| CheckpointError::Base { path: source.clone(), problem: problem.to_string() })?;
    let target = files.join(relative);
    let mut to = create(&target)?;
    let mut checksum = Checksum::default();
    let mut bytes = 0;
    let mut buffer = vec![0; COPY_BYTES];
    loop {
        let count = from.read(&mut buffer).map_err(CheckpointError::read(&source))?;
        let Some(piece) = buffer.get(..count).filter(|piece| !piece.is_empty()) else { break };
        to.write_all(piece).map_err(CheckpointError::write(&target))?;
        checksum.update(piece);
        bytes += count as u64;
    }
    to.sync_all().map_err(CheckpointError::write(&target))?;
    Ok(FileReport { name: slashed(relative), bytes, checksum: checksum.hex() })
}

/// Writes a file of the output.
pub(super) fn write_text(files: &Path, relative: &Path, text: &[u8]) -> Result<FileReport, CheckpointError> {
    let target = files.join(relative);
    let mut to = create(&target)?;
    to.write_all(text).and_then(|()| to.sync_all()).map_err(CheckpointError::write(&target))?;
    let mut checksum = Checksum::default();
    checksum.update(text);
    Ok(FileReport { name: slashed(relative), bytes: text.len() as u64, checksum: checksum.hex() })
}

/// A path with the separators that reports have everywhere.
pub(super) fn slashed(path: &Path) -> String {
    let parts: Vec<_> = path.components().map(|part| part.as_os_str().to_string_lossy()).collect();
    parts.join("/")
}

fn create(target: &Path) -> Result<File, CheckpointError> {
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent).map_err(CheckpointError::write(parent))?;
    }
    let mut options = File::options();
    options.write(true).create(true).truncate(true);
    no_follow(&mut options);
    options.open(target).map_err(CheckpointError::write(target))
}
