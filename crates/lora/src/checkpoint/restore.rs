//! Planning the shards of a base that comes back: which bytes are the merged ones, which were kept, which are computed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use infer_accel_tensor::DType;

use super::base::{Base, Source};
use super::blocks::{Piece, blocks, pieces};
use super::error::CheckpointError;
use super::manifest::{Manifest, MergedShard};
use super::plan::{Action, ChangedTensor, Keep, Part, Plan, Work};
use super::prepare::{AdapterInput, Deltas, gather};
use super::residue_file::{HEADER_NAME, residue_name, whole_name};
use super::stream::OutputShard;
use super::texts::{CONFIG, index_of};
use super::undo::UndoWork;
use super::unmerge::refuse;
use crate::safetensors::{self, Header, Limits, TensorEntry};
use crate::{AdapterDigest, Error};

/// Names of tensors by how they come back.
#[derive(Default)]
pub(super) struct Tensors {
    pub(super) undone: Vec<String>,
    pub(super) restored: Vec<String>,
}

/// The residue of one shard, open.
struct ResidueFile {
    path: PathBuf,
    header: Header,
    /// Its number among the sources.
    source: usize,
    /// The base's header, and the tensors that it describes.
    base_header: Vec<u8>,
    base: Vec<TensorEntry>,
}

fn open_residue(
    directory: &Path,
    shard: &MergedShard,
    sources: &mut Vec<Source>,
) -> Result<ResidueFile, CheckpointError> {
    let path = directory.join(&shard.name);
    let file = safetensors::File::open(&path, &safetensors::OpenOptions::default())
        .map_err(|error| refuse(&path, error.to_string()))?;
    let handle = file.handle().try_clone().map_err(CheckpointError::read(&path))?;
    let source = Source::open(&path, handle)?;
    let header = file.header().clone();
    let Some(entry) = header.get(HEADER_NAME) else {
        return Err(refuse(&path, "it holds no header of the base; it is no residue"));
    };
    let mut base_header = vec![0; entry.byte_len() as usize];
    source.read(&mut base_header, entry.range.start)?;
    let json = base_header.get(8..).unwrap_or_default();
    let base = Header::parse(json, shard.base_bytes, &Limits::CHECKPOINT)
        .map_err(|problem| refuse(&path, problem.to_string()))?
        .entries()
        .to_vec();
    sources.push(source);
    Ok(ResidueFile { path, header, source: sources.len() - 1, base_header, base })
}

/// Plans the shards of the base.
pub(super) fn plan(
    merged: &mut Base,
    manifest: &Manifest,
    residue: &Path,
    adapters: &[AdapterInput<'_>],
) -> Result<(Plan, Tensors), CheckpointError> {
    let mut plan = Plan::of(std::mem::take(&mut merged.sources));
    let residues = manifest
        .shards
        .iter()
        .map(|shard| open_residue(residue, shard, &mut plan.sources))
        .collect::<Result<Vec<_>, _>>()?;
    let config = match manifest.texts.get(CONFIG) {
        Some(text) => Some(text.clone().into_bytes()),
        None => merged.text_of(CONFIG)?,
    };
    let index = index_of(residues.iter().flat_map(|residue| &residue.base), config.as_deref());
    // What had no place in the merge has none now: it was allowed then.
    let (deltas, _) = gather(&index, adapters, true)?;
    let mut tensors = Tensors::default();
    for (number, (residue, shard)) in residues.iter().zip(&merged.shards).enumerate() {
        plan.shards.push(OutputShard { name: shard.name.clone(), length: 0 });
        let header = Arc::from(residue.base_header.as_slice());
        plan.push(residue.base_header.len() as u64, None, Work::Bytes(header));
        let found: BTreeMap<&str, &TensorEntry> =
            shard.tensors.iter().map(|entry| (entry.name.as_str(), entry)).collect();
        for entry in &residue.base {
            let merged = found.get(entry.name.as_str()).copied();
            let restoration = Restoration { residue, entry, merged, source: number };
            restoration.plan(&mut plan, &deltas, &mut tensors)?;
        }
    }
    Ok((plan, tensors))
}

/// A tensor of the base that comes back.
struct Restoration<'a> {
    residue: &'a ResidueFile,
    entry: &'a TensorEntry,
    merged: Option<&'a TensorEntry>,
    source: usize,
}

