//! Taking a merge back: the base, bit for bit.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use infer_accel_tensor::{DType, threads};
use serde::{Deserialize, Serialize};

use super::base::{Base, RESIDUE_DIRECTORY, Source};
use super::blocks::{Piece, blocks, pieces};
use super::carry::{carry, write_text};
use super::checksum::{self, Checksum};
use super::control::{Observer, Progress};
use super::error::CheckpointError;
use super::journal::Record;
use super::manifest::{LAYOUT, Manifest, MergedShard, NAME};
use super::method::{MethodRecord, combined};
use super::plan::{Action, ChangedTensor, Keep, Part, Plan, Work};
use super::prepare::{AdapterInput, Deltas, gather};
use super::report::FileReport;
use super::residue_file::{HEADER_NAME, residue_name, whole_name};
use super::session::{OutputWork, Written};
use super::staging::Place;
use super::stream::OutputShard;
use super::texts::{CONFIG, index_of};
use super::undo::UndoWork;
use crate::residue::KERNEL_REVISION;
use crate::safetensors::{self, Header, Limits, TensorEntry};
use crate::{AdapterDigest, Error};

/// Bytes that are read at once where only a checksum is wanted.
const READ_BYTES: usize = 1 << 20;

/// How an unmerge runs.
#[derive(Clone, Copy, Debug)]
pub struct UnmergeOptions {
    /// Whether to go on with what an earlier call has left; otherwise that is discarded.
    pub resume: bool,
    /// The most threads that compute; `None` is the default.
    pub num_threads: Option<usize>,
}

impl Default for UnmergeOptions {
    fn default() -> Self {
        Self { resume: true, num_threads: None }
    }
}

/// What taking a merge back did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnmergeReport {
    /// The directory that was written.
    pub output: String,
    /// The directory that was read.
    pub merged: String,
    /// Tensors that were brought back by arithmetic and exceptions.
    pub undone: Vec<String>,
    /// Tensors that had been kept whole.
    pub restored: Vec<String>,
    /// Every file of the output.
    pub files: Vec<FileReport>,
    /// The algorithm of the checksums.
    pub checksum: String,
    /// Bytes of the output's shards.
    pub bytes: u64,
    /// Bytes of them that an earlier, interrupted call had written.
    pub resumed_bytes: u64,
}

/// Gives back the base of a merged checkpoint that kept its residue: every shard byte for byte as it was.
///
/// * `merged`: the directory that [`merge_checkpoint`](super::merge_checkpoint) wrote. Only read.
/// * `residue`: where its residue lies, if not in `residue` below it.
/// * `adapters`: those of the merge, in its order; their weights are taken from the residue.
/// * `output`: as for a merge.
///
/// # Errors
///
/// [`CheckpointError`]: what a merge refuses; other adapters than those of the merge; merged shards that were changed
/// since; a residue that is damaged, or of another revision of the arithmetic.
pub fn unmerge_checkpoint(
    merged: &Path,
    residue: Option<&Path>,
    adapters: &[AdapterInput<'_>],
    output: &Path,
    adapter_paths: &[&Path],
    options: &UnmergeOptions,
    observer: &mut Observer<'_>,
) -> Result<UnmergeReport, CheckpointError> {
    let threads = threads::resolve(options.num_threads).map_err(|error| CheckpointError::Tensor {
        name: "num_threads".to_owned(),
        source: Box::new(error.into()),
    })?;
    let residue = residue.map_or_else(|| merged.join(RESIDUE_DIRECTORY), Path::to_owned);
    // Where there is none, reading its manifest says so.
    let residue = residue.canonicalize().unwrap_or(residue);
    let mut sources = vec![merged, residue.as_path()];
    sources.extend(adapter_paths);
    let place = Place::check(output, &sources)?;
    let mut base = Base::open(merged)?;
    let manifest = read_manifest(&residue)?;
    let adapters = fit_adapters(&manifest, adapters)?;
    require_merged(&base, &manifest, observer)?;
    let one = match manifest.method.as_ref().map(MethodRecord::method) {
        Some(Ok(method)) => Some(combined(&adapters, &method, threads, observer)?),
        Some(Err(error)) => return Err(refuse(&residue.join(NAME), error.to_string())),
        None => None,
    };
    let single =
        one.as_ref().map(|adapter| [AdapterInput { name: "the combined adapter", adapter, weight: 1.0 }]);
    let adapters = single.as_ref().map_or(&adapters[..], |single| &single[..]);
    let (plan, tensors) = plan(&mut base, &manifest, &residue, adapters)?;
    let work = OutputWork {
        place: &place,
        identity: serde_json::json!({
            "work": "unmerge",
            "layout": LAYOUT,
            "kernel revision": KERNEL_REVISION,
            "merged checkpoint": base.identity_of(&plan.sources),
            "residue": serde_json::to_value(&manifest).unwrap_or_default(),
        }),
        plan: &plan,
        residues: None,
        threads,
        resume: options.resume,
    };
    work.carry_out(observer, |written, _| {
        let mut report = UnmergeReport {
            output: place.output().display().to_string(),
            merged: base.directory.display().to_string(),
            undone: tensors.undone,
            restored: tensors.restored,
            checksum: checksum::ALGORITHM.to_owned(),
            bytes: plan.bytes(),
            resumed_bytes: written.resumed_bytes,
            ..UnmergeReport::default()
        };
        finish(&base, &plan, &manifest, written, &mut report)?;
        Ok(report)
    })
}

fn refuse(path: &Path, problem: impl Into<String>) -> CheckpointError {
    CheckpointError::Integrity { path: path.to_owned(), problem: problem.into() }
}

fn read_manifest(residue: &Path) -> Result<Manifest, CheckpointError> {
    let path = residue.join(NAME);
    let text = super::base::read_small(residue, NAME).map_err(|error| match error {
        CheckpointError::Read { path, source } if source.kind() == std::io::ErrorKind::NotFound => {
            refuse(&path, "there is no residue; only a checkpoint merged with residue=True can be taken back")
        }
        other => other,
    })?;
    let manifest: Manifest = serde_json::from_slice(&text)
        .map_err(|error| refuse(&path, format!("this is no manifest of a residue: {error}")))?;
    if manifest.layout != LAYOUT {
        let problem = format!("its layout is {}, this version reads {LAYOUT}", manifest.layout);
        return Err(refuse(&path, problem));
    }
    if manifest.kernel_revision != KERNEL_REVISION {
        let (found, expected) = (manifest.kernel_revision, KERNEL_REVISION);
        let source = Box::new(Error::ResidueRevision { found, expected });
        return Err(CheckpointError::Tensor { name: path.display().to_string(), source });
    }
    Ok(manifest)
}

/// The adapters of a merge with its weights.
fn fit_adapters<'a>(
    manifest: &Manifest,
    adapters: &[AdapterInput<'a>],
) -> Result<Vec<AdapterInput<'a>>, CheckpointError> {
    if adapters.len() != manifest.adapters.len() {
        let names: Vec<&str> = manifest.adapters.iter().map(|adapter| adapter.name.as_str()).collect();
        let problem = format!(
            "{} adapters came, but {} were merged: {names:?}; name these, in this order",
            adapters.len(),
            names.len()
        );
        return Err(CheckpointError::Argument(problem));
    }
    let mut fitting = Vec::new();
    for (input, merged) in adapters.iter().zip(&manifest.adapters) {
        let digest = input.adapter.digest().to_string();
        if digest != merged.digest {
            let problem = format!(
                "this is not the adapter that was merged in this place: its digest is {digest}, that of {} was {}",
                merged.name, merged.digest
            );
            return Err(CheckpointError::Adapter { adapter: input.name.to_owned(), problem });
        }
        fitting.push(AdapterInput { weight: merged.weight, ..*input });
    }
    Ok(fitting)
}

