//! What a merge did, for people and programs.

use serde::{Deserialize, Serialize};

use super::plan::{Action, ChangedTensor};
use super::residue_file::Kept;
use crate::quantized::QuantizationReport;
use crate::statistics::MergeStatistics;

/// What happened to one tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TensorReport {
    /// Its name.
    pub name: String,
    /// What happened to it.
    pub action: Action,
    /// Its shape in the output.
    pub shape: Vec<usize>,
    /// Its format in the base.
    pub dtype: String,
    /// Its format in the output.
    pub output_dtype: String,
    /// Rank of all updates together.
    pub rank: usize,
    /// Elements that updates reach.
    pub elements: u64,
    /// Elements whose value is another than before.
    pub changed: u64,
    /// The Frobenius norm of what was to be added; none if it is not finite, or if nothing was added.
    pub delta_norm: Option<f64>,
    /// How much of that the output's format could take: 1 is all.
    pub survived: Option<f64>,
    /// The largest magnitude of what was to be added.
    pub largest_delta: Option<f64>,
    /// What encoding did, of a quantized tensor that updates were added to.
    #[serde(default)]
    pub quantization: Option<Quantization>,
    /// Bytes that are kept to take the merge back.
    pub residue_bytes: u64,
    /// What they are, in the file of the residue.
    pub(super) kept: Vec<Kept>,
}

impl TensorReport {
    pub(super) fn new(tensor: &ChangedTensor, statistics: MergeStatistics, kept: Vec<Kept>) -> Self {
        let is_merged = matches!(tensor.action, Action::Merged | Action::Added);
        let finite = |value: f64| (is_merged && value.is_finite()).then_some(value);
        Self {
            name: tensor.name.clone(),
            action: tensor.action,
            shape: tensor.shape.clone(),
            dtype: tensor.dtype.to_owned(),
            output_dtype: tensor.output_dtype.to_owned(),
            rank: tensor.rank,
            elements: statistics.elements,
            changed: statistics.changed,
            delta_norm: finite(statistics.norm()),
            survived: statistics.survived().and_then(finite),
            largest_delta: finite(statistics.largest_delta),
            quantization: None,
            residue_bytes: kept.iter().map(|kept| kept.bytes).sum(),
            kept,
        }
    }
}

/// What encoding did to a quantized tensor.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Quantization {
    /// The root of the mean square of the differences between what is stored and the sum before it was encoded.
    pub rms_error: f64,
    /// The largest of these differences.
    pub largest_error: f64,
    /// Elements beyond the last code, which got that one.
    pub saturated: u64,
    /// Its scales.
    pub scales: u64,
    /// Those among them that had to grow.
    pub scales_changed: u64,
}

impl From<QuantizationReport> for Quantization {
    fn from(report: QuantizationReport) -> Self {
        Self {
            rms_error: report.rms_error(),
            largest_error: report.largest_error,
            saturated: report.saturated,
            scales: report.scales,
            scales_changed: report.scales_changed,
        }
    }
}

/// A file of the output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileReport {
    /// Its path, relative to the output.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// Its checksum; [`MergeReport::checksum`] names the algorithm.
    pub checksum: String,
}

/// An adapter of a merge.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdapterReport {
    /// What the caller calls it: its path.
    pub name: String,
    /// What tells it from others.
    pub digest: String,
    /// What its deltas were multiplied by, beside its own scaling.
    pub weight: f64,
    /// Deltas that have no place in the base.
    pub unused: Vec<String>,
}

/// What the comparison with binary64 found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Verification {
    /// Elements that were read back and computed again.
    pub elements: u64,
    /// Those among them that are not the number that binary64, rounded once, gives.
    pub off: u64,
    /// Bytes of tensors that must be the base's, read back and compared.
    pub copied_bytes: u64,
}

/// The name of the plain sum of deltas.
pub(super) const SUM: &str = "sum";

/// What a merge of a checkpoint did.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MergeReport {
    /// The directory that was written.
    pub output: String,
    /// The directory that was read.
    pub base: String,
    /// The adapters, in order.
    pub adapters: Vec<AdapterReport>,
    /// How they were put together: `sum`, or the name of a [`Method`](crate::Method).
    pub method: String,
    /// The method's settings, where it has them.
    pub density: Option<f64>,
    /// The rank that was asked for.
    pub rank: Option<usize>,
    /// What names the method's random numbers.
    pub seed: Option<u64>,
    /// Every tensor that is not the base's, in the order of the output.
    pub tensors: Vec<TensorReport>,
    /// Tensors that went through byte for byte.
    pub untouched: Vec<String>,
    /// Every file of the output.
    pub files: Vec<FileReport>,
    /// The algorithm of the checksums.
    pub checksum: String,
    /// Files of the base that were left out, since they hold its weights in another form.
    pub left_out: Vec<String>,
    /// Bytes of tensors in the output.
    pub bytes: u64,
    /// Bytes of shards that an earlier, interrupted call had written.
    pub resumed_bytes: u64,
    /// Bytes that are kept to take the merge back.
    pub residue_bytes: u64,
    /// What reading back found; none if it was not asked for.
    pub verification: Option<Verification>,
    /// Threads that computed.
    pub threads: usize,
    /// Whether this tells what would be done, and nothing was written.
    pub is_dry_run: bool,
}
