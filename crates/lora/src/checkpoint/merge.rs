//! Merging adapters into a checkpoint.

use std::collections::BTreeMap;
use std::path::Path;

use infer_accel_tensor::{DType, threads};

use super::base::{Base, RESIDUE_DIRECTORY, Source};
use super::carry::{carry, slashed, write_text};
use super::checksum;
use super::control::Observer;
use super::error::CheckpointError;
use super::journal::{Mark, Record};
use super::manifest::{LAYOUT, Manifest, MergedAdapter, MergedShard, NAME};
use super::method::{MethodRecord, combined, reports_of};
use super::prepare::{AdapterInput, Prepared, Wish, prepare};
use super::report::{FileReport, MergeReport, SUM, TensorReport};
use super::residue_file::ResidueShard;
use super::session::OutputWork;
use super::staging::{Place, Staging};
use super::verify::verify;
use crate::Method;
use crate::residue::KERNEL_REVISION;

/// How a merge runs.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is an option of its own, off or on")]
pub struct MergeOptions {
    /// How several adapters are put together: `None` adds up their deltas, anything else makes one adapter out of them, as
    /// [`combine`](crate::combine()) does, and merges that.
    pub method: Option<Method>,
    /// The format that all tensors of float32, float16 and bfloat16 get; `None` leaves each its own.
    pub dtype: Option<DType>,
    /// Whether to keep what [`unmerge_checkpoint`](super::unmerge_checkpoint) needs, in `residue` below the output.
    pub residue: bool,
    /// Whether to read a sample back and compute it again in binary64.
    pub verify: bool,
    /// Whether to go on with what an earlier call has left; otherwise that is discarded.
    pub resume: bool,
    /// Whether deltas that have no place in the base are reported instead of refused.
    pub allow_unused: bool,
    /// Whether to check and plan only, and to write nothing.
    pub dry_run: bool,
    /// The most threads that compute; `None` is the default. The output does not depend on it.
    pub num_threads: Option<usize>,
}

impl Default for MergeOptions {
    fn default() -> Self {
        Self {
            method: None,
            dtype: None,
            residue: false,
            verify: true,
            resume: true,
            allow_unused: false,
            dry_run: false,
            num_threads: None,
        }
    }
}

