//! What is to be written: for every shard of the output, which bytes come from where, cut into tasks.
//!
//! A shard is a row of *segments*; a segment is cut into *tasks* of about a megabyte, each of which one worker
//! computes from one piece of one file. Tasks are numbered through all shards in the order of the output and are found by
//! their number: no list of them exists, whatever the size of the model.

use std::ops::Range;
use std::sync::Arc;

use infer_accel_tensor::DType;

use super::base::Source;
use super::codes::CodeWork;
use super::stream::OutputShard;
use super::undo::UndoWork;
use crate::adapter::{Matrix, Tensor};
use crate::safetensors::TensorEntry;

/// Bytes of input that a task takes: what stays in a core's own cache while it is read, merged, summed and copied.
pub(super) const TASK_BYTES: usize = 1 << 20;

/// Everything that is to be done.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Files that are read.
    pub(super) sources: Vec<Source>,
    /// Files that are written.
    pub(super) shards: Vec<OutputShard>,
    /// Tensors that change.
    pub(super) tensors: Vec<ChangedTensor>,
    segments: Vec<Segment>,
    tasks: u64,
}

/// A tensor that does not go through byte for byte.
#[derive(Clone, Debug)]
pub(super) struct ChangedTensor {
    /// Its name.
    pub(super) name: String,
    /// Its shape in the output.
    pub(super) shape: Vec<usize>,
    /// Its format in the base.
    pub(super) dtype: &'static str,
    /// Its format in the output.
    pub(super) output_dtype: &'static str,
    /// What happens to it.
    pub(super) action: Action,
    /// Rank of all its updates together; of a tensor of many matrices that of the largest.
    pub(super) rank: usize,
    /// What is kept so that it can come back.
    pub(super) keep: Keep,
    /// Where its bytes lie in the base.
    pub(super) base: Option<BaseBytes>,
}

/// A tensor as it lies in a source.
#[derive(Clone, Debug)]
pub(super) struct BaseBytes {
    pub(super) source: usize,
    pub(super) entry: TensorEntry,
}

/// What happens to a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Low-rank updates are added.
    Merged,
    /// It is replaced as a whole.
    Replaced,
    /// Its number format changes, and nothing else.
    Converted,
    /// It holds the scales of a quantized tensor that updates are added to.
    Rescaled,
    /// It was shared with another tensor in the base and is not any more.
    Added,
    /// A merge is taken back.
    Restored,
}

/// What is kept of a tensor so that a merge can be undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keep {
    /// Nothing.
    Nothing,
    /// Where the arithmetic backwards gives other bits, and these bits.
    Exceptions,
    /// All of it.
    Whole,
}

/// A run of output bytes that are made in one way.
#[derive(Debug)]
pub(super) struct Segment {
    /// Number of the output shard.
    pub(super) shard: usize,
    /// Its bytes in the shard.
    pub(super) output: Range<u64>,
    /// The changed tensor that it belongs to, as an index of [`Plan::tensors`].
    pub(super) tensor: Option<usize>,
    /// Whether the tensor ends with it.
    pub(super) ends_tensor: bool,
    /// Whether the tensor begins with it.
    pub(super) begins_tensor: bool,
    /// How its bytes are made.
    pub(super) work: Work,
    first_task: u64,
    tasks: u64,
}

/// How bytes are made.
#[derive(Debug)]
pub(super) enum Work {
    /// They are known.
    Bytes(Arc<[u8]>),
    /// They are those of a source, from a byte on.
    Copy { source: usize, from: u64 },
    /// A dense block of a source's tensor, updated.
    Rows(Box<RowWork>),
    /// A tensor of an adapter, in another format perhaps.
    Convert { tensor: Tensor, to: DType },
    /// A quantized tensor, updated.
    Codes(Arc<CodeWork>),
    /// Its scales.
    Scales(Arc<CodeWork>),
}

/// A dense block of rows that is updated.
#[derive(Debug)]
pub(super) struct RowWork {
    /// Which source.
    pub(super) source: usize,
    /// Where the block begins in it.
    pub(super) from: u64,
    /// Its format there.
    pub(super) dtype: DType,
    /// Its format in the output.
    pub(super) output_dtype: DType,
    /// Rows as they are stored.
    pub(super) rows: usize,
    /// Columns as they are stored.
    pub(super) columns: usize,
    /// Rows of a task.
    pub(super) task_rows: usize,
    /// What is added, in this order.
    pub(super) parts: Vec<Part>,
    /// `DoRA`: the lengths of the rows of the matrix.
    pub(super) magnitude: Option<Tensor>,
    /// Whether the matrix is the transposed of the block. It is one task then, if there is a magnitude.
    pub(super) is_transposed: bool,
    /// What takes the merge back, instead of merging.
    pub(super) undo: Option<UndoWork>,
}

