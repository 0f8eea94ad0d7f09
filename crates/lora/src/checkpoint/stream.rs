//! From results that arrive out of order to files that are written in order.
//!
//! Workers deliver results; whoever's turn it is copies its bytes into the current block, which goes to the writing
//! thread when it is full. A few blocks go around in a ring, so that memory stays bounded, arithmetic and disk overlap,
//! and nothing is allocated once the work runs. After each block the journal gets a mark.

use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::checksum::Checksum;
use super::compute::Outcome;
use super::control::Control;
use super::error::CheckpointError;
use super::files::OutputFile;
use super::journal::{Journal, Mark, Record};
use super::plan::Task;
use super::staging::Staging;
use super::tally::Tally;

/// Bytes that are written at once, a multiple of every disk's page: large enough that a disk's own latency does not
/// show, small enough that a ring of them stays within the memory that a merge may use.
pub(super) const BLOCK_BYTES: usize = 4 << 20;

/// Blocks of the ring: one that is filled, one that is written, and two for the disk's moods.
pub(super) const RING_BLOCKS: usize = 4;

/// A shard of the output, as the stream sees it.
#[derive(Clone, Debug)]
pub(super) struct OutputShard {
    /// Its file name.
    pub(super) name: String,
    /// Its length.
    pub(super) length: u64,
}

/// Where a stream begins: 0 and 0, or where an earlier call stopped.
#[derive(Clone, Default)]
pub(super) struct Start {
    /// Number of the first shard that is not finished.
    pub(super) shard: usize,
    /// Bytes of it that are written.
    pub(super) written: u64,
    /// Their checksum.
    pub(super) checksum: Checksum,
    /// The byte of the shard that the first result begins with; at most `written`.
    pub(super) position: u64,
    /// Number of the first result.
    pub(super) task: u64,
}

/// A block on its way to the disk.
struct Block<'a> {
    bytes: &'a mut [u8],
    length: usize,
    offset: u64,
    mark: Mark,
    records: Vec<Record>,
}

/// Takes results and hands full blocks on.
pub(super) struct Assembler<'a> {
    shards: &'a [OutputShard],
    control: &'a Control,
    state: Mutex<State<'a>>,
    turn: Condvar,
}

struct State<'a> {
    next: u64,
    shard: usize,
    position: u64,
    written: u64,
    checksum: Checksum,
    block: Option<&'a mut [u8]>,
    fill: usize,
    tally: Tally<'a>,
    free: Receiver<&'a mut [u8]>,
    full: Option<Sender<Block<'a>>>,
}

/// The writing side.
pub(super) struct Writer<'a> {
    shards: &'a [OutputShard],
    staging: &'a Staging,
    control: &'a Control,
    full: Receiver<Block<'a>>,
    free: Sender<&'a mut [u8]>,
}

/// Both ends of a stream over `memory`, which is cut into blocks.
pub(super) fn stream<'a>(
    shards: &'a [OutputShard],
    staging: &'a Staging,
    control: &'a Control,
    memory: &'a mut [u8],
    start: Start,
    tally: Tally<'a>,
) -> (Assembler<'a>, Writer<'a>) {
    let (free_sender, free) = channel();
    let (full, full_receiver) = channel();
    for block in memory.chunks_exact_mut(BLOCK_BYTES) {
        // The receiver lives on in this function.
        let _ = free_sender.send(block);
    }
    let state = State {
        next: start.task,
        shard: start.shard,
        position: start.position,
        written: start.written,
        checksum: start.checksum,
        block: None,
        fill: 0,
        tally,
        free,
        full: Some(full),
    };
    (
        Assembler { shards, control, state: Mutex::new(state), turn: Condvar::new() },
        Writer { shards, staging, control, full: full_receiver, free: free_sender },
    )
}

