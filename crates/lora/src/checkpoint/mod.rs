//! Merging adapters into a whole checkpoint on the disk, and taking the merge back.
//!
//! [`merge_checkpoint`] reads a safetensors checkpoint piece by piece, adds the deltas, and writes another one, in memory
//! that does not depend on the size of the model. The output appears under its name when it is whole and flushed;
//! before that it lies in a directory beside, from which a later call goes on if this one is killed.
//! [`unmerge_checkpoint`] gives the base back, bit for bit, from a merged checkpoint that kept its residue.

mod base;
mod blocks;
mod carry;
mod checksum;
mod codes;
mod compute;
mod control;
mod error;
mod files;
mod index;
mod journal;
mod manifest;
mod merge;
mod method;
mod plan;
mod prepare;
mod quantized;
mod report;
mod residue_file;
mod restore;
mod resume;
mod run;
mod session;
mod staging;
mod stream;
mod tally;
mod texts;
mod undo;
mod unmerge;
mod verify;
mod verify_codes;

pub use control::{Observer, Progress};
pub use error::CheckpointError;
pub use merge::{MergeOptions, merge_checkpoint};
pub use plan::Action;
pub use prepare::AdapterInput;
pub use report::{AdapterReport, FileReport, MergeReport, Quantization, TensorReport, Verification};
pub use unmerge::{UnmergeOptions, UnmergeReport, unmerge_checkpoint};
