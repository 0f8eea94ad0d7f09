//! Memory that a thread keeps between calls: the first touch of fresh memory costs more than a merge.

use std::cell::Cell;

/// Numbers in a cache line.
const LINE: usize = 16;

/// What a thread keeps; a buffer that grew beyond this for an unusual rank is given back after the call.
const KEPT_NUMBERS: usize = (1 << 20) / size_of::<f32>();

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; LINE]);

/// A buffer of binary32 numbers that begins at a cache line and only grows.
#[derive(Default)]
pub(crate) struct Buffer(Vec<Line>);

impl Buffer {
    /// Room for `count` numbers, holding whatever was there before.
    pub(crate) fn numbers(&mut self, count: usize) -> *mut f32 {
        let lines = count.div_ceil(LINE);
        if self.0.len() < lines {
            self.0 = Vec::new(); // the old contents are not wanted: do not copy them
            self.0.resize(lines, Line([0.0; LINE]));
        }
        self.0.as_mut_ptr().cast()
    }

    fn trim(&mut self) {
        if self.0.len() * LINE > KEPT_NUMBERS {
            self.0 = Vec::new();
        }
    }
}

/// The buffers of a task.
#[derive(Default)]
pub(crate) struct Scratch {
    /// Packed columns, or activations.
    pub(crate) columns: Buffer,
    /// Packed rows, or partial sums.
    pub(crate) rows: Buffer,
    /// Ranks whose features do not lie side by side.
    pub(crate) ranks: Buffer,
}

thread_local! {
    static TASK: Cell<Option<Box<Scratch>>> = const { Cell::new(None) };
    static CALL: Cell<Option<Buffer>> = const { Cell::new(None) };
}

/// Runs a task with this thread's buffers. A task inside a task gets fresh ones.
pub(crate) fn with_task<R>(work: impl FnOnce(&mut Scratch) -> R) -> R {
    let mut scratch = TASK.take().unwrap_or_default();
    let result = work(&mut scratch);
    scratch.columns.trim();
    scratch.rows.trim();
    scratch.ranks.trim();
    TASK.set(Some(scratch));
    result
}

/// Runs a whole call with the buffer that its tasks share.
pub(crate) fn with_call<R>(work: impl FnOnce(&mut Buffer) -> R) -> R {
    let mut buffer = CALL.take().unwrap_or_default();
    let result = work(&mut buffer);
    buffer.trim();
    CALL.set(Some(buffer));
    result
}
