//! The threads of a merge.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;

use infer_accel_tensor::Buffer;

use super::compute::{Computer, Scratch};
use super::control::{Control, Observer, TICK};
use super::error::CheckpointError;
use super::journal::Journal;
use super::plan::Plan;
use super::residue_file::{ResidueShard, ResidueStart, ResidueStream};
use super::staging::Staging;
use super::stream::{Assembler, BLOCK_BYTES, RING_BLOCKS, Start, stream};
use super::tally::Tally;

/// Everything that a run works on.
pub(super) struct Run<'a> {
    pub(super) plan: &'a Plan,
    pub(super) staging: &'a Staging,
    pub(super) residues: Option<&'a [ResidueShard]>,
    pub(super) threads: usize,
}

impl Run<'_> {
    /// Computes and writes whatever is not written yet.
    pub(super) fn execute(
        &self,
        journal: &mut Journal,
        start: Start,
        residue_start: ResidueStart,
        observer: &mut Observer<'_>,
    ) -> Result<(), CheckpointError> {
        if start.shard >= self.plan.shards.len() {
            return Ok(());
        }
        let residue = match self.residues {
            Some(shards) => {
                Some(ResidueStream::new(self.staging.files(), shards, start.shard, residue_start)?)
            }
            None => None,
        };
        let Some(mut memory) = Buffer::zeroed(BLOCK_BYTES * RING_BLOCKS) else {
            let problem = format!("no memory for {} bytes of buffers", BLOCK_BYTES * RING_BLOCKS);
            return Err(CheckpointError::Argument(problem));
        };
        let total = self.plan.bytes();
        let done: u64 = self.plan.shards.iter().take(start.shard).map(|shard| shard.length).sum();
        let control = Control::new(done + start.position, total);
        let next = AtomicU64::new(start.task);
        let tally = Tally::new(self.plan, residue);
        let (assembler, writer) =
            stream(&self.plan.shards, self.staging, &control, &mut memory, start, tally);
        let computer = Computer::new(self.plan);
        thread::scope(|scope| {
            let (finished, all_finished) = channel::<()>();
            for _ in 0..self.threads {
                let finished = finished.clone();
                let (computer, assembler, next, control) = (&computer, &assembler, &next, &control);
                scope.spawn(move || {
                    if let Err(error) = work(self.plan, computer, assembler, next, control) {
                        control.fail(error);
                    }
                    assembler.wake();
                    drop(finished);
                });
            }
            drop(finished);
            let writing = scope.spawn(|| {
                if let Err(error) = writer.run(journal) {
                    control.fail(error);
                }
                assembler.wake();
            });
            while let Err(RecvTimeoutError::Timeout) = all_finished.recv_timeout(TICK) {
                if observer(control.progress()).is_break() {
                    control.fail(CheckpointError::Interrupted);
                    assembler.wake();
                }
            }
            assembler.close();
            // A panic in there is raised again at the end of the scope.
            let _ = writing.join();
        });
        let progress = control.progress();
        drop(assembler);
        match control.failure() {
            Some(error) => Err(error.or_full(self.staging.root(), total.saturating_sub(progress.done))),
            None if observer(progress).is_break() => Err(CheckpointError::Interrupted),
            None => Ok(()),
        }
    }
}

/// What one worker does.
fn work(
    plan: &Plan,
    computer: &Computer<'_>,
    assembler: &Assembler<'_>,
    next: &AtomicU64,
    control: &Control,
) -> Result<(), CheckpointError> {
    let mut scratch = Scratch::default();
    while !control.is_stopped() {
        let number = next.fetch_add(1, Ordering::Relaxed);
        let Some(task) = plan.task(number) else { break };
        let (bytes, outcome) = computer.compute(&task, &mut scratch)?;
        if !assembler.deliver(number, &task, bytes, outcome)? {
            break;
        }
    }
    Ok(())
}
