//! Going on where an earlier call stopped.

use std::path::Path;

use super::checksum::Checksum;
use super::error::CheckpointError;
use super::files::OutputFile;
use super::journal::{Mark, Record};
use super::plan::Plan;
use super::report::TensorReport;
use super::residue_file::{ResidueShard, ResidueStart};
use super::stream::Start;

/// Bytes that are read again at once.
const READ_BYTES: usize = 1 << 20;

/// What earlier work is worth.
#[derive(Default)]
pub(super) struct Earlier {
    /// Where to go on.
    pub(super) start: Start,
    /// Where the residue goes on.
    pub(super) residue: ResidueStart,
    /// Shards that are finished.
    pub(super) marks: Vec<Mark>,
    /// What was told about tensors that need not be written again.
    pub(super) tensors: Vec<TensorReport>,
    /// The records that stay in the journal, without the first.
    pub(super) records: Vec<Record>,
}

impl Earlier {
    /// Bytes of shards that need not be written again.
    pub(super) fn bytes(&self) -> u64 {
        self.marks.iter().map(|mark| mark.end).sum::<u64>() + self.start.written
    }
}

/// Reads what is written and keeps as much of it as has the checksums that the journal gives.
pub(super) fn examine(
    plan: &Plan,
    residues: Option<&[ResidueShard]>,
    files: &Path,
    records: &[Record],
) -> Result<Earlier, CheckpointError> {
    let mut earlier = Earlier::default();
    let mut pending: Vec<Record> = Vec::new();
    let mut partial: Option<(Mark, Vec<Record>)> = None;
    for record in records {
        match record {
            Record::Mark(mark) if mark.shard != earlier.marks.len() => break,
            Record::Mark(mark) if mark.is_last => {
                let Some(shard) = plan.shards.get(mark.shard).filter(|shard| shard.length == mark.end) else {
                    break;
                };
                let is_whole = check(&files.join(&shard.name), 0, mark.end, &mark.checksum)?.is_some()
                    && check_residue(residues, files, mark)?.is_some();
                if !is_whole {
                    partial = None;
                    break;
                }
                earlier.records.append(&mut pending);
                earlier.records.push(record.clone());
                earlier.marks.push(mark.clone());
                partial = None;
            }
            Record::Mark(mark) => {
                pending.push(record.clone());
                partial = Some((mark.clone(), pending.clone()));
            }
            Record::Tensor(_) => pending.push(record.clone()),
            Record::Work(_) | Record::Complete(_) => {}
        }
    }
    earlier.start = beginning(plan, earlier.marks.len());
    if let Some((mark, told)) = partial {
        go_on(plan, residues, files, &mark, told, &mut earlier)?;
    }
    for record in &earlier.records {
        if let Record::Tensor(tensor) = record {
            earlier.tensors.push(TensorReport::clone(tensor));
        }
    }
    Ok(earlier)
}

/// The beginning of a shard.
fn beginning(plan: &Plan, shard: usize) -> Start {
    let (task, position) = plan.restart(shard, 0);
    Start { shard, position, task, ..Start::default() }
}

/// Goes on within a shard, if what is written of it is what the journal says.
fn go_on(
    plan: &Plan,
    residues: Option<&[ResidueShard]>,
    files: &Path,
    mark: &Mark,
    told: Vec<Record>,
    earlier: &mut Earlier,
) -> Result<(), CheckpointError> {
    let Some(shard) = plan.shards.get(mark.shard).filter(|shard| mark.end <= shard.length) else {
        return Ok(());
    };
    let Some(checksum) = check(&files.join(&shard.name), 0, mark.end, &mark.checksum)? else { return Ok(()) };
    let Some(residue) = check_residue(residues, files, mark)? else { return Ok(()) };
    let (task, position) = plan.restart(mark.shard, mark.end);
    earlier.start = Start { shard: mark.shard, written: mark.end, checksum, position, task };
    earlier.residue = ResidueStart { written: mark.residue_end, checksum: residue, entries: Vec::new() };
    for record in &told {
        if let Record::Tensor(tensor) = record {
            earlier.residue.entries.extend(tensor.kept.iter().cloned());
        }
    }
    earlier.records.extend(told);
    Ok(())
}

/// The checksum of a residue behind its room, if it is the right one. Where there are no residues, or none yet, of
/// nothing.
fn check_residue(
    residues: Option<&[ResidueShard]>,
    files: &Path,
    mark: &Mark,
) -> Result<Option<Checksum>, CheckpointError> {
    let shard = residues.and_then(|shards| shards.get(mark.shard));
    match shard {
        Some(shard) if mark.residue_end > 0 => {
            let path = files.join(super::base::RESIDUE_DIRECTORY).join(shard.name());
            check(&path, shard.room(), mark.residue_end, &mark.residue_checksum)
        }
        _ => Ok(Some(Checksum::default())),
    }
}

/// The checksum of some bytes of a file, if it is the right one.
fn check(path: &Path, from: u64, end: u64, expected: &str) -> Result<Option<Checksum>, CheckpointError> {
    if !std::fs::symlink_metadata(path).is_ok_and(|found| found.is_file() && found.len() >= end) {
        return Ok(None);
    }
    let mut checksum = Checksum::default();
    let file = OutputFile::reopen(path)?;
    let mut buffer = vec![0; READ_BYTES];
    let mut at = from;
    while at < end {
        let count = (end - at).min(READ_BYTES as u64) as usize;
        let piece = buffer.get_mut(..count).unwrap_or_default();
        file.read_at(piece, at)?;
        checksum.update(piece);
        at += count as u64;
    }
    Ok((checksum.hex() == expected).then_some(checksum))
}
