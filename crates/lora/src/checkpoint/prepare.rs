//! From a checkpoint and its adapters to a plan.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use infer_accel_tensor::DType;

use super::base::Base;
use super::blocks::{Block, Piece, blocks, pieces};
use super::compute::is_exact;
use super::error::CheckpointError;
use super::plan::{Action, BaseBytes, ChangedTensor, Keep, Part, Plan, Work};
use super::quantized::{QuantizedTensors, quantized_tensors, require_plain};
use super::report::AdapterReport;
use super::stream::OutputShard;
use super::texts::{self, Changes};
use crate::adapter::{Adapter, BaseIndex, Exchange, Ledger, Update};
use crate::problem::{Problem, ProblemCode};
use crate::safetensors::{EntryPlan, StoredType, TensorEntry, header_bytes};

/// An adapter that is merged.
#[derive(Clone, Copy, Debug)]
pub struct AdapterInput<'a> {
    /// What reports and messages call it.
    pub name: &'a str,
    /// The adapter.
    pub adapter: &'a Adapter,
    /// What its deltas are multiplied by, beside its own scaling.
    pub weight: f64,
}

/// A plan and what belongs to it.
pub(super) struct Prepared {
    pub(super) plan: Plan,
    /// The headers of the base's shards.
    pub(super) headers: Vec<Vec<u8>>,
    pub(super) index: Option<(String, Vec<u8>)>,
    /// Files whose text changes: their names, the text before and after.
    pub(super) texts: texts::Texts,
    pub(super) untouched: Vec<String>,
    pub(super) adapters: Vec<AdapterReport>,
}

/// What is asked of a plan.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wish {
    pub(super) dtype: Option<DType>,
    pub(super) residue: bool,
    pub(super) allow_unused: bool,
}

/// All deltas by the tensor that they change.
#[derive(Default)]
pub(super) struct Deltas {
    pub(super) updates: BTreeMap<String, Vec<(f64, Update)>>,
    pub(super) exchanges: BTreeMap<String, Exchange>,
    /// Tensors of the output that start from another one of the base: the head that was its embedding.
    pub(super) untied: BTreeMap<String, BTreeSet<String>>,
}

