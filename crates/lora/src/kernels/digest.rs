//! A digest of a matrix that any order of computation can add up: what tells one weight from another.
//!
//! A row is cut into segments of [`SEGMENT`] elements. A segment's bytes are taken as 32-bit words (little endian,
//! filled up with zeros), each is added to a constant of its place, and neighbours are multiplied: the sum of these
//! products is the NH hash of UMAC (RFC 4418). Mixed with the place of the segment it is one summand of the digest.
//! It tells accidents apart, at one in 2³² or better; it is no defence against somebody who looks for a collision.

use super::Kernels;
use super::control::FloatControl;
use super::matrix::Matrix;
use super::random::{STEP, mix};
use super::sweep::SEGMENT;
use infer_accel_tensor::threads::parallel_for;
use std::sync::atomic::{AtomicU64, Ordering};

/// Words that a segment's bytes can fill, two by two.
const WORDS: usize = SEGMENT * size_of::<f32>() / size_of::<u64>();

/// What the words of a segment are added to, two constants in one.
static PLACES: [u64; WORDS] = {
    let mut places = [0; WORDS];
    let mut at = 0;
    while at < WORDS {
        places[at] = mix((at as u64 + 1).wrapping_mul(STEP));
        at += 1;
    }
    places
};

/// The hash of the bytes of a segment.
///
/// # Safety
///
/// `bytes` is readable for `count` bytes, at most those of a segment of binary32 numbers.
#[inline(always)]
pub(super) unsafe fn hash(bytes: *const u8, count: usize) -> u64 {
    let term = |word: u64, place: u64| {
        let low = (word as u32).wrapping_add(place as u32);
        let high = ((word >> 32) as u32).wrapping_add((place >> 32) as u32);
        u64::from(low).wrapping_mul(u64::from(high))
    };
    let whole = (count / size_of::<u64>()).min(WORDS);
    let mut sum = 0_u64;
    for (at, place) in PLACES.iter().enumerate().take(whole) {
        // SAFETY: the caller vouches for `count` bytes.
        let word = unsafe { bytes.cast::<u64>().add(at).read_unaligned() };
        sum = sum.wrapping_add(term(u64::from_le(word), *place));
    }
    let left = count - whole * size_of::<u64>();
    if left > 0 && whole < WORDS {
        let mut word = [0_u8; size_of::<u64>()];
        // SAFETY: fewer bytes than a word are left, and the caller vouches for them.
        unsafe {
            bytes.add(whole * size_of::<u64>()).copy_to_nonoverlapping(word.as_mut_ptr(), left);
        }
        sum = sum.wrapping_add(term(u64::from_le_bytes(word), PLACES[whole]));
    }
    sum
}

/// What a segment with this hash adds to the digest of its matrix.
#[inline]
pub(crate) fn summand(hash: u64, row: u64, column: usize) -> u64 {
    let place = row << 24 ^ (column / SEGMENT) as u64;
    mix(hash ^ mix(place.wrapping_mul(STEP)))
}

/// The digest of a matrix whose first row is `first_row` of the whole.
///
/// # Safety
///
/// Every element of the matrix is readable; the processor has the tier of the kernels.
pub(crate) unsafe fn digest(kernels: &Kernels, matrix: &Matrix, first_row: usize, threads: usize) -> u64 {
    /// Rows of a task: enough to be worth a task, few enough to share.
    const ROWS: usize = 16;
    let total = AtomicU64::new(0);
    let (size, matrix) = (matrix.format.size(), Shared(*matrix));
    parallel_for(threads, matrix.get().rows.div_ceil(ROWS), |task| {
        let _control = FloatControl::ieee();
        let (matrix, mut gathered) = (matrix.get(), [0_u8; SEGMENT * size_of::<f32>()]);
        let mut sum = 0_u64;
        for row in task * ROWS..matrix.rows.min((task + 1) * ROWS) {
            for column in (0..matrix.columns).step_by(SEGMENT) {
                let count = SEGMENT.min(matrix.columns - column);
                // SAFETY: the caller vouches for the elements and the tier; the buffer holds a segment.
                let hash = unsafe {
                    let bytes = matrix.dense(row, column, count, gathered.as_mut_ptr());
                    (kernels.passes.hash)(bytes, count * size)
                };
                sum = sum.wrapping_add(summand(hash, (first_row + row) as u64, column));
            }
        }
        total.fetch_add(sum, Ordering::Relaxed); // wraps around, as `wrapping_add` does
    });
    total.into_inner()
}

/// A matrix that several threads read.
struct Shared(Matrix);

impl Shared {
    fn get(&self) -> &Matrix {
        &self.0
    }
}

// SAFETY: the memory is borrowed by the caller for as long as the matrix is shared, and is only read.
unsafe impl Sync for Shared {}
