//! Making the bytes of a task: read, merge or undo, convert.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use infer_accel_tensor::{DType, TensorError, TensorMut, TensorRef};

use super::error::CheckpointError;
use super::plan::{ChangedTensor, Keep, Part, Plan, RowWork, TASK_BYTES, Task, Work};
use super::undo::{Exceptions, UndoWork};
use crate::quantized::QuantizationReport;
use crate::residue::SlabResidue;
use crate::statistics::MergeStatistics;
use crate::{Delta, Error, SlabOptions, merge_slab};

/// Memory that a worker uses again for every task.
#[derive(Default)]
pub(super) struct Scratch {
    input: Vec<u8>,
    output: Vec<u8>,
}

/// What a task found out beside its bytes.
#[derive(Default)]
pub(super) struct Outcome {
    pub(super) statistics: Option<MergeStatistics>,
    pub(super) residue: Option<SlabResidue>,
    /// What encoding did, of a quantized tensor.
    pub(super) quantization: Option<QuantizationReport>,
    /// What the task's rows add to the digest of the merged weight, and the digest that must come out.
    pub(super) undone: Option<(u64, u64)>,
}

/// Computes tasks of a plan.
pub(super) struct Computer<'a> {
    plan: &'a Plan,
    /// Exceptions of the blocks that are being undone, by the number of their first byte in the output.
    exceptions: Mutex<HashMap<(usize, u64), Arc<Exceptions>>>,
}

impl<'a> Computer<'a> {
    pub(super) fn new(plan: &'a Plan) -> Self {
        Self { plan, exceptions: Mutex::default() }
    }