impl<'a> Assembler<'a> {
    /// Waits for the turn of a task and takes its result. False once the work has stopped.
    pub(super) fn deliver(
        &self,
        number: u64,
        task: &Task<'_>,
        bytes: &[u8],
        outcome: Outcome,
    ) -> Result<bool, CheckpointError> {
        let mut state = self.lock();
        while state.next != number {
            if self.control.is_stopped() {
                return Ok(false);
            }
            state = self.turn.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let state = &mut *state;
        // In this order: a mark counts a tensor as told only where the shard is written beyond its end (see
        // `Plan::restart`), except at the end of the shard.
        if !state.append(bytes)? {
            return Ok(false);
        }
        state.tally.take(task, outcome)?;
        let length = self.shards.get(state.shard).map_or(0, |shard| shard.length);
        if state.position >= length && !state.send(true)? {
            return Ok(false);
        }
        state.next += 1;
        self.turn.notify_all();
        self.control.advance(bytes.len() as u64);
        Ok(true)
    }

    /// Wakes everybody who waits for a turn, after a stop.
    pub(super) fn wake(&self) {
        drop(self.lock());
        self.turn.notify_all();
    }

    /// Ends the stream: the writing thread stops when it has written what it has.
    pub(super) fn close(&self) {
        self.lock().full = None;
    }

    fn lock(&self) -> MutexGuard<'_, State<'a>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State<'_> {
    /// Appends bytes to the current shard, less what an earlier call has written already.
    fn append(&mut self, mut bytes: &[u8]) -> Result<bool, CheckpointError> {
        let known = self.written.saturating_sub(self.position).min(bytes.len() as u64);
        self.position += bytes.len() as u64;
        bytes = bytes.get(known as usize..).unwrap_or_default();
        while !bytes.is_empty() {
            if self.block.is_none() {
                let Ok(block) = self.free.recv() else { return Ok(false) };
                self.block = Some(block);
            }
            let Some(block) = self.block.as_mut() else { return Ok(false) };
            let count = bytes.len().min(block.len() - self.fill);
            let (now, later) = bytes.split_at(count);
            if let Some(target) = block.get_mut(self.fill..self.fill + count) {
                target.copy_from_slice(now);
            }
            self.checksum.update(now);
            self.fill += count;
            bytes = later;
            if self.fill == block.len() && !self.send(false)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Hands the current block on. The last of a shard may be empty: it closes the file.
    fn send(&mut self, is_last: bool) -> Result<bool, CheckpointError> {
        if self.block.is_none() {
            let Ok(block) = self.free.recv() else { return Ok(false) };
            self.block = Some(block);
        }
        let (Some(bytes), Some(full)) = (self.block.take(), self.full.as_ref()) else { return Ok(false) };
        let offset = self.written;
        self.written += self.fill as u64;
        let (residue_end, residue_checksum) = self.tally.mark(is_last)?;
        let mark = Mark {
            shard: self.shard,
            end: self.written,
            checksum: self.checksum.hex(),
            is_last,
            residue_end,
            residue_checksum,
        };
        let block = Block { bytes, length: self.fill, offset, mark, records: self.tally.records() };
        self.fill = 0;
        if is_last {
            self.shard += 1;
            self.position = 0;
            self.written = 0;
            self.checksum = Checksum::default();
        }
        Ok(full.send(block).is_ok())
    }
}

impl Writer<'_> {
    /// Writes blocks until the stream ends or the disk refuses.
    pub(super) fn run(self, journal: &mut Journal) -> Result<(), CheckpointError> {
        let mut open: Option<OutputFile> = None;
        while let Ok(block) = self.full.recv() {
            if self.control.is_stopped() {
                break;
            }
            let path = self.path_of(block.mark.shard);
            let mut file = match open.take() {
                Some(file) => file,
                None => OutputFile::open(&path, block.offset)?,
            };
            file.write_block(block.bytes, block.length, block.offset)?;
            if block.mark.is_last {
                file.finish(block.mark.end)?;
            } else {
                open = Some(file);
            }
            let mut records = block.records;
            records.push(Record::Mark(block.mark));
            journal.append(&records)?;
            // Nobody waits for a block any more once the assembler is gone.
            let _ = self.free.send(block.bytes);
        }
        Ok(())
    }

    fn path_of(&self, shard: usize) -> std::path::PathBuf {
        let name = self.shards.get(shard).map_or("", |shard| shard.name.as_str());
        self.staging.files().join(Path::new(name))
    }
}