/// A low-rank update in the orientation of the stored block.
#[derive(Clone, Debug)]
pub(super) struct Part {
    /// `[rank, in]` of the matrix.
    pub(super) a: Matrix,
    /// `[out, rank]` of the matrix.
    pub(super) b: Matrix,
    /// Whether the matrix is stored transposed, so that the two change roles.
    pub(super) is_transposed: bool,
    /// Scaling times weight.
    pub(super) scaling: f64,
}

impl Part {
    pub(super) fn rank(&self) -> usize {
        self.a.shape()[0]
    }
}

/// A piece of work for one worker.
#[derive(Clone, Copy, Debug)]
pub(super) struct Task<'a> {
    /// The segment that it belongs to.
    pub(super) segment: &'a Segment,
    /// Its number within the segment.
    pub(super) index: u64,
    /// Whether it is the segment's last.
    pub(super) is_last: bool,
}

impl Segment {
    fn task_count(&self) -> u64 {
        let length = self.output.end - self.output.start;
        match &self.work {
            Work::Rows(work) => work.rows.div_ceil(work.task_rows.max(1)) as u64,
            Work::Codes(work) => work.tasks(),
            Work::Scales(work) => work.scale_tasks(),
            _ => length.div_ceil(TASK_BYTES as u64),
        }
    }
}

impl RowWork {
    /// Rows of a task: about a megabyte, where an element takes `size` bytes.
    pub(super) fn rows_of_task(rows: usize, columns: usize, size: usize) -> usize {
        let row_bytes = columns.saturating_mul(size);
        (TASK_BYTES / row_bytes.max(1)).clamp(1, rows.max(1))
    }

    /// The rows of a task.
    pub(super) fn rows_of(&self, index: u64) -> Range<usize> {
        let first = (index as usize).saturating_mul(self.task_rows).min(self.rows);
        first..(first + self.task_rows).min(self.rows)
    }
}

impl Plan {
    /// A plan without shards, that reads these files.
    pub(super) fn of(sources: Vec<Source>) -> Self {
        Self { sources, ..Self::default() }
    }

    /// Appends a segment to the last shard. One without bytes is left out, unless a tensor begins or ends with it.
    pub(super) fn push(&mut self, length: u64, tensor: Option<usize>, work: Work) {
        let Some(shard) = self.shards.last_mut() else { return };
        let start = shard.length;
        shard.length += length;
        let segment = Segment {
            shard: self.shards.len() - 1,
            output: start..start + length,
            tensor,
            begins_tensor: false,
            ends_tensor: false,
            work,
            first_task: self.tasks,
            tasks: 0,
        };
        if let (Some(last), None, Work::Copy { source, from }) =
            (self.segments.last_mut(), tensor, &segment.work)
            && last.shard == segment.shard
            && last.tensor.is_none()
            && let Work::Copy { source: last_source, from: last_from } = last.work
            && last_source == *source
            && last_from + (last.output.end - last.output.start) == *from
        {
            // One run of bytes, whatever tensors it holds.
            last.output.end += length;
            self.tasks -= last.tasks;
            last.tasks = last.task_count();
            self.tasks += last.tasks;
            return;
        }
        let tasks = segment.task_count();
        self.segments.push(Segment { tasks, ..segment });
        self.tasks += tasks;
    }

    /// Marks the segments from number `first` on as those of one tensor.
    pub(super) fn enclose(&mut self, first: usize) {
        if let Some(segment) = self.segments.get_mut(first) {
            segment.begins_tensor = true;
        }
        if let Some(segment) = self.segments.last_mut() {
            segment.ends_tensor = true;
        }
    }

