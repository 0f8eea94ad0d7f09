//! The files that take a merge back: one beside each shard, in the directory `residue`.
//!
//! Each is a safetensors file with
//!
//! * `header`: everything before the data of the base's shard, byte for byte;
//! * `residue/<n>/<tensor>`: what [`Residue::to_bytes`](crate::Residue::to_bytes) gives for the block number *n* of a tensor;
//! * `whole/<tensor>`: a tensor that no arithmetic could bring back, as it was.
//!
//! The header of a file stands before sizes that are known at its end: room is left for it, and filled with blanks.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::base::{RESIDUE_DIRECTORY, Source};
use super::checksum::Checksum;
use super::error::CheckpointError;
use super::files::OutputFile;
use super::plan::{ChangedTensor, Keep, Plan};
use crate::safetensors::{EntryPlan, StoredType, header_bytes};

/// A tensor longer than this is taken for one when room is left for a header: 8 TiB.
const LONGEST_TENSOR: usize = 1 << 43;

/// Bytes that are copied at once.
const COPY_BYTES: usize = 1 << 20;

/// What is kept of a tensor, or of a block of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Kept {
    /// Its name in the file.
    pub(super) name: String,
    /// The name of its format.
    pub(super) dtype: String,
    /// Its shape.
    pub(super) shape: Vec<usize>,
    /// Its length.
    pub(super) bytes: u64,
}

/// What a file begins with.
#[derive(Debug)]
pub(super) struct ResidueShard {
    /// The file name, that of the shard.
    name: String,
    /// The base's header.
    header: Vec<u8>,
    /// Bytes that are left for the file's own header.
    room: u64,
}

/// Writes the residues of one shard after the other.
pub(super) struct ResidueStream<'a> {
    directory: PathBuf,
    shards: &'a [ResidueShard],
    shard: usize,
    position: u64,
    checksum: Checksum,
    entries: Vec<Kept>,
    file: Option<OutputFile>,
}

/// Where a stream of residues begins, if not at the first byte.
#[derive(Default)]
pub(super) struct ResidueStart {
    /// Bytes of the current file that are written, its room included; 0 where it was not begun.
    pub(super) written: u64,
    /// The checksum of what lies behind the room.
    pub(super) checksum: Checksum,
    /// What lies there.
    pub(super) entries: Vec<Kept>,
}

impl ResidueShard {
    /// Leaves room for whatever the tensors of a shard may leave behind.
    pub(super) fn new(plan: &Plan, shard: usize, name: &str, header: &[u8]) -> Option<Self> {
        let mut entries = vec![header_entry(header)];
        for segment in plan.segments().iter().filter(|segment| segment.shard == shard) {
            let Some(tensor) = segment.tensor.and_then(|tensor| plan.tensors.get(tensor)) else { continue };
            let (name, shape) = match tensor.keep {
                Keep::Nothing => continue,
                Keep::Exceptions => (residue_name(&tensor.name, 99_999_999), vec![LONGEST_TENSOR]),
                Keep::Whole if !segment.begins_tensor => continue,
                Keep::Whole => (whole_name(&tensor.name), tensor.base.as_ref()?.entry.shape.clone()),
            };
            entries.push(EntryPlan { name, dtype: StoredType::U8, shape });
            // The names of formats differ in length.
            entries.push(EntryPlan { name: "room".to_owned(), dtype: StoredType::U8, shape: vec![0] });
        }
        let room = header_bytes(&entries, &metadata())?.len().next_multiple_of(4096) as u64;
        Some(Self { name: name.to_owned(), header: header.to_vec(), room })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn room(&self) -> u64 {
        self.room
    }
}

/// The name of the residue of a block.
pub(super) fn residue_name(tensor: &str, block: usize) -> String {
    format!("residue/{block}/{tensor}")
}

/// The name of a tensor that is kept whole.
pub(super) fn whole_name(tensor: &str) -> String {
    format!("whole/{tensor}")
}

/// The name of the base's header.
pub(super) const HEADER_NAME: &str = "header";

fn header_entry(header: &[u8]) -> EntryPlan {
    EntryPlan { name: HEADER_NAME.to_owned(), dtype: StoredType::U8, shape: vec![header.len()] }
}

fn metadata() -> BTreeMap<String, String> {
    BTreeMap::from([("format".to_owned(), "infer-accel residue".to_owned())])
}

impl<'a> ResidueStream<'a> {
    /// Begins, or goes on, with the residue of a shard.
    pub(super) fn new(
        files: &Path,
        shards: &'a [ResidueShard],
        shard: usize,
        start: ResidueStart,
    ) -> Result<Self, CheckpointError> {
        let directory = files.join(RESIDUE_DIRECTORY);
        std::fs::create_dir_all(&directory).map_err(CheckpointError::write(&directory))?;
        let mut stream = Self {
            directory,
            shards,
            shard,
            position: 0,
            checksum: start.checksum,
            entries: start.entries,
            file: None,
        };
        if start.written > 0 {
            stream.position = start.written;
            stream.file = Some(stream.create(start.written)?);
        }
        Ok(stream)
    }

