//! Where an output grows: a directory beside it, which takes the output's name when it is whole.
//!
//! ```text
//! models/merged                        the output: absent (or empty) until the end
//! models/.merged.unfinished/journal    what is done, and whose work it is; locked while a call runs
//! models/.merged.unfinished/files/     the output's files
//! ```
//!
//! At the end every file and both directories are flushed, `files` is renamed to `merged`, and the rest is removed.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use super::error::CheckpointError;
use super::files::{identity, sync_directory};
use super::journal::{Journal, Record};

/// Where unfinished work lies.
#[derive(Debug)]
pub(super) struct Staging {
    root: PathBuf,
    files: PathBuf,
    output: PathBuf,
}

/// An output's place: checked, but nothing made yet.
#[derive(Debug)]
pub(super) struct Place {
    parent: PathBuf,
    output: PathBuf,
    root: PathBuf,
}

impl Place {
    /// Checks where an output may lie: its parent exists, and it has nothing to do with any of `sources`.
    pub(super) fn check(output: &Path, sources: &[&Path]) -> Result<Self, CheckpointError> {
        let refuse =
            |problem: &str| CheckpointError::Output { path: output.to_owned(), problem: problem.to_owned() };
        let Some(Component::Normal(name)) = output.components().next_back() else {
            return Err(refuse("this names no directory of its own; give it a name"));
        };
        let parent = match output.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let parent = parent.canonicalize().map_err(|error| {
            let source = match error.kind() {
                io::ErrorKind::NotFound => io::Error::new(
                    error.kind(),
                    "there is no such directory; make it first, the output is to lie in it",
                ),
                _ => error,
            };
            CheckpointError::Read { path: parent.to_owned(), source }
        })?;
        let whole = parent.join(name);
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(".unfinished");
        for source in sources {
            apart(&whole, &parent, source).map_err(|problem| refuse(&problem))?;
        }
        Ok(Self { root: parent.join(hidden), output: whole, parent })
    }

    /// Refuses an output that exists, unless it is an empty directory.
    pub(super) fn require_vacant(&self) -> Result<(), CheckpointError> {
        let refuse = |problem: &str| {
            Err(CheckpointError::Output { path: self.output.clone(), problem: problem.to_owned() })
        };
        match fs::symlink_metadata(&self.output) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(CheckpointError::read(&self.output)(error)),
            Ok(found) if found.is_dir() => {
                let mut entries = fs::read_dir(&self.output).map_err(CheckpointError::read(&self.output))?;
                if entries.next().is_none() {
                    Ok(())
                } else {
                    refuse("it exists and is not empty; name another one, or remove it")
                }
            }
            Ok(_) => refuse("it exists and is no directory; name another one"),
        }
    }

    pub(super) fn output(&self) -> &Path {
        &self.output
    }

    /// Whether an earlier call has left work.
    pub(super) fn has_unfinished(&self) -> bool {
        fs::symlink_metadata(&self.root).is_ok()
    }

    /// Makes or opens the directory of unfinished work, and locks it.
    pub(super) fn open(&self) -> Result<(Staging, Journal, Vec<Record>), CheckpointError> {
        for directory in [&self.root, &self.root.join("files")] {
            match fs::create_dir(directory) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    let found = fs::symlink_metadata(directory).map_err(CheckpointError::read(directory))?;
                    // The rename has happened and the clean-up has not: `files` may be missing, never be a link.
                    if !found.is_dir() {
                        let problem =
                            "this is in the way: a directory of unfinished work belongs here; remove it";
                        return Err(CheckpointError::Output {
                            path: directory.clone(),
                            problem: problem.to_owned(),
                        });
                    }
                }
                other => other.map_err(CheckpointError::write(directory))?,
            }
        }
        let (journal, records) = Journal::open(self.root.join("journal"))?;
        let staging = Staging {
            root: self.root.clone(),
            files: self.root.join("files"),
            output: self.parent.join(&self.output),
        };
        Ok((staging, journal, records))
    }
}

impl Staging {
    /// The directory that becomes the output.
    pub(super) fn files(&self) -> &Path {
        &self.files
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Removes all files of earlier work.
    pub(super) fn clear(&self) -> Result<(), CheckpointError> {
        fs::remove_dir_all(&self.files)
            .and_then(|()| fs::create_dir(&self.files))
            .map_err(CheckpointError::write(&self.files))
    }

    /// Flushes the directories, gives the output its name, and removes what is left.
    pub(super) fn publish(self, journal: Journal) -> Result<(), CheckpointError> {
        sync_all(&self.files).map_err(CheckpointError::write(&self.files))?;
        if let Err(error) = fs::rename(&self.files, &self.output) {
            // Elsewhere than on Unix a rename does not replace an empty directory. One that is not empty stays.
            fs::remove_dir(&self.output)
                .and_then(|()| fs::rename(&self.files, &self.output))
                .map_err(|_| CheckpointError::write(&self.output)(error))?;
        }
        if let Some(parent) = self.output.parent() {
            sync_directory(parent).map_err(CheckpointError::write(parent))?;
        }
        self.discard(journal)
    }

    /// Removes the directory of unfinished work.
    pub(super) fn discard(self, journal: Journal) -> Result<(), CheckpointError> {
        drop(journal);
        // `files` before the journal, as long as that says whose it is.
        match fs::remove_dir_all(&self.files) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(CheckpointError::write(&self.files)(error));
            }
            _ => {}
        }
        fs::remove_dir_all(&self.root).map_err(CheckpointError::write(&self.root))
    }
}

/// Flushes a directory and those in it.
fn sync_all(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_all(&entry.path())?;
        }
    }
    sync_directory(directory)
}

/// Whether an output and a source lie apart: neither is the other nor lies inside it.
fn apart(output: &Path, parent: &Path, source: &Path) -> Result<(), String> {
    let Ok(source_id) = identity(source) else { return Ok(()) };
    let is_source = |path: &Path| identity(path).is_ok_and(|id| id == source_id);
    if is_source(output) {
        return Err(format!(
            "this is {} itself, which is only read; name another directory",
            source.display()
        ));
    }
    if parent.ancestors().any(is_source) {
        return Err(format!(
            "it lies inside {}, which is only read; name another directory",
            source.display()
        ));
    }
    let Ok(output_id) = identity(output) else { return Ok(()) };
    let source = source.canonicalize().unwrap_or_else(|_| source.to_owned());
    let encloses = source.ancestors().skip(1).any(|above| identity(above).is_ok_and(|id| id == output_id));
    if encloses {
        return Err(format!("{} lies inside it; name another directory", source.display()));
    }
    Ok(())
}
