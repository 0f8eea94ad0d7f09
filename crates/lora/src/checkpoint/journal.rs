//! The journal of unfinished work: what a later call needs to go on.
//!
//! One line a record, appended: a checksum and JSON. The first says whose work it is. Nothing in here is flushed to the disk
//! before the output is complete, and need not be: each record carries the checksum of what it vouches for, and a later
//! call reads that again. So neither a killed process nor a lost machine can make it trust what is not there.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::CheckpointError;
use super::report::TensorReport;

/// No journal grows longer than this.
const LONGEST_JOURNAL: u64 = 1 << 30;

/// Characters of a line's checksum, the blank behind it included.
const CHECKSUM_DIGITS: usize = 17;

/// What is finished when a record stands in the journal.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "snake_case")]
pub(super) enum Record {
    /// Whose work it is: always the first.
    Work(serde_json::Value),
    /// What was found out about a tensor that ends before the next mark.
    Tensor(Box<TensorReport>),
    /// A shard is written up to a byte.
    Mark(Mark),
    /// Everything is written: the report. The directory takes its name next.
    Complete(String),
}

/// How far a shard and its residue are written.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq)]
pub(super) struct Mark {
    /// Number of the shard.
    pub(super) shard: usize,
    /// Bytes that are written.
    pub(super) end: u64,
    /// Their checksum.
    pub(super) checksum: String,
    /// Whether the shard ends there.
    pub(super) is_last: bool,
    /// Bytes of the shard's residue that are written.
    pub(super) residue_end: u64,
    /// Their checksum.
    pub(super) residue_checksum: String,
}

/// An open journal, locked against other processes.
pub(super) struct Journal {
    path: PathBuf,
    file: File,
}

impl Journal {
    /// Opens the journal, locks it, and returns the records that it holds. A torn last line is cut off.
    pub(super) fn open(path: PathBuf) -> Result<(Self, Vec<Record>), CheckpointError> {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        super::files::no_follow(&mut options);
        let mut file = options.open(&path).map_err(CheckpointError::write(&path))?;
        if file.try_lock().is_err() {
            return Err(CheckpointError::Busy { path: parent(&path) });
        }
        let (records, good) = parse(&mut file).map_err(CheckpointError::read(&path))?;
        let mut journal = Self { path, file };
        journal.cut(good)?;
        Ok((journal, records))
    }

    /// The records that were written so far.
    pub(super) fn read(&mut self) -> Result<Vec<Record>, CheckpointError> {
        let read = self.file.rewind().and_then(|()| parse(&mut self.file));
        let (records, end) = read.map_err(CheckpointError::read(&self.path))?;
        self.file.seek(SeekFrom::Start(end)).map_err(CheckpointError::read(&self.path))?;
        Ok(records)
    }
    /// Forgets everything and begins anew.
    pub(super) fn restart(&mut self, records: &[Record]) -> Result<(), CheckpointError> {
        self.cut(0)?;
        self.append(records)
    }

    fn cut(&mut self, length: u64) -> Result<(), CheckpointError> {
        self.file
            .set_len(length)
            .and_then(|()| self.file.seek(SeekFrom::Start(length)))
            .map(drop)
            .map_err(CheckpointError::write(&self.path))
    }

    /// Appends records by one write.
    pub(super) fn append(&mut self, records: &[Record]) -> Result<(), CheckpointError> {
        let mut text = String::new();
        for record in records {
            let line = serde_json::to_string(record)
                .map_err(|error| CheckpointError::Write { path: self.path.clone(), source: error.into() })?;
            text.push_str(&checksum(line.as_bytes()));
            text.push_str(&line);
            text.push('\n');
        }
        self.file.write_all(text.as_bytes()).map_err(CheckpointError::write(&self.path))
    }

    pub(super) fn sync(&self) -> Result<(), CheckpointError> {
        self.file.sync_all().map_err(CheckpointError::write(&self.path))
    }
}

/// The whole records of a file, and where the last of them ends.
fn parse(file: &mut File) -> io::Result<(Vec<Record>, u64)> {
    let mut text = Vec::new();
    file.take(LONGEST_JOURNAL).read_to_end(&mut text)?;
    let (mut records, mut end) = (Vec::new(), 0);
    for line in text.split_inclusive(|&byte| byte == b'\n') {
        let Some(record) = line.strip_suffix(b"\n").and_then(parse_line) else { break };
        records.push(record);
        end += line.len() as u64;
    }
    Ok((records, end))
}

/// The record of a line, if the line is as it was written.
fn parse_line(line: &[u8]) -> Option<Record> {
    let (sum, json) = line.split_at_checked(CHECKSUM_DIGITS)?;
    (sum == checksum(json).as_bytes()).then(|| serde_json::from_slice(json).ok()).flatten()
}

/// What stands before the JSON of a line.
fn checksum(json: &[u8]) -> String {
    format!("{:016x} ", xxhash_rust::xxh3::xxh3_64(json))
}

fn parent(path: &Path) -> PathBuf {
    path.parent().unwrap_or(path).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(end: u64) -> Record {
        Record::Mark(Mark { shard: 1, end, checksum: "c".to_owned(), ..Mark::default() })
    }

    #[test]
    fn what_was_torn_or_changed_is_not_believed() {
        let path = std::env::temp_dir().join(format!("infer-accel-journal-{}", std::process::id()));
        let records = [Record::Work(serde_json::json!({"a": 1})), mark(10), mark(20)];
        let (mut journal, found) = Journal::open(path.clone()).unwrap();
        assert!(found.is_empty());
        journal.append(&records).unwrap();
        assert_eq!(journal.read().unwrap(), records);
        assert!(matches!(Journal::open(path.clone()), Err(CheckpointError::Busy { .. })));
        drop(journal);
        let whole = std::fs::read(&path).unwrap();
        for (bytes, count) in [
            (whole.clone(), 3),
            (whole[..whole.len() - 1].to_vec(), 2),
            ([&whole[..], b"0123456789abcdef {}\n"].concat(), 3),
            (String::from_utf8(whole.clone()).unwrap().replace("20", "30").into_bytes(), 2),
            (b"\n".to_vec(), 0),
            (vec![0xff; 100], 0),
        ] {
            std::fs::write(&path, bytes).unwrap();
            let (mut journal, found) = Journal::open(path.clone()).unwrap();
            assert_eq!(found, records[..count]);
            // What is appended to a torn journal can be read.
            journal.append(&[mark(40)]).unwrap();
            assert_eq!(journal.read().unwrap().last(), Some(&mark(40)));
        }
        std::fs::remove_file(path).unwrap();
    }
}