/// Plans a merge. Takes the sources of the base.
pub(super) fn prepare(
    base: &mut Base,
    adapters: &[AdapterInput<'_>],
    wish: Wish,
) -> Result<Prepared, CheckpointError> {
    let index = base_index(base)?;
    let (deltas, reports) = gather(&index, adapters, wish.allow_unused)?;
    if wish.dtype.is_some() {
        require_plain(base)?;
    }
    let quantized = quantized_tensors(base, &deltas)?;
    let plan = Plan::of(std::mem::take(&mut base.sources));
    let mut builder = Builder { plan, wish, quantized, untouched: Vec::new() };
    let mut changes = Changes { dtype: wish.dtype, ..Changes::default() };
    for (number, shard) in base.shards.iter().enumerate() {
        let outputs = outputs_of(&shard.tensors, &deltas, wish.dtype);
        for output in &outputs {
            changes.total_size += output.plan.byte_len().unwrap_or(0);
            if output.is_added {
                changes.added.insert(output.plan.name.clone(), shard.name.clone());
            }
        }
        let is_same = outputs.iter().zip(&shard.tensors).all(|(output, entry)| output.is_like(entry));
        let header = if is_same && outputs.len() == shard.tensors.len() {
            shard.header.clone()
        } else {
            changes.headers = true;
            let plans: Vec<EntryPlan> = outputs.iter().map(|output| output.plan.clone()).collect();
            header_bytes(&plans, &shard.metadata)
                .ok_or_else(|| refuse(&base.directory, "its tensors are too large for one file"))?
        };
        builder.plan.shards.push(OutputShard { name: shard.name.clone(), length: 0 });
        builder.plan.push(header.len() as u64, None, Work::Bytes(Arc::from(header)));
        for output in &outputs {
            builder.tensor(number, output, &deltas)?;
        }
    }
    Ok(Prepared {
        index: texts::index(base, &changes)?,
        texts: texts::changed(base, &changes)?,
        headers: base.shards.iter().map(|shard| shard.header.clone()).collect(),
        plan: builder.plan,
        untouched: builder.untouched,
        adapters: reports,
    })
}

fn refuse(path: &Path, problem: impl Into<String>) -> CheckpointError {
    CheckpointError::Base { path: path.to_owned(), problem: problem.into() }
}

/// What adapters are held against.
fn base_index(base: &Base) -> Result<BaseIndex, CheckpointError> {
    let tensors = base.shards.iter().flat_map(|shard| &shard.tensors);
    let config = base.text_of(texts::CONFIG)?;
    Ok(texts::index_of(tensors, config.as_deref()))
}

/// Finds the place of every delta of every adapter.
pub(super) fn gather(
    index: &BaseIndex,
    adapters: &[AdapterInput<'_>],
    allow_unused: bool,
) -> Result<(Deltas, Vec<AdapterReport>), CheckpointError> {
    let mut deltas = Deltas::default();
    let mut reports = Vec::new();
    for input in adapters {
        if !input.weight.is_finite() {
            let problem = format!("the weight {} of {} is no finite number", input.weight, input.name);
            return Err(CheckpointError::Argument(problem));
        }
        let Ledger { updates, exchanges, untied, problems, .. } = input.adapter.resolve(index);
        let (unused, faults): (Vec<Problem>, Vec<Problem>) =
            problems.into_iter().partition(|problem| problem.code == ProblemCode::UnknownModule);
        let told: Vec<&Problem> =
            if allow_unused { faults.iter().collect() } else { faults.iter().chain(&unused).collect() };
        if !told.is_empty() {
            return Err(unfit(input.name, &told, allow_unused));
        }
        if updates.is_empty() && exchanges.is_empty() {
            let problem =
                "none of its deltas has a place in this checkpoint; it was trained on another model"
                    .to_owned();
            return Err(CheckpointError::Adapter { adapter: input.name.to_owned(), problem });
        }
        for update in updates {
            deltas.updates.entry(update.target.clone()).or_default().push((input.weight, update));
        }
        for exchange in exchanges {
            require_alone(input, &exchange, &deltas)?;
            deltas.exchanges.insert(exchange.target.clone(), exchange);
        }
        if let Some(untied) = untied {
            deltas.untied.entry(untied.embedding).or_default().insert(untied.head);
        }
        reports.push(AdapterReport {
            name: input.name.to_owned(),
            digest: input.adapter.digest().to_string(),
            weight: input.weight,
            unused: unused.into_iter().map(|problem| problem.tensor).collect(),
        });
    }
    Ok((deltas, reports))
}

/// The faults of an adapter in one message.
fn unfit(adapter: &str, problems: &[&Problem], allow_unused: bool) -> CheckpointError {
    const SHOWN: usize = 8;
    let mut texts: Vec<String> = problems.iter().take(SHOWN).map(ToString::to_string).collect();
    if problems.len() > SHOWN {
        texts.push(format!("and {} more", problems.len() - SHOWN));
    }
    if !allow_unused && problems.iter().all(|problem| problem.code == ProblemCode::UnknownModule) {
        texts.push("allow_unused=True merges the others".to_owned());
    }
    CheckpointError::Adapter { adapter: adapter.to_owned(), problem: texts.join("; ") }
}

/// Refuses to replace a tensor by more than one adapter, or by a share of one: that is no sum.
fn require_alone(
    input: &AdapterInput<'_>,
    exchange: &Exchange,
    deltas: &Deltas,
) -> Result<(), CheckpointError> {
    let refuse = |problem: String| Err(CheckpointError::Adapter { adapter: input.name.to_owned(), problem });
    let target = &exchange.target;
    if input.weight != 1.0 {
        return refuse(format!(
            "it replaces {target} as a whole, which has no meaning at weight {}; give it weight 1",
            input.weight
        ));
    }
    if deltas.exchanges.contains_key(target) || deltas.updates.contains_key(target) {
        return refuse(format!(
            "it replaces {target}, which another adapter changes too; merge one after the other"
        ));
    }
    Ok(())
}

/// A tensor of the output.
struct Output<'a> {
    plan: EntryPlan,
    entry: &'a TensorEntry,
    is_added: bool,
}

impl Output<'_> {
    fn is_like(&self, entry: &TensorEntry) -> bool {
        self.plan.name == entry.name && self.plan.dtype == entry.dtype && self.plan.shape == entry.shape
    }
}