    /// The bytes of a task and what was found out.
    pub(super) fn compute<'b>(
        &self,
        task: &Task<'b>,
        scratch: &'b mut Scratch,
    ) -> Result<(&'b [u8], Outcome), CheckpointError> {
        let segment = task.segment;
        let length = segment.output.end - segment.output.start;
        let piece = || {
            let first = task.index * TASK_BYTES as u64;
            first..(first + TASK_BYTES as u64).min(length)
        };
        match &segment.work {
            Work::Bytes(bytes) => {
                let piece = piece();
                let bytes = bytes.get(piece.start as usize..piece.end as usize);
                Ok((bytes.unwrap_or_default(), Outcome::default()))
            }
            Work::Copy { source, from } => {
                let piece = piece();
                let input = room(&mut scratch.input, (piece.end - piece.start) as usize);
                self.read(*source, from + piece.start, input)?;
                Ok((input, Outcome::default()))
            }
            Work::Rows(work) => {
                let tensor = segment.tensor.and_then(|tensor| self.plan.tensors.get(tensor));
                self.rows(task, work, tensor, scratch)
            }
            Work::Codes(work) => {
                let buffers = (&mut scratch.input, &mut scratch.output);
                let merged = work.merge(task.index, &self.plan.sources, buffers, true)?;
                let report = merged.report;
                let (statistics, quantization) = (Some(report.statistics), Some(report));
                Ok((merged.codes, Outcome { statistics, quantization, ..Outcome::default() }))
            }
            Work::Scales(work) => {
                let buffers = (&mut scratch.input, &mut scratch.output);
                let merged = work.merge(task.index, &self.plan.sources, buffers, false)?;
                let (elements, changed) = (merged.report.scales, merged.report.scales_changed);
                let statistics = Some(MergeStatistics { elements, changed, ..MergeStatistics::default() });
                Ok((merged.scales, Outcome { statistics, ..Outcome::default() }))
            }
            Work::Convert { tensor, to } => {
                let piece = piece();
                let size = to.size() as u64;
                let elements = (piece.start / size) as usize..(piece.end / size) as usize;
                let output = room(&mut scratch.output, (piece.end - piece.start) as usize);
                let shape = [1, elements.len()];
                let strides = [elements.len() as isize, 1];
                if tensor.dtype() == *to {
                    let bytes = tensor.bytes().get(piece.start as usize..piece.end as usize);
                    output.copy_from_slice(bytes.unwrap_or_default());
                } else {
                    let named = |error| self.named(segment.tensor, error);
                    let source = TensorRef::from_bytes(
                        tensor.bytes(),
                        tensor.dtype(),
                        elements.start,
                        &shape,
                        &strides,
                    )
                    .map_err(|error| named(error.into()))?;
                    let mut target = TensorMut::from_bytes(output, *to, 0, &shape, &strides)
                        .map_err(|error| named(error.into()))?;
                    merge_slab(&mut target, Some(&source), &[], &single_thread()).map_err(named)?;
                }
                Ok((output, Outcome::default()))
            }
        }
    }

    fn rows<'b>(
        &self,
        task: &Task<'b>,
        work: &RowWork,
        tensor: Option<&ChangedTensor>,
        scratch: &'b mut Scratch,
    ) -> Result<(&'b [u8], Outcome), CheckpointError> {
        let rows = work.rows_of(task.index);
        let row_bytes = (work.columns * work.dtype.size()) as u64;
        let input = room(&mut scratch.input, rows.len() * row_bytes as usize);
        self.read(work.source, work.from + rows.start as u64 * row_bytes, input)?;
        let is_in_place = work.dtype == work.output_dtype;
        let output_bytes = if is_in_place { 0 } else { rows.len() * work.columns * work.output_dtype.size() };
        let output = room(&mut scratch.output, output_bytes);
        let views = Views { work, rows: rows.clone() };
        let named = |error| self.named(task.segment.tensor, error);
        let outcome = match &work.undo {
            None => {
                let has_residue = tensor.is_some_and(|tensor| tensor.keep == Keep::Exceptions);
                views.merge(input, output, has_residue).map_err(named)?
            }
            Some(undo) => {
                let exceptions = self.exceptions_of(task, undo)?;
                let digest = views.undo(input, output, &exceptions).map_err(named)?;
                Outcome { undone: Some((digest, exceptions.merged_digest())), ..Outcome::default() }
            }
        };
        Ok((if is_in_place { input } else { output }, outcome))
    }

    fn read(&self, source: usize, offset: u64, buffer: &mut [u8]) -> Result<(), CheckpointError> {
        match self.plan.sources.get(source) {
            Some(source) => source.read(buffer, offset),
            None => Err(CheckpointError::Argument(format!("the plan has no source {source}"))),
        }
    }

    fn exceptions_of(&self, task: &Task<'_>, undo: &UndoWork) -> Result<Arc<Exceptions>, CheckpointError> {
        let key = (task.segment.shard, task.segment.output.start);
        let mut known = self.exceptions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = known.get(&key) {
            return Ok(Arc::clone(found));
        }
        let found = Arc::new(undo.load(&self.plan.sources)?);
        // Tasks come in order: what belongs to an earlier block is hardly needed any more.
        known.retain(|&(shard, start), _| shard == key.0 && start + (64 << 20) > key.1);
        known.insert(key, Arc::clone(&found));
        Ok(found)
    }

    fn named(&self, tensor: Option<usize>, error: Error) -> CheckpointError {
        let name = tensor.and_then(|tensor| self.plan.tensors.get(tensor)).map_or("", |tensor| &tensor.name);
        CheckpointError::Tensor { name: name.to_owned(), source: Box::new(error) }
    }
}

/// Room for `length` bytes in memory that only grows.
fn room(memory: &mut Vec<u8>, length: usize) -> &mut [u8] {
    if memory.len() < length {
        memory.resize(length, 0);
    }
    memory.get_mut(..length).unwrap_or_default()
}

fn single_thread() -> SlabOptions<'static> {
    SlabOptions { num_threads: Some(1), ..SlabOptions::default() }
}

/// Some rows of a block as the kernels see them.
struct Views<'a> {
    work: &'a RowWork,
    rows: Range<usize>,
}

