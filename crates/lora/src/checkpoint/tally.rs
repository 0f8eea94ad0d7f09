//! What is found out along the way, put together in the order of the output.

use super::compute::Outcome;
use super::error::CheckpointError;
use super::journal::Record;
use super::plan::{ChangedTensor, Keep, Plan, Task, Work};
use super::report::{Quantization, TensorReport};
use super::residue_file::{Kept, ResidueStream};
use crate::quantized::QuantizationReport;
use crate::residue::ResidueBuilder;
use crate::statistics::MergeStatistics;
use crate::{AdapterDigest, Error};

/// Collects the outcomes of tasks, in order.
pub(super) struct Tally<'a> {
    plan: &'a Plan,
    residue: Option<ResidueStream<'a>>,
    tensor: Current,
    records: Vec<Record>,
}

/// What is known about the tensor that is being written.
#[derive(Default)]
struct Current {
    statistics: MergeStatistics,
    quantization: Option<QuantizationReport>,
    builder: Option<ResidueBuilder>,
    undone: u64,
    kept: Vec<Kept>,
}

impl<'a> Tally<'a> {
    pub(super) fn new(plan: &'a Plan, residue: Option<ResidueStream<'a>>) -> Self {
        Self { plan, residue, tensor: Current::default(), records: Vec::new() }
    }

    /// Takes the outcome of the next task.
    pub(super) fn take(&mut self, task: &Task<'_>, outcome: Outcome) -> Result<(), CheckpointError> {
        let segment = task.segment;
        let Some(tensor) = segment.tensor.and_then(|tensor| self.plan.tensors.get(tensor)) else {
            return Ok(());
        };
        if segment.begins_tensor && task.index == 0 {
            self.tensor = Current::default();
        }
        let named =
            |error: Error| CheckpointError::Tensor { name: tensor.name.clone(), source: Box::new(error) };
        if let Some(statistics) = outcome.statistics {
            self.tensor.statistics += statistics;
        }
        if let Some(report) = outcome.quantization {
            *self.tensor.quantization.get_or_insert_default() += report;
        }
        if let Some(slab) = outcome.residue {
            if task.index == 0 {
                self.tensor.builder = Some(builder(&segment.work).map_err(named)?);
            }
            if let Some(builder) = self.tensor.builder.as_mut() {
                builder.push(&slab).map_err(named)?;
            }
        }
        if let Some((part, expected)) = outcome.undone {
            let sum = if task.index == 0 { part } else { self.tensor.undone.wrapping_add(part) };
            self.tensor.undone = sum;
            if task.is_last && sum != expected {
                return Err(named(Error::ResidueWeight { found: sum, expected }));
            }
        }
        if !task.is_last {
            return Ok(());
        }
        if let (Some(builder), Some(stream)) = (self.tensor.builder.take(), self.residue.as_mut()) {
            let bytes = builder.finish().map_err(named)?.to_bytes();
            let kept = stream.append(&tensor.name, self.tensor.kept.len(), &bytes)?;
            self.tensor.kept.push(kept);
        }
        if segment.ends_tensor { self.finish(tensor) } else { Ok(()) }
    }

    fn finish(&mut self, tensor: &ChangedTensor) -> Result<(), CheckpointError> {
        if let (Keep::Whole, Some(stream)) = (tensor.keep, self.residue.as_mut()) {
            let kept = stream.copy(tensor, &self.plan.sources)?;
            self.tensor.kept.push(kept);
        }
        let current = std::mem::take(&mut self.tensor);
        let mut report = TensorReport::new(tensor, current.statistics, current.kept);
        report.quantization = current.quantization.map(Quantization::from);
        self.records.push(Record::Tensor(Box::new(report)));
        Ok(())
    }

    /// What was found out since the last call.
    pub(super) fn records(&mut self) -> Vec<Record> {
        std::mem::take(&mut self.records)
    }

    /// How far the residue of the current shard is written: bytes and their checksum.
    pub(super) fn mark(&mut self, is_last: bool) -> Result<(u64, String), CheckpointError> {
        match self.residue.as_mut() {
            Some(residue) if is_last => residue.finish_shard(),
            Some(residue) => Ok(residue.mark()),
            None => Ok((0, String::new())),
        }
    }
}

fn builder(work: &Work) -> Result<ResidueBuilder, Error> {
    let Work::Rows(work) = work else { return Err(Error::ResidueMagnitude) };
    let deltas = work.parts.iter().map(super::plan::Part::whole).collect::<Result<Vec<_>, _>>()?;
    let adapter = AdapterDigest::of(&deltas)?;
    Ok(ResidueBuilder::new([work.rows, work.columns], work.dtype, work.output_dtype, adapter))
}
