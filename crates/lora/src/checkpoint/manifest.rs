//! What a residue belongs to: `residue/manifest.json`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::method::MethodRecord;

/// The layout of the directory.
pub(super) const LAYOUT: u32 = 1;

/// Its name in the directory of the residue.
pub(super) const NAME: &str = "manifest.json";

/// What a residue belongs to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Manifest {
    /// The layout of the directory.
    pub(super) layout: u32,
    /// The revision of the arithmetic.
    pub(super) kernel_revision: u32,
    /// How they were made into one before, if they were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) method: Option<MethodRecord>,
    /// The adapters that were merged, in order.
    pub(super) adapters: Vec<MergedAdapter>,
    /// The merged shards.
    pub(super) shards: Vec<MergedShard>,
    /// The algorithm of their checksums.
    pub(super) checksum: String,
    /// The texts of files that the merge changed, as they were.
    pub(super) texts: BTreeMap<String, String>,
}

/// An adapter that was merged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct MergedAdapter {
    /// What the caller called it.
    pub(super) name: String,
    /// What tells it from others.
    pub(super) digest: String,
    /// What its deltas were multiplied by.
    pub(super) weight: f64,
}

/// A shard of the merged checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct MergedShard {
    /// Its name, and that of its residue.
    pub(super) name: String,
    /// Its length.
    pub(super) bytes: u64,
    /// Its checksum.
    pub(super) checksum: String,
    /// The length of the base's shard.
    pub(super) base_bytes: u64,
}