/// The tensors that come of a shard's.
fn outputs_of<'a>(entries: &'a [TensorEntry], deltas: &Deltas, dtype: Option<DType>) -> Vec<Output<'a>> {
    let mut outputs = Vec::new();
    for entry in entries {
        let heads = deltas.untied.get(&entry.name).into_iter().flatten();
        for (name, is_added) in std::iter::once((&entry.name, false)).chain(heads.map(|head| (head, true))) {
            // A vocabulary may have grown.
            let shape =
                deltas.exchanges.get(name).map_or(&entry.shape[..], |exchange| exchange.tensor.shape());
            let dtype = match (dtype.and_then(StoredType::of), is_convertible(entry.dtype)) {
                (Some(dtype), true) => dtype,
                _ => entry.dtype,
            };
            let plan = EntryPlan { name: name.clone(), dtype, shape: shape.to_vec() };
            outputs.push(Output { plan, entry, is_added });
        }
    }
    outputs
}

/// Whether a format is one of those that merging reads and writes.
fn is_convertible(dtype: StoredType) -> bool {
    matches!(dtype, StoredType::F32 | StoredType::F16 | StoredType::BF16)
}

fn unserved(entry: &TensorEntry) -> CheckpointError {
    CheckpointError::Tensor {
        name: entry.name.clone(),
        source: Box::new(crate::Error::StoredDType { dtype: entry.dtype }),
    }
}

struct Builder {
    plan: Plan,
    wish: Wish,
    quantized: QuantizedTensors,
    untouched: Vec<String>,
}

impl Builder {
    /// Plans one tensor of the output.
    fn tensor(&mut self, source: usize, output: &Output<'_>, deltas: &Deltas) -> Result<(), CheckpointError> {
        let (name, entry) = (&output.plan.name, output.entry);
        let (from, bytes) = (entry.range.start, entry.byte_len());
        let exchange = deltas.exchanges.get(name);
        let updates = deltas.updates.get(name).map_or(&[][..], Vec::as_slice);
        if let (Some(_), [(_, update), ..]) = (exchange, updates) {
            let problem = format!(
                "{} is replaced as a whole and updated too; merge one after the other",
                update.target
            );
            return Err(CheckpointError::Adapter { adapter: name.clone(), problem });
        }
        if exchange.is_none() && self.coded(source, output) {
            return Ok(());
        }
        let is_same = output.plan.dtype == entry.dtype && exchange.is_none() && updates.is_empty();
        if is_same || output.plan.byte_len() == Some(0) {
            self.plan.push(bytes, None, Work::Copy { source, from });
            if !output.is_added {
                self.untouched.push(name.clone());
            }
            return Ok(());
        }
        let action = match (exchange, updates.is_empty()) {
            _ if output.is_added => Action::Added,
            (Some(_), _) => Action::Replaced,
            (None, true) => Action::Converted,
            (None, false) => Action::Merged,
        };
        let (Some(base), Some(to)) = (entry.dtype.dtype(), output.plan.dtype.dtype()) else {
            return Err(unserved(entry));
        };
        if exchange.is_some_and(|exchange| exchange.tensor.dtype() != to)
            && !is_convertible(output.plan.dtype)
        {
            return Err(unserved(entry));
        }
        if exchange.is_none() && !(is_convertible(entry.dtype) && is_convertible(output.plan.dtype)) {
            return Err(unserved(entry));
        }
        let blocks = blocks(entry, updates)?;
        let tensor = self.plan.tensors.len();
        self.plan.tensors.push(ChangedTensor {
            name: name.clone(),
            shape: output.plan.shape.clone(),
            dtype: entry.dtype.name(),
            output_dtype: output.plan.dtype.name(),
            action,
            rank: blocks.iter().map(Block::rank).max().unwrap_or(0),
            keep: self.keep(output, action, &blocks, (base, to)),
            base: (!output.is_added).then(|| BaseBytes { source, entry: entry.clone() }),
        });
        let first = self.plan.segments().len();
        if let Some(exchange) = exchange {
            let length = output.plan.byte_len().unwrap_or(0);
            self.plan.push(length, Some(tensor), Work::Convert { tensor: exchange.tensor.clone(), to });
        } else {
            self.blocks(tensor, source, entry, (base, to), blocks)?;
        }
        self.plan.enclose(first);
        Ok(())
    }