    pub(super) fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Bytes of all shards.
    pub(super) fn bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.length).sum()
    }

    /// A task by its number.
    pub(super) fn task(&self, number: u64) -> Option<Task<'_>> {
        let after = self.segments.partition_point(|segment| segment.first_task <= number);
        // Segments without tasks share the number of the next one: the last of them is the one that has it.
        let segment = self.segments.get(after.checked_sub(1)?)?;
        let index = number - segment.first_task;
        (index < segment.tasks).then_some(Task { segment, index, is_last: index + 1 == segment.tasks })
    }

    /// The task that work begins with which has to write from byte `written` of a shard on, and the byte of the shard
    /// that this task begins with: the tensor that holds the last byte that is written comes again from its first row,
    /// so that what is told about it comes from all of it.
    pub(super) fn restart(&self, shard: usize, written: u64) -> (u64, u64) {
        let mut found = None;
        for segment in self.segments.iter().filter(|segment| segment.shard == shard) {
            if found.is_some() && segment.output.start >= written {
                break;
            }
            if segment.tensor.is_none() {
                let whole = written.clamp(segment.output.start, segment.output.end) - segment.output.start;
                let tasks = (whole / TASK_BYTES as u64).min(segment.tasks.saturating_sub(1));
                found = Some((segment.first_task + tasks, segment.output.start + tasks * TASK_BYTES as u64));
            } else if segment.begins_tensor || found.is_none() {
                found = Some((segment.first_task, segment.output.start));
            }
        }
        found.unwrap_or((self.tasks, 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A plan of one shard for each list: lengths, and whether they belong to a tensor that changes.
    fn plan(shards: &[Vec<(u64, bool)>]) -> Plan {
        let mut plan = Plan::default();
        for (number, segments) in shards.iter().enumerate() {
            plan.shards.push(OutputShard { name: number.to_string(), length: 0 });
            plan.push(100, None, Work::Bytes(Arc::from(vec![0; 100])));
            for (index, &(length, changes)) in segments.iter().enumerate() {
                let first = plan.segments().len();
                plan.push(length, changes.then_some(index), Work::Copy { source: index, from: 0 });
                if changes {
                    plan.enclose(first);
                }
            }
        }
        plan
    }

    fn length(task: &Task<'_>) -> u64 {
        let all = task.segment.output.end - task.segment.output.start;
        (all - task.index * TASK_BYTES as u64).min(TASK_BYTES as u64)
    }

    proptest! {
        #[test]
        fn tasks_cover_the_output_in_order(
            shards in prop::collection::vec(prop::collection::vec((1_u64..5_000_000, any::<bool>()), 0..5), 1..4),
            share in 0.0..=1.0_f64,
        ) {
            let plan = plan(&shards);
            let (mut number, mut shard, mut at) = (0, 0, 0);
            while let Some(task) = plan.task(number) {
                if task.segment.shard != shard {
                    prop_assert_eq!(at, plan.shards[shard].length);
                    (shard, at) = (task.segment.shard, 0);
                }
                prop_assert_eq!(task.segment.output.start + task.index * TASK_BYTES as u64, at);
                at += length(&task);
                number += 1;
            }
            prop_assert_eq!((shard + 1, at), (plan.shards.len(), plan.shards[shard].length));
            prop_assert_eq!(plan.bytes(), plan.shards.iter().map(|shard| shard.length).sum::<u64>());

            let written = (plan.shards[shard].length as f64 * share) as u64;
            let (first, position) = plan.restart(shard, written);
            let task = plan.task(first).unwrap();
            prop_assert_eq!(task.segment.shard, shard);
            prop_assert_eq!(position, task.segment.output.start + task.index * TASK_BYTES as u64);
            prop_assert!(position <= written);
            // What is told about a changed tensor comes from all of it; others are not done again for nothing.
            match task.segment.tensor {
                Some(_) => prop_assert!(task.index == 0 && task.segment.output.end >= written),
                None => prop_assert!(written - position <= TASK_BYTES as u64 || written > task.segment.output.end),
            }
        }
    }

    #[test]
    fn neighbouring_copies_are_one_segment() {
        let mut plan = Plan::default();
        plan.shards.push(OutputShard { name: String::new(), length: 0 });
        for (source, from) in [(0, 100), (0, 150), (0, 300), (1, 350)] {
            plan.push(50, None, Work::Copy { source, from });
        }
        let ends: Vec<u64> = plan.segments().iter().map(|segment| segment.output.end).collect();
        assert_eq!(ends, [100, 150, 200]);
        assert!(plan.task(3).is_none());
    }
}
