//! All data of a file into owned memory, looked through for NaN and infinity on the way.
//!
//! A piece is checked right after it was read, while the cache still holds it: the check costs no second pass over
//! memory. Pieces are read side by side, so that the faults of fresh memory are shared among the threads too.

use std::sync::{Arc, Mutex};

use infer_accel_tensor::{Buffer, DType, threads};

use super::finite::{self, Seen};
use crate::problem::{Problem, ProblemCode};
use crate::safetensors::File;

/// Bytes that one thread reads and checks at a time: they fit the second-level cache beside what else is there.
const PIECE: usize = 256 << 10;

/// The data of a file, and what was seen of each tensor, in the order of the header.
pub(super) struct Data {
    pub(super) memory: Arc<Buffer>,
    pub(super) seen: Vec<Seen>,
}

struct Piece<'a> {
    tensor: usize,
    dtype: Option<DType>,
    /// Where the bytes lie in the file.
    start: u64,
    target: &'a mut [u8],
}

/// Reads everything behind the header.
pub(super) fn read_all(file: &File, num_threads: usize) -> Result<Data, Problem> {
    let header = file.header();
    let bytes = usize::try_from(header.file_len() - header.data_start()).ok();
    let Some(mut memory) = bytes.and_then(Buffer::zeroed) else {
        let message = format!("there is no memory for its {} bytes", header.file_len());
        return Err(Problem::new(ProblemCode::Size, "", message));
    };
    let pieces: Vec<Mutex<Piece<'_>>> = pieces_of(file, &mut memory).into_iter().map(Mutex::new).collect();
    let fault: Mutex<Option<Problem>> = Mutex::new(None);
    let seen: Vec<Mutex<Seen>> = header.entries().iter().map(|_| Mutex::default()).collect();
    threads::parallel_for(num_threads, pieces.len(), |index| {
        let Some(Ok(mut piece)) = pieces.get(index).map(Mutex::lock) else { return };
        let piece = &mut *piece;
        if let Err(problem) = file.read_range(piece.start, piece.target) {
            if let Ok(mut fault) = fault.lock() {
                fault.get_or_insert(problem);
            }
            return;
        }
        let of_piece = piece.dtype.map_or_else(Seen::default, |dtype| finite::scan(piece.target, dtype));
        if let Some(Ok(mut of_tensor)) = seen.get(piece.tensor).map(Mutex::lock) {
            *of_tensor = of_tensor.and(of_piece);
        }
    });
    drop(pieces);
    if let Some(problem) = fault.into_inner().ok().flatten() {
        return Err(problem);
    }
    let seen = seen.into_iter().map(|seen| seen.into_inner().unwrap_or_default()).collect();
    Ok(Data { memory: Arc::new(memory), seen })
}

/// The memory cut at the borders of tensors, and within a tensor at whole elements.
fn pieces_of<'a>(file: &File, memory: &'a mut [u8]) -> Vec<Piece<'a>> {
    let mut pieces = Vec::new();
    let mut rest = memory;
    for (tensor, entry) in file.header().entries().iter().enumerate() {
        let mut start = entry.range.start;
        while start < entry.range.end {
            let left = usize::try_from(entry.range.end - start).unwrap_or(usize::MAX);
            let (target, behind) = std::mem::take(&mut rest).split_at_mut(left.min(PIECE));
            rest = behind;
            let length = target.len() as u64;
            pieces.push(Piece { tensor, dtype: entry.dtype.dtype(), start, target });
            start += length;
        }
    }
    pieces
}
