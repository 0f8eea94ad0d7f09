//! The checkpoint that a merge begins with: its shards, its index and the files that belong to it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use super::checksum::Checksum;
use super::error::CheckpointError;
use super::files::read_at;
use super::index::{find_index, find_single, parse_index, require_consistent};
use crate::safetensors::{self, TensorEntry, open_plain};

/// An index or a configuration longer than this is none.
const LONGEST_JSON: u64 = 256 << 20;

/// Files deeper than this below the checkpoint's directory do not belong to it.
const DEEPEST: usize = 4;

/// Endings of files that hold weights in another form, or that were derived from them: after a merge they would be
/// those of the base still.
const OTHER_WEIGHTS: [&str; 14] = [
    "safetensors",
    "safetensors.index.json",
    "bin",
    "bin.index.json",
    "pt",
    "pth",
    "ckpt",
    "gguf",
    "ggml",
    "onnx",
    "onnx_data",
    "h5",
    "msgpack",
    "tflite",
];

/// A file of tensors that is read.
#[derive(Debug)]
pub(super) struct Source {
    path: PathBuf,
    file: fs::File,
    length: u64,
    modified: u128,
}

/// A shard of a checkpoint.
#[derive(Debug)]
pub(super) struct Shard {
    /// Its file name.
    pub(super) name: String,
    /// The length, the JSON and the padding before the data.
    pub(super) header: Vec<u8>,
    /// Its tensors, in the order of their data.
    pub(super) tensors: Vec<TensorEntry>,
    /// What the writer noted.
    pub(super) metadata: BTreeMap<String, String>,
}

/// A checkpoint in a directory.
#[derive(Debug)]
pub(super) struct Base {
    /// The directory.
    pub(super) directory: PathBuf,
    /// The shards, by name; each has the source of the same number.
    pub(super) shards: Vec<Shard>,
    /// The open files.
    pub(super) sources: Vec<Source>,
    /// The index: its file name and its text.
    pub(super) index: Option<(String, Vec<u8>)>,
    /// Other files that belong to the checkpoint, relative to its directory.
    pub(super) companions: Vec<PathBuf>,
    /// Files that are left out, as they hold other forms of the weights.
    pub(super) left_out: Vec<PathBuf>,
}

