//! The dense blocks of a tensor that updates reach.

use std::collections::BTreeMap;

use infer_accel_tensor::DType;

use super::error::CheckpointError;
use super::plan::{Part, RowWork};
use super::undo::UndoWork;
use crate::adapter::{Tensor, Update};
use crate::safetensors::TensorEntry;

/// Bytes of the longest row that is merged: a task holds at least one.
const LONGEST_ROW: usize = 64 << 20;

/// A dense block of a tensor and what is added to it.
pub(super) struct Block {
    /// Its first element in the tensor.
    pub(super) first: usize,
    /// Rows, as they are stored.
    pub(super) rows: usize,
    /// Columns, as they are stored.
    pub(super) columns: usize,
    /// What is added, in the order of the adapters.
    pub(super) parts: Vec<Part>,
    /// `DoRA`: the lengths of the rows of the matrix.
    pub(super) magnitude: Option<Tensor>,
    /// Whether the block is the transposed of the matrix.
    pub(super) is_transposed: bool,
}

impl Block {
    /// The rank of all parts together.
    pub(super) fn rank(&self) -> usize {
        self.parts.iter().map(Part::rank).sum()
    }

    /// A block of elements that nothing is added to, but whose format changes.
    fn plain(first: usize, rows: usize, columns: usize) -> Self {
        Self { first, rows, columns, parts: Vec::new(), magnitude: None, is_transposed: false }
    }

    /// What is to be done, for elements that lie in a source from byte `from` on.
    pub(super) fn work(
        self,
        source: usize,
        from: u64,
        (dtype, output_dtype): (DType, DType),
        undo: Option<UndoWork>,
    ) -> Result<RowWork, CheckpointError> {
        let size = dtype.size().max(output_dtype.size());
        let task_rows = if self.is_transposed && self.magnitude.is_some() {
            // The norm of a row of the matrix runs down a column of the block: all of it is needed.
            self.rows
        } else if self.columns.saturating_mul(size) <= LONGEST_ROW {
            RowWork::rows_of_task(self.rows, self.columns, size)
        } else {
            let problem = format!("a row of {} elements is longer than what is merged at once", self.columns);
            return Err(CheckpointError::Argument(problem));
        };
        Ok(RowWork {
            source,
            from,
            dtype,
            output_dtype,
            rows: self.rows,
            columns: self.columns,
            task_rows,
            parts: self.parts,
            magnitude: self.magnitude,
            is_transposed: self.is_transposed,
            undo,
        })
    }
}

/// A run of a tensor's elements.
pub(super) enum Piece {
    /// Elements that stay as they are.
    Same { first: usize, elements: usize },
    /// Elements that change.
    Block(Block),
}

impl Piece {
    pub(super) fn first(&self) -> usize {
        match self {
            Self::Same { first, .. } => *first,
            Self::Block(block) => block.first,
        }
    }

    pub(super) fn elements(&self) -> usize {
        match self {
            Self::Same { elements, .. } => *elements,
            Self::Block(block) => block.rows * block.columns,
        }
    }
}

/// The blocks of a tensor and what lies between them, which changes too where the format does.
pub(super) fn pieces(blocks: Vec<Block>, elements: usize, is_same_format: bool) -> Vec<Piece> {
    /// Columns of a block that has none of its own.
    const WIDTH: usize = 4096;
    let mut pieces = Vec::new();
    let between = |pieces: &mut Vec<Piece>, first: usize, end: usize| {
        let count = end.saturating_sub(first);
        if is_same_format {
            pieces.extend((count > 0).then_some(Piece::Same { first, elements: count }));
            return;
        }
        let whole = count / WIDTH * WIDTH;
        if whole > 0 {
            pieces.push(Piece::Block(Block::plain(first, whole / WIDTH, WIDTH)));
        }
        if count > whole {
            pieces.push(Piece::Block(Block::plain(first + whole, 1, count - whole)));
        }
    };
    let mut at = 0;
    for block in blocks {
        between(&mut pieces, at, block.first);
        at = block.first + block.rows * block.columns;
        pieces.push(Piece::Block(block));
    }
    between(&mut pieces, at, elements);
    pieces
}

/// The blocks of a tensor that `updates` reach, in the order of the data.
pub(super) fn blocks(entry: &TensorEntry, updates: &[(f64, Update)]) -> Result<Vec<Block>, CheckpointError> {
    let refuse = |problem: &str| {
        Err(CheckpointError::Adapter { adapter: entry.name.clone(), problem: problem.to_owned() })
    };
    let mut blocks: BTreeMap<usize, Block> = BTreeMap::new();
    for (weight, update) in updates {
        let place = &update.place;
        let [out_features, in_features] = place.shape;
        let (is_transposed, rows, columns) = match place.strides {
            [down, 1] if down == in_features as isize || out_features <= 1 => {
                (false, out_features, in_features)
            }
            [1, across] if across == out_features as isize || in_features <= 1 => {
                (true, in_features, out_features)
            }
            _ => {
                return refuse(
                    "an update reaches elements that do not lie in a dense block; this layout is not served",
                );
            }
        };
        if rows * columns == 0 {
            continue;
        }
        if update.magnitude.is_some() && *weight != 1.0 {
            return refuse("a DoRA update is no sum and has no meaning at another weight than 1");
        }
        let part = Part {
            a: update.a.clone(),
            b: update.b.clone(),
            is_transposed,
            scaling: update.scaling * weight,
        };
        let magnitude = update.magnitude.clone();
        let block = blocks.entry(place.offset).or_insert_with(|| Block {
            first: place.offset,
            rows,
            columns,
            parts: Vec::new(),
            magnitude: None,
            is_transposed,
        });
        if (block.rows, block.columns) != (rows, columns) {
            return refuse("two updates reach blocks that overlap; merge one adapter after the other");
        }
        if block.magnitude.is_some() || (magnitude.is_some() && !block.parts.is_empty()) {
            return refuse(
                "a DoRA update is no sum and cannot be added to another; merge one adapter after the other",
            );
        }
        block.parts.push(part);
        block.magnitude = magnitude;
    }
    let blocks: Vec<Block> = blocks.into_values().collect();
    let elements: usize = entry.shape.iter().product();
    let ends = blocks.iter().map(|block| block.first + block.rows * block.columns);
    let starts = blocks.iter().skip(1).map(|block| block.first).chain([elements]);
    if ends.zip(starts).any(|(end, start)| end > start) {
        return refuse("updates reach blocks that overlap or lie outside the tensor");
    }
    Ok(blocks)
}