impl Restoration<'_> {
    fn plan(&self, plan: &mut Plan, deltas: &Deltas, tensors: &mut Tensors) -> Result<(), CheckpointError> {
        let entry = self.entry;
        if entry.byte_len() == 0 {
            return Ok(());
        }
        if let Some(whole) = self.residue.header.get(&whole_name(&entry.name)) {
            if (whole.dtype, &whole.shape) != (entry.dtype, &entry.shape) {
                return Err(self.contradiction("another format or shape than the base's header says"));
            }
            tensors.restored.push(entry.name.clone());
            let from = whole.range.start;
            plan.push(entry.byte_len(), None, Work::Copy { source: self.residue.source, from });
            return Ok(());
        }
        let Some(merged) = self.merged else {
            return Err(self.contradiction("no tensor in the merged shard"));
        };
        if self.residue.header.get(&residue_name(&entry.name, 0)).is_none() {
            if (merged.dtype, &merged.shape) != (entry.dtype, &entry.shape) {
                return Err(self.contradiction("no residue, although its format or shape differs"));
            }
            plan.push(entry.byte_len(), None, Work::Copy { source: self.source, from: merged.range.start });
            return Ok(());
        }
        let (Some(base), Some(from)) = (entry.dtype.dtype(), merged.dtype.dtype()) else {
            return Err(self.contradiction("a format without arithmetic"));
        };
        tensors.undone.push(entry.name.clone());
        self.undo(plan, deltas, (from, base), merged)
    }

    fn undo(
        &self,
        plan: &mut Plan,
        deltas: &Deltas,
        (from, base): (DType, DType),
        merged: &TensorEntry,
    ) -> Result<(), CheckpointError> {
        let entry = self.entry;
        let updates = deltas.updates.get(&entry.name).map_or(&[][..], Vec::as_slice);
        let elements = (entry.byte_len() / base.size() as u64) as usize;
        let tensor = plan.tensors.len();
        plan.tensors.push(ChangedTensor {
            name: entry.name.clone(),
            shape: entry.shape.clone(),
            dtype: merged.dtype.name(),
            output_dtype: entry.dtype.name(),
            action: Action::Restored,
            rank: 0,
            keep: Keep::Nothing,
            base: None,
        });
        let first = plan.segments().len();
        let mut number = 0;
        for piece in pieces(blocks(entry, updates)?, elements, base == from) {
            let start = merged.range.start + (piece.first() * from.size()) as u64;
            let length = (piece.elements() * base.size()) as u64;
            let work = match piece {
                Piece::Same { .. } => Work::Copy { source: self.source, from: start },
                Piece::Block(block) => {
                    let name = residue_name(&entry.name, number);
                    number += 1;
                    let Some(kept) = self.residue.header.get(&name) else {
                        return Err(self.contradiction("no residue for one of its blocks"));
                    };
                    let undo = UndoWork {
                        source: self.residue.source,
                        range: kept.range.clone(),
                        adapter: self.digest(&block.parts)?,
                        name: entry.name.clone(),
                    };
                    Work::Rows(Box::new(block.work(self.source, start, (from, base), Some(undo))?))
                }
            };
            plan.push(length, Some(tensor), work);
        }
        plan.enclose(first);
        Ok(())
    }

    fn digest(&self, parts: &[Part]) -> Result<AdapterDigest, CheckpointError> {
        let deltas = parts.iter().map(Part::whole).collect::<Result<Vec<_>, _>>();
        deltas.map_err(Error::from).and_then(|deltas| AdapterDigest::of(&deltas)).map_err(|error| {
            CheckpointError::Tensor { name: self.entry.name.clone(), source: Box::new(error) }
        })
    }

    fn contradiction(&self, what: &str) -> CheckpointError {
        refuse(
            &self.residue.path,
            format!("{}: {what}; this residue belongs to another merge", self.entry.name),
        )
    }
}
