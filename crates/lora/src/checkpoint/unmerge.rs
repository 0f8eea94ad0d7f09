//! Taking a merge back: the base, bit for bit.

use std::path::Path;

use infer_accel_tensor::threads;
use serde::{Deserialize, Serialize};

use super::base::{Base, RESIDUE_DIRECTORY};
use super::carry::{carry, write_text};
use super::checksum::{self, Checksum};
use super::control::{Observer, Progress};
use super::error::CheckpointError;
use super::journal::Record;
use super::manifest::{LAYOUT, Manifest, NAME};
use super::method::{MethodRecord, combined};
use super::plan::Plan;
use super::prepare::AdapterInput;
use super::report::FileReport;
use super::restore::plan;
use super::session::{OutputWork, Written};
use super::staging::Place;
use crate::Error;
use crate::residue::KERNEL_REVISION;

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

pub(super) fn refuse(path: &Path, problem: impl Into<String>) -> CheckpointError {
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
