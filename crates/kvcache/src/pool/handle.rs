//! Handles: a block's id with the generation of its loan.
//!
//! A handle is `generation << 32 | id`, never negative, so that it fits a signed 64-bit array. The generation
//! counts how often the block came back to the pool; it wraps after 2³¹ loans of one block.

/// The null block's handle: id 0, generation 0.
pub const NULL_HANDLE: i64 = 0;

/// The generation after `generation`.
pub(super) const fn next_generation(generation: u32) -> u32 {
    (generation + 1) & (u32::MAX >> 1)
}

pub(super) const fn pack(id: u32, generation: u32) -> i64 {
    (generation as i64) << 32 | id as i64
}

/// Id and generation; a negative handle has a generation that no block ever has.
pub(super) const fn unpack(handle: i64) -> (u32, u32) {
    (handle as u32, (handle >> 32) as u32)
}