impl Source {
    pub(super) fn open(path: &Path, file: fs::File) -> Result<Self, CheckpointError> {
        let found = file.metadata().map_err(CheckpointError::read(path))?;
        let modified = found.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        Ok(Self {
            path: path.to_owned(),
            file,
            length: found.len(),
            modified: modified.map_or(0, |time| time.as_nanos()),
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn length(&self) -> u64 {
        self.length
    }

    pub(super) fn read(&self, buffer: &mut [u8], offset: u64) -> Result<(), CheckpointError> {
        read_at(&self.file, &self.path, buffer, offset)
    }

    /// What tells this file from another, or from itself after a change.
    pub(super) fn identity(&self) -> String {
        format!("{} bytes, changed at {} ns", self.length, self.modified)
    }

    /// Refuses a file that was written to since it was opened.
    pub(super) fn require_unchanged(&self) -> Result<(), CheckpointError> {
        let file = self.file.try_clone().map_err(CheckpointError::read(&self.path))?;
        let now = Self::open(&self.path, file)?;
        if (now.length, now.modified) == (self.length, self.modified) {
            return Ok(());
        }
        Err(CheckpointError::Integrity {
            path: self.path.clone(),
            problem: "it was written to while it was read; repeat the call with resume=False".to_owned(),
        })
    }
}

impl Base {
    /// Finds and opens the checkpoint in a directory.
    pub(super) fn open(directory: &Path) -> Result<Self, CheckpointError> {
        let found = directory.canonicalize().map_err(CheckpointError::read(directory))?;
        if !found.is_dir() {
            return Err(refuse(directory, "this is no directory; name the directory of the checkpoint"));
        }
        let directory = found;
        let names = file_names(&directory)?;
        let (index, shard_names) = match find_index(&directory, &names)? {
            Some(name) => {
                let text = read_small(&directory, &name)?;
                let map = parse_index(&directory.join(&name), &text)?;
                (Some((name, text, map.clone())), map.into_values().collect::<BTreeSet<_>>())
            }
            None => (None, BTreeSet::from([find_single(&directory, &names)?])),
        };
        let mut shards = Vec::new();
        let mut sources = Vec::new();
        for name in shard_names {
            let (shard, source) = open_shard(&directory, &name)?;
            shards.push(shard);
            sources.push(source);
        }
        require_consistent(&directory, &shards, index.as_ref().map(|(_, _, map)| map))?;
        let index = index.map(|(name, text, _)| (name, text));
        let mut base =
            Self { directory, shards, sources, index, companions: Vec::new(), left_out: Vec::new() };
        let top = base.directory.clone();
        base.gather(&top, Path::new(""), 0)?;
        Ok(base)
    }

    /// The text of a file of the checkpoint's directory; `None` if there is none.
    pub(super) fn text_of(&self, name: &str) -> Result<Option<Vec<u8>>, CheckpointError> {
        if self.companions.iter().any(|path| path == Path::new(name)) {
            return read_small(&self.directory, name).map(Some);
        }
        Ok(None)
    }

    /// What tells this checkpoint from another, for the journal.
    pub(super) fn identity(&self) -> serde_json::Value {
        self.identity_of(&self.sources)
    }

    /// As [`Self::identity`], where the sources have gone elsewhere.
    pub(super) fn identity_of(&self, sources: &[Source]) -> serde_json::Value {
        let shards = self.shards.iter().zip(sources).map(|(shard, source)| {
            let mut header = Checksum::default();
            header.update(&shard.header);
            serde_json::json!([shard.name, source.identity(), header.hex()])
        });
        serde_json::Value::Array(shards.collect())
    }

    /// Lists the files that go along, and those that do not.
    fn gather(&mut self, directory: &Path, below: &Path, depth: usize) -> Result<(), CheckpointError> {
        let entries = fs::read_dir(directory).map_err(CheckpointError::read(directory))?;
        let mut found: Vec<_> =
            entries.collect::<Result<_, _>>().map_err(CheckpointError::read(directory))?;
        found.sort_by_key(fs::DirEntry::file_name);
        for entry in found {
            let (path, relative) = (entry.path(), below.join(entry.file_name()));
            let Some(name) = entry.file_name().to_str().map(str::to_owned) else {
                self.left_out.push(relative);
                continue;
            };
            if name.starts_with('.') {
                continue;
            }
            let kind = entry.file_type().map_err(CheckpointError::read(&path))?;
            let is_used = depth == 0 && self.shards.iter().any(|shard| shard.name == name);
            let is_index = depth == 0 && self.index.as_ref().is_some_and(|(index, _)| *index == name);
            if is_used || is_index {
                continue;
            }
            if kind.is_dir() {
                if depth + 1 < DEEPEST && name != RESIDUE_DIRECTORY {
                    self.gather(&path, &relative, depth + 1)?;
                }
            } else if holds_weights(&name) {
                self.left_out.push(relative);
            } else if kind.is_file() || (kind.is_symlink() && admit(&self.directory, &path)?.is_file()) {
                self.companions.push(relative);
            } else {
                return Err(refuse(
                    &path,
                    "this is no plain file; a checkpoint is made of plain files: remove it",
                ));
            }
        }
        Ok(())
    }
}

/// Where a merged checkpoint keeps what takes the merge back.
pub(super) const RESIDUE_DIRECTORY: &str = "residue";

pub(super) fn refuse(path: &Path, problem: impl Into<String>) -> CheckpointError {
    CheckpointError::Base { path: path.to_owned(), problem: problem.into() }
}

fn holds_weights(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    OTHER_WEIGHTS.iter().any(|ending| name.strip_suffix(ending).is_some_and(|stem| stem.ends_with('.')))
}

/// Where a path really leads. A symbolic link must stay within the directory, or lead to the blobs of the cache of
/// downloaded models that the directory is a snapshot of.
pub(super) fn admit(directory: &Path, path: &Path) -> Result<PathBuf, CheckpointError> {
    let target = path.canonicalize().map_err(CheckpointError::read(path))?;
    let blobs = directory
        .parent()
        .filter(|snapshots| snapshots.file_name().is_some_and(|name| name == "snapshots"))
        .and_then(Path::parent)
        .map(|repository| repository.join("blobs"));
    if target.starts_with(directory) || blobs.is_some_and(|blobs| target.starts_with(blobs)) {
        return Ok(target);
    }
    Err(refuse(
        path,
        format!(
            "this is a symbolic link out of the directory, to {}; copy the file, or name the directory that it lies in",
            target.display()
        ),
    ))
}

fn file_names(directory: &Path) -> Result<Vec<String>, CheckpointError> {
    let entries = fs::read_dir(directory).map_err(CheckpointError::read(directory))?;
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(CheckpointError::read(directory))?;
        names.extend(entry.file_name().to_str().map(str::to_owned));
    }
    names.sort();
    Ok(names)
}

/// Reads a file that holds text.
pub(super) fn read_small(directory: &Path, name: &str) -> Result<Vec<u8>, CheckpointError> {
    let path = admit(directory, &directory.join(name))?;
    let (file, length) = open_plain(&path, false).map_err(|problem| refuse(&path, problem.to_string()))?;
    if length > LONGEST_JSON {
        return Err(refuse(&path, format!("it has {length} bytes; at most {LONGEST_JSON} are read")));
    }
    let mut text = Vec::new();
    file.take(LONGEST_JSON).read_to_end(&mut text).map_err(CheckpointError::read(&path))?;
    Ok(text)
}

fn open_shard(directory: &Path, name: &str) -> Result<(Shard, Source), CheckpointError> {
    let named = directory.join(name);
    if fs::symlink_metadata(&named).is_err() {
        return Err(refuse(&named, "the index names this shard, but it is not there; fetch it again"));
    }
    let path = admit(directory, &named)?;
    let opened = safetensors::File::open(&path, &safetensors::OpenOptions::default())
        .map_err(|error| refuse(&named, error.to_string()))?;
    let file = opened.handle().try_clone().map_err(CheckpointError::read(&path))?;
    let source = Source::open(&path, file)?;
    let mut header = vec![0; opened.header().data_start() as usize];
    source.read(&mut header, 0)?;
    let shard = Shard {
        name: name.to_owned(),
        header,
        tensors: opened.header().entries().to_vec(),
        metadata: opened.header().metadata().iter().cloned().collect(),
    };
    Ok((shard, source))
}