    /// Appends the residue of a block of a tensor.
    pub(super) fn append(
        &mut self,
        tensor: &str,
        block: usize,
        bytes: &[u8],
    ) -> Result<Kept, CheckpointError> {
        self.open()?;
        self.write(bytes)?;
        let kept = Kept {
            name: residue_name(tensor, block),
            dtype: StoredType::U8.name().to_owned(),
            shape: vec![bytes.len()],
            bytes: bytes.len() as u64,
        };
        self.entries.push(kept.clone());
        Ok(kept)
    }

    /// Appends a whole tensor of the base.
    pub(super) fn copy(
        &mut self,
        tensor: &ChangedTensor,
        sources: &[Source],
    ) -> Result<Kept, CheckpointError> {
        self.open()?;
        let found = tensor.base.as_ref().and_then(|base| Some((base, sources.get(base.source)?)));
        let Some((base, source)) = found else {
            return Err(CheckpointError::Argument(format!("{} has no bytes in the base", tensor.name)));
        };
        let mut buffer = vec![0; COPY_BYTES];
        let mut at = base.entry.range.start;
        while at < base.entry.range.end {
            let count = (base.entry.range.end - at).min(COPY_BYTES as u64) as usize;
            let piece = buffer.get_mut(..count).unwrap_or_default();
            source.read(piece, at)?;
            self.write(piece)?;
            at += count as u64;
        }
        let kept = Kept {
            name: whole_name(&tensor.name),
            dtype: base.entry.dtype.name().to_owned(),
            shape: base.entry.shape.clone(),
            bytes: base.entry.byte_len(),
        };
        self.entries.push(kept.clone());
        Ok(kept)
    }

    /// Bytes that are written, and the checksum of those behind the room.
    pub(super) fn mark(&self) -> (u64, String) {
        (self.position, self.checksum.hex())
    }

    /// Writes the header, closes the file and turns to the next shard.
    pub(super) fn finish_shard(&mut self) -> Result<(u64, String), CheckpointError> {
        self.open()?;
        let mark = self.mark();
        let room = self.room();
        let mut plans = Vec::new();
        if let Some(shard) = self.shards.get(self.shard) {
            plans.push(header_entry(&shard.header));
        }
        for kept in self.entries.drain(..) {
            let dtype = StoredType::from_name(&kept.dtype).unwrap_or(StoredType::U8);
            plans.push(EntryPlan { name: kept.name, dtype, shape: kept.shape });
        }
        let header = header_bytes(&plans, &metadata()).and_then(|header| stretch(header, room));
        if let (Some(file), Some(header)) = (self.file.take(), header) {
            file.write_plain(&header, 0)?;
            file.finish(mark.0)?;
        } else {
            return Err(CheckpointError::Argument("the header of a residue needs more room".to_owned()));
        }
        self.shard += 1;
        self.position = 0;
        self.checksum = Checksum::default();
        Ok(mark)
    }

    fn room(&self) -> u64 {
        self.shards.get(self.shard).map_or(0, ResidueShard::room)
    }

    /// Opens the file of the current shard and writes the base's header.
    fn open(&mut self) -> Result<(), CheckpointError> {
        if self.file.is_some() {
            return Ok(());
        }
        self.file = Some(self.create(0)?);
        self.position = self.room();
        match self.shards.get(self.shard) {
            Some(shard) => self.write(&shard.header),
            None => Ok(()),
        }
    }

    fn create(&self, keep: u64) -> Result<OutputFile, CheckpointError> {
        let name = self.shards.get(self.shard).map_or("", |shard| shard.name.as_str());
        OutputFile::open(&self.directory.join(name), keep)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), CheckpointError> {
        if let Some(file) = &self.file {
            file.write_plain(bytes, self.position)?;
        }
        self.checksum.update(bytes);
        self.position += bytes.len() as u64;
        Ok(())
    }
}

/// Fills a header with blanks up to a length.
fn stretch(mut header: Vec<u8>, length: u64) -> Option<Vec<u8>> {
    let length = usize::try_from(length).ok()?;
    if header.len() > length {
        return None;
    }
    header.resize(length, b' ');
    let json = (length as u64).checked_sub(8)?;
    header.get_mut(..8)?.copy_from_slice(&json.to_le_bytes());
    Some(header)
}