/// Adds the deltas of some adapters to a safetensors checkpoint and writes another one.
///
/// * `base`: the directory of the checkpoint: shards with an index, or one file. Only read.
/// * `adapters`: at least one. What is added to a tensor is the sum of their deltas, each times its weight, in
///   their order; see [`merge_slab`](crate::merge_slab) for the arithmetic: one rounding, whatever their number.
/// * `output`: the directory that is made: absent or empty before, and neither inside `base` nor around it. It
///   appears when it is whole and flushed to the disk.
/// * `adapter_paths`: where the adapters were read from, so that the output cannot lie there.
/// * `observer` is told how far the work is, and may stop it.
///
/// Tensors that nothing is added to go through byte for byte, and so do the index, the configuration and the
/// tokenizer, except for what the merge makes untrue (the format, a head that is no longer the embedding). Files with
/// the weights in another form are left out.
///
/// # Cost
///
/// Memory: buffers of some 20 MB, two more for each thread, and the adapters; whatever the size of the model. With a method
/// the combined adapter in float32 comes to that, and while it is made about as much again for each thread's module.
///
/// # Errors
///
/// [`CheckpointError`]. The output is then absent (or empty, as it was); what is finished lies beside it, and the next
/// call with the same arguments goes on from there.
pub fn merge_checkpoint(
    base: &Path,
    adapters: &[AdapterInput<'_>],
    output: &Path,
    adapter_paths: &[&Path],
    options: &MergeOptions,
    observer: &mut Observer<'_>,
) -> Result<MergeReport, CheckpointError> {
    if adapters.is_empty() {
        return Err(CheckpointError::Argument("no adapters came; name at least one".to_owned()));
    }
    if let Some(dtype @ (DType::F64 | DType::F8E4M3 | DType::F8E5M2)) =
        options.dtype.filter(|dtype| !matches!(dtype, DType::F32 | DType::F16 | DType::BF16))
    {
        let problem = format!("dtype={dtype} came; allowed: float32, float16, bfloat16");
        return Err(CheckpointError::Argument(problem));
    }
    let threads = threads::resolve(options.num_threads).map_err(|error| CheckpointError::Tensor {
        name: "num_threads".to_owned(),
        source: Box::new(error.into()),
    })?;
    let mut sources = vec![base];
    sources.extend(adapter_paths);
    let place = Place::check(output, &sources)?;
    let mut base = Base::open(base)?;
    let identity = identity(&base, adapters, options);
    let one = match &options.method {
        Some(method) => Some(combined(adapters, method, threads, observer)?),
        None => None,
    };
    let single =
        one.as_ref().map(|adapter| [AdapterInput { name: "the combined adapter", adapter, weight: 1.0 }]);
    let merged = single.as_ref().map_or(adapters, |single| &single[..]);
    let wish = Wish { dtype: options.dtype, residue: options.residue, allow_unused: options.allow_unused };
    let mut prepared = prepare(&mut base, merged, wish)?;
    if single.is_some() {
        prepared.adapters = reports_of(adapters, &prepared.adapters);
    }
    let job = Job { base: &base, prepared: &prepared, options, threads };
    if options.dry_run {
        place.require_vacant()?;
        return Ok(MergeReport {
            is_dry_run: true,
            tensors: planned(&prepared),
            ..job.report(place.output())
        });
    }
    let residues = job.residues()?;
    let work = OutputWork {
        place: &place,
        identity,
        plan: &prepared.plan,
        residues: residues.as_deref(),
        threads,
        resume: options.resume,
    };
    work.carry_out(observer, |written, observer| {
        let mut report = MergeReport { resumed_bytes: written.resumed_bytes, ..job.report(place.output()) };
        job.finish(written.staging, &written.records, &mut report)?;
        if options.verify {
            report.verification = Some(verify(&prepared.plan, written.staging.files(), observer)?);
        }
        Ok(report)
    })
}

/// What tells this work from other work.
fn identity(base: &Base, adapters: &[AdapterInput<'_>], options: &MergeOptions) -> serde_json::Value {
    let adapters: Vec<_> = adapters
        .iter()
        .map(|input| {
            serde_json::json!([input.adapter.digest().to_string(), input.weight.to_bits().to_string()])
        })
        .collect();
    let mut identity = serde_json::json!({
        "work": "merge",
        "layout": LAYOUT,
        "kernel revision": KERNEL_REVISION,
        "base": base.identity(),
        "adapters and weights": adapters,
        "dtype": options.dtype.map(DType::name),
        "residue": options.residue,
        "allow_unused": options.allow_unused,
    });
    if let Some(method) = &options.method {
        identity["method"] = serde_json::to_value(MethodRecord::of(method)).unwrap_or_default();
    }
    identity
}

/// What a dry run tells about tensors.
fn planned(prepared: &Prepared) -> Vec<TensorReport> {
    let tensors = prepared.plan.tensors.iter();
    tensors.map(|tensor| TensorReport::new(tensor, crate::MergeStatistics::default(), Vec::new())).collect()
}

struct Job<'a> {
    base: &'a Base,
    prepared: &'a Prepared,
    options: &'a MergeOptions,
    threads: usize,
}

impl Job<'_> {
    /// A report of what is known before anything is written.
    fn report(&self, output: &Path) -> MergeReport {
        let settings = self.options.method.as_ref().map(Method::settings).unwrap_or_default();
        MergeReport {
            method: self.options.method.as_ref().map_or(SUM, Method::name).to_owned(),
            density: settings.density,
            rank: settings.rank,
            seed: settings.seed,
            output: output.display().to_string(),
            base: self.base.directory.display().to_string(),
            adapters: self.prepared.adapters.clone(),
            untouched: self.prepared.untouched.clone(),
            checksum: checksum::ALGORITHM.to_owned(),
            left_out: self.base.left_out.iter().map(|path| slashed(path)).collect(),
            bytes: self.prepared.plan.bytes(),
            threads: self.threads,
            ..MergeReport::default()
        }
    }

    /// The files that residues go to.
    fn residues(&self) -> Result<Option<Vec<ResidueShard>>, CheckpointError> {
        if !self.options.residue {
            return Ok(None);
        }
        let plan = &self.prepared.plan;
        let shards = plan.shards.iter().zip(&self.prepared.headers).enumerate();
        let residues: Option<Vec<_>> = shards
            .map(|(number, (shard, header))| ResidueShard::new(plan, number, &shard.name, header))
            .collect();
        residues.map(Some).ok_or_else(|| {
            CheckpointError::Argument("the header of a residue would be larger than any file".to_owned())
        })
    }

    /// Writes the small files and fills in the report.
    fn finish(
        &self,
        staging: &Staging,
        records: &[Record],
        report: &mut MergeReport,
    ) -> Result<(), CheckpointError> {
        let files = staging.files();
        let small = |error: CheckpointError| error.or_full(staging.root(), 0);
        let mut shards = Vec::new();
        for record in records {
            match record {
                Record::Tensor(tensor) => report.tensors.push(TensorReport::clone(tensor)),
                Record::Mark(mark) if mark.is_last => shards.push(self.merged(mark)),
                _ => {}
            }
        }
        report.residue_bytes = report.tensors.iter().map(|tensor| tensor.residue_bytes).sum();
        for shard in &shards {
            let MergedShard { name, bytes, checksum, .. } = shard.clone();
            report.files.push(FileReport { name, bytes, checksum });
        }
        if let Some((name, text)) = &self.prepared.index {
            report.files.push(write_text(files, Path::new(name), text).map_err(small)?);
        }
        for relative in &self.base.companions {
            let changed = relative.to_str().and_then(|name| self.prepared.texts.get(name));
            let file = match changed {
                Some((_, text)) => write_text(files, relative, text),
                None => carry(self.base, relative, files),
            };
            report.files.push(file.map_err(small)?);
        }
        if self.options.residue {
            let path = Path::new(RESIDUE_DIRECTORY).join(NAME);
            let text = serde_json::to_vec_pretty(&self.manifest(shards)).unwrap_or_default();
            report.files.push(write_text(files, &path, &text).map_err(small)?);
        }
        Ok(())
    }

    fn merged(&self, mark: &Mark) -> MergedShard {
        let name = self.prepared.plan.shards.get(mark.shard).map_or("", |shard| shard.name.as_str());
        let base_bytes = self.prepared.plan.sources.get(mark.shard).map_or(0, Source::length);
        MergedShard { name: name.to_owned(), bytes: mark.end, checksum: mark.checksum.clone(), base_bytes }
    }

    fn manifest(&self, shards: Vec<MergedShard>) -> Manifest {
        let adapters = self.prepared.adapters.iter().map(|adapter| MergedAdapter {
            name: adapter.name.clone(),
            digest: adapter.digest.clone(),
            weight: adapter.weight,
        });
        let mut texts: BTreeMap<String, String> = BTreeMap::new();
        let before = self.prepared.texts.iter().map(|(name, (before, _))| (name, before));
        let index = self.base.index.as_ref().map(|(name, text)| (name, text));
        for (name, text) in before.chain(index) {
            texts.insert(name.clone(), String::from_utf8_lossy(text).into_owned());
        }
        Manifest {
            layout: LAYOUT,
            kernel_revision: KERNEL_REVISION,
            method: self.options.method.as_ref().map(MethodRecord::of),
            adapters: adapters.collect(),
            shards,
            checksum: checksum::ALGORITHM.to_owned(),
            texts,
        }
    }
}