    /// Plans a quantized tensor that updates are added to, or its scales; false if the tensor is neither.
    fn coded(&mut self, source: usize, output: &Output<'_>) -> bool {
        let (name, entry) = (&output.plan.name, output.entry);
        let QuantizedTensors { by_codes, by_scales } = &self.quantized;
        let (action, rank, work) = match (by_codes.get(name), by_scales.get(name)) {
            (Some(work), _) => {
                let rank = work.parts.iter().map(Part::rank).sum();
                (Action::Merged, rank, Work::Codes(Arc::clone(work)))
            }
            (None, Some(work)) => (Action::Rescaled, 0, Work::Scales(Arc::clone(work))),
            (None, None) => return false,
        };
        let (tensor, first) = (self.plan.tensors.len(), self.plan.segments().len());
        self.plan.tensors.push(ChangedTensor {
            name: name.clone(),
            shape: entry.shape.clone(),
            dtype: entry.dtype.name(),
            output_dtype: entry.dtype.name(),
            action,
            rank,
            // Codes are rounded too coarsely for what is lost to be little.
            keep: if self.wish.residue { Keep::Whole } else { Keep::Nothing },
            base: Some(BaseBytes { source, entry: entry.clone() }),
        });
        self.plan.push(entry.byte_len(), Some(tensor), work);
        self.plan.enclose(first);
        true
    }

    /// What must be kept of a tensor so that it can come back.
    fn keep(&self, output: &Output<'_>, action: Action, blocks: &[Block], formats: (DType, DType)) -> Keep {
        if !self.wish.residue || output.is_added {
            return Keep::Nothing;
        }
        let has_magnitude = blocks.iter().any(|block| block.magnitude.is_some());
        match action {
            Action::Replaced => Keep::Whole,
            _ if has_magnitude || !is_exact(formats.0, formats.1) => Keep::Whole,
            _ => Keep::Exceptions,
        }
    }

    /// Plans the pieces of a tensor.
    fn blocks(
        &mut self,
        tensor: usize,
        source: usize,
        entry: &TensorEntry,
        (base, to): (DType, DType),
        blocks: Vec<Block>,
    ) -> Result<(), CheckpointError> {
        let elements = (entry.byte_len() / base.size() as u64) as usize;
        for piece in pieces(blocks, elements, base == to) {
            let from = entry.range.start + (piece.first() * base.size()) as u64;
            let length = (piece.elements() * to.size()) as u64;
            let work = match piece {
                Piece::Same { .. } => Work::Copy { source, from },
                Piece::Block(block) => Work::Rows(Box::new(block.work(source, from, (base, to), None)?)),
            };
            self.plan.push(length, Some(tensor), work);
        }
        Ok(())
    }
}