impl Views<'_> {
    /// Shape and strides of the rows, in the orientation that the deltas have.
    fn place(&self) -> ([usize; 2], [isize; 2]) {
        let columns = self.work.columns;
        if self.is_turned() {
            ([columns, self.rows.len()], [1, columns as isize])
        } else {
            ([self.rows.len(), columns], [columns as isize, 1])
        }
    }

    /// Whether the kernels see the block transposed: a magnitude belongs to rows of the matrix, not of the block.
    fn is_turned(&self) -> bool {
        self.work.is_transposed && self.work.magnitude.is_some()
    }

    fn deltas<'b>(&self, parts: &'b [Part]) -> Result<Vec<Delta<'b>>, TensorError> {
        let rows = self.rows.clone();
        parts.iter().map(|part| part.delta(!self.is_turned(), rows.clone())).collect()
    }

    fn merge(&self, input: &mut [u8], output: &mut [u8], residue: bool) -> Result<Outcome, Error> {
        let (shape, strides) = self.place();
        let deltas = self.deltas(&self.work.parts)?;
        let magnitude = match &self.work.magnitude {
            Some(magnitude) if self.is_turned() => Some(magnitude.view()?),
            Some(magnitude) => Some(magnitude.view()?.narrow(0, self.rows.clone())?),
            None => None,
        };
        let options = SlabOptions {
            first_row: self.rows.start,
            statistics: true,
            residue,
            magnitude,
            ..single_thread()
        };
        let report = if output.is_empty() {
            let mut target = TensorMut::from_bytes(input, self.work.dtype, 0, &shape, &strides)?;
            merge_slab(&mut target, None, &deltas, &options)?
        } else {
            let source = TensorRef::from_bytes(input, self.work.dtype, 0, &shape, &strides)?;
            let mut target = TensorMut::from_bytes(output, self.work.output_dtype, 0, &shape, &strides)?;
            merge_slab(&mut target, Some(&source), &deltas, &options)?
        };
        Ok(Outcome { statistics: report.statistics, residue: report.residue, ..Outcome::default() })
    }

    fn undo(&self, input: &mut [u8], output: &mut [u8], exceptions: &Exceptions) -> Result<u64, Error> {
        let (shape, strides) = self.place();
        let deltas = self.deltas(&self.work.parts)?;
        if output.is_empty() {
            let mut target = TensorMut::from_bytes(input, self.work.dtype, 0, &shape, &strides)?;
            exceptions.undo(&mut target, None, &deltas, self.rows.start)
        } else {
            let source = TensorRef::from_bytes(input, self.work.dtype, 0, &shape, &strides)?;
            let mut target = TensorMut::from_bytes(output, self.work.output_dtype, 0, &shape, &strides)?;
            exceptions.undo(&mut target, Some(&source), &deltas, self.rows.start)
        }
    }
}

impl Part {
    /// The delta of some rows: of the stored block, or of all of it as the matrix that it is.
    pub(super) fn delta(&self, is_stored: bool, rows: Range<usize>) -> Result<Delta<'_>, TensorError> {
        let (a, b) = (self.a.view()?, self.b.view()?);
        let (lora_a, lora_b) = match (is_stored, self.is_transposed) {
            (true, true) => (b.transposed(), a.transposed().narrow(0, rows)?),
            (true, false) => (a, b.narrow(0, rows)?),
            (false, _) => (a, b),
        };
        Ok(Delta { lora_a, lora_b, scaling: self.scaling })
    }

    /// The delta of the whole stored block.
    pub(super) fn whole(&self) -> Result<Delta<'_>, TensorError> {
        let [rows, columns] = [self.b.shape()[0], self.a.shape()[1]];
        self.delta(true, 0..if self.is_transposed { columns } else { rows })
    }
}

/// Whether every value of a format is one of another.
pub(super) fn is_exact(from: DType, to: DType) -> bool {
    from == to || to == DType::F32
}