/// Refuses shards that are not those that the merge wrote.
fn require_merged(
    base: &Base,
    manifest: &Manifest,
    observer: &mut Observer<'_>,
) -> Result<(), CheckpointError> {
    let names: Vec<&str> = base.shards.iter().map(|shard| shard.name.as_str()).collect();
    let expected: Vec<&str> = manifest.shards.iter().map(|shard| shard.name.as_str()).collect();
    if names != expected {
        let problem = format!("its shards are {names:?}, but those of the merge were {expected:?}");
        return Err(refuse(&base.directory, problem));
    }
    let mut buffer = vec![0; READ_BYTES];
    for (source, shard) in base.sources.iter().zip(&manifest.shards) {
        let mut checksum = Checksum::default();
        let mut at = 0;
        while at < source.length() {
            let count = (source.length() - at).min(READ_BYTES as u64);
            let piece = buffer.get_mut(..count as usize).unwrap_or_default();
            source.read(piece, at)?;
            checksum.update(piece);
            at += count;
            if observer(Progress::default()).is_break() {
                return Err(CheckpointError::Interrupted);
            }
        }
        if (source.length(), checksum.hex()) != (shard.bytes, shard.checksum.clone()) {
            return Err(refuse(
                source.path(),
                "it was changed since the merge: the base cannot be brought back from it",
            ));
        }
    }
    Ok(())
}

/// Names of tensors by how they come back.
#[derive(Default)]
struct Tensors {
    undone: Vec<String>,
    restored: Vec<String>,
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
fn plan(
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

/// Writes the small files and lists all of them.
fn finish(
    base: &Base,
    plan: &Plan,
    manifest: &Manifest,
    written: &Written<'_>,
    report: &mut UnmergeReport,
) -> Result<(), CheckpointError> {
    let files = written.staging.files();
    for record in &written.records {
        if let Record::Mark(mark) = record
            && mark.is_last
        {
            let name = plan.shards.get(mark.shard).map_or("", |shard| shard.name.as_str()).to_owned();
            report.files.push(FileReport { name, bytes: mark.end, checksum: mark.checksum.clone() });
        }
    }
    if let Some((name, text)) = &base.index {
        let text = manifest.texts.get(name).map_or(text.as_slice(), String::as_bytes);
        report.files.push(write_text(files, Path::new(name), text)?);
    }
    for relative in &base.companions {
        let before = relative.to_str().and_then(|name| manifest.texts.get(name));
        report.files.push(match before {
            Some(text) => write_text(files, relative, text.as_bytes())?,
            None => carry(base, relative, files)?,
        });
    }
    Ok(())
}
