//! Passes over a stretch of a row: what happens between the inner products and the bits that are stored.
//!
//! Each is plain Rust that the compiler turns into vectors, once for each tier; every element is computed on its own
//! (or, in a sum, in a fixed part), so that all tiers give the same bits.

use super::CANONICAL_NAN;
use super::random::RowKey;
use super::storage::{Format, Storage};
use super::vector::Vector;

/// Partial sums of a long sum: element `j` of a row goes to part `j mod 16`.
pub(crate) const PARTS: usize = 16;

/// The sums of [`Passes::measure`] over a stretch of a row.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Measured {
    /// Elements whose value changed, bit for bit.
    pub(crate) changed: u64,
    /// Sum of the squares of the delta.
    pub(crate) squares: f64,
    /// Sum of the products of what changed and the delta.
    pub(crate) kept: f64,
    /// Largest magnitude of the delta.
    pub(crate) largest: f32,
}

/// Source, sums, scaling, target and the number of elements.
pub(crate) type AddStored = unsafe fn(*const u8, *const f32, f32, *mut u8, usize);

/// The passes of a tier. An array is indexed by [`Format`]; the last argument is the number of elements.
#[derive(Clone, Copy)]
pub(crate) struct Passes {
    /// Rounds binary32 numbers to storage, to nearest even; what is not a number becomes the canonical NaN.
    pub(crate) narrow: [unsafe fn(*const f32, *mut u8, usize); 3],
    /// What a plain merge does, in one pass: reads stored elements, adds `scaling · sums`, rounds to storage.
    pub(crate) add_stored: [AddStored; 3],
    /// The same with inner products in the order of a tile of the format, as [`Storage::load`] has it; `sums` is
    /// filled up to whole tiles.
    pub(crate) add_tiles: [AddStored; 3],
    /// `values = fma(scaling, sums, values)`.
    pub(crate) add_scaled: unsafe fn(*mut f32, *const f32, f32, usize),
    /// `values = factor · values`.
    pub(crate) multiply: unsafe fn(*mut f32, f32, usize),
    /// Moves values to a neighbour in a format, up or down by chance; the column of the first one decides the draw.
    pub(crate) dither: [unsafe fn(*mut f32, RowKey, u32, usize); 3],
    /// Adds squares to sixteen partial sums; the number of elements is a multiple of sixteen.
    pub(crate) squares: unsafe fn(*const f32, *mut [f32; PARTS], usize),
    /// Compares what was with what is and with the delta: before, after, delta.
    pub(crate) measure: unsafe fn(*const f32, *const f32, *const f32, usize) -> Measured,
    /// The hash of some bytes; see [`super::digest`].
    pub(crate) hash: unsafe fn(*const u8, usize) -> u64,
}

/// Makes the passes of a tier: a wrapper with the tier's instructions for each.
macro_rules! passes {
    ($vector:ty $(, #[$enable:meta])*) => {{
        use $crate::kernels::passes as plain;
        use $crate::kernels::random::RowKey;
        use $crate::kernels::storage::{Bf16, F16, F32, Storage};

        $(#[$enable])*
        unsafe fn narrow<S: Storage>(values: *const f32, target: *mut u8, count: usize) {
            // SAFETY: this function enables the tier; the caller vouches for the memory.
            unsafe { plain::narrow::<$vector, S>(values, target, count) }
        }
        $(#[$enable])*
        unsafe fn add_stored<S: Storage>(
            source: *const u8,
            sums: *const f32,
            scaling: f32,
            target: *mut u8,
            count: usize,
        ) {
            // SAFETY: as above.
            unsafe { plain::add_stored::<$vector, S>(source, sums, scaling, target, count) }
        }
        $(#[$enable])*
        unsafe fn add_tiles<S: Storage>(
            source: *const u8,
            sums: *const f32,
            scaling: f32,
            target: *mut u8,
            count: usize,
        ) {
            // SAFETY: as above.
            unsafe { plain::add_tiles::<$vector, S>(source, sums, scaling, target, count) }
        }
        $(#[$enable])*
        unsafe fn add_scaled(values: *mut f32, sums: *const f32, scaling: f32, count: usize) {
            // SAFETY: as above.
            unsafe { plain::add_scaled(values, sums, scaling, count) }
        }
        $(#[$enable])*
        unsafe fn multiply(values: *mut f32, factor: f32, count: usize) {
            // SAFETY: as above.
            unsafe { plain::multiply(values, factor, count) }
        }
        $(#[$enable])*
        unsafe fn dither<S: Storage>(values: *mut f32, key: RowKey, column: u32, count: usize) {
            // SAFETY: as above.
            unsafe { $crate::kernels::random::dither::<S>(values, key, column, count) }
        }
        $(#[$enable])*
        unsafe fn squares(values: *const f32, parts: *mut [f32; plain::PARTS], count: usize) {
            // SAFETY: as above.
            unsafe { plain::squares(values, parts, count) }
        }
        $(#[$enable])*
        unsafe fn measure(
            before: *const f32,
            after: *const f32,
            delta: *const f32,
            count: usize,
        ) -> plain::Measured {
            // SAFETY: as above.
            unsafe { plain::measure(before, after, delta, count) }
        }
        $(#[$enable])*
        unsafe fn hash(bytes: *const u8, count: usize) -> u64 {
            // SAFETY: as above.
            unsafe { $crate::kernels::digest::hash(bytes, count) }
        }
        plain::Passes {
            narrow: [narrow::<F32>, narrow::<F16>, narrow::<Bf16>],
            add_stored: [add_stored::<F32>, add_stored::<F16>, add_stored::<Bf16>],
            add_tiles: [add_tiles::<F32>, add_tiles::<F16>, add_tiles::<Bf16>],
            add_scaled,
            multiply,
            dither: [dither::<F32>, dither::<F16>, dither::<Bf16>],
            squares,
            measure,
            hash,
        }
    }};
}
pub(crate) use passes;

#[inline(always)]
fn canonical(value: f32) -> f32 {
    if value.is_nan() { CANONICAL_NAN } else { value }
}

/// The nearest bfloat16 of a number that is canonical if it is none.
#[inline(always)]
fn round_bf16(value: f32) -> u16 {
    let bits = canonical(value).to_bits();
    // Cannot wrap around: no number and not the canonical NaN has such bits.
    (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

/// See [`Passes::narrow`].
///
/// # Safety
///
/// The processor has the tier of `V`; `values` is readable and `target` writable for `count` elements, apart.
#[inline(always)]
pub(super) unsafe fn narrow<V: Vector, S: Storage>(values: *const f32, target: *mut u8, count: usize) {
    // SAFETY: the caller vouches for tier and memory; offsets stay below `count`.
    unsafe {
        match S::FORMAT {
            Format::F32 => {
                let target = target.cast::<f32>();
                for at in 0..count {
                    target.add(at).write_unaligned(canonical(*values.add(at)));
                }
            }
            Format::Bf16 => {
                let target = target.cast::<u16>();
                for at in 0..count {
                    target.add(at).write_unaligned(round_bf16(*values.add(at)));
                }
            }
            Format::F16 => {
                let target = target.cast::<u16>();
                let whole = count / V::LANES * V::LANES;
                for at in (0..whole).step_by(V::LANES) {
                    V::load(values.add(at)).canonical().store_f16(target.add(at));
                }
                if whole < count {
                    let (mut padded, mut rounded) = ([0.0_f32; PARTS], [0_u16; PARTS]);
                    values.add(whole).copy_to_nonoverlapping(padded.as_mut_ptr(), count - whole);
                    V::load(padded.as_ptr()).canonical().store_f16(rounded.as_mut_ptr());
                    rounded
                        .as_ptr()
                        .cast::<u8>()
                        .copy_to_nonoverlapping(target.add(whole).cast(), (count - whole) * size_of::<u16>());
                }
            }
        }
    }
}

/// See [`Passes::add_stored`].
///
/// # Safety
///
/// The processor has the tier of `V`; `source` and `sums` are readable and `target` writable for `count` elements,
/// and apart.
#[inline(always)]
pub(super) unsafe fn add_stored<V: Vector, S: Storage>(
    source: *const u8,
    sums: *const f32,
    scaling: f32,
    target: *mut u8,
    count: usize,
) {
    // SAFETY: the caller vouches for tier and memory; offsets stay below `count`.
    unsafe {
        match S::FORMAT {
            Format::F32 => {
                for at in 0..count {
                    let value = source.cast::<f32>().add(at).read_unaligned();
                    let value = scaling.mul_add(*sums.add(at), value);
                    target.cast::<f32>().add(at).write_unaligned(canonical(value));
                }
            }
            Format::Bf16 => {
                for at in 0..count {
                    let bits = source.cast::<u16>().add(at).read_unaligned();
                    let value = f32::from_bits(u32::from(bits) << 16);
                    let value = scaling.mul_add(*sums.add(at), value);
                    target.cast::<u16>().add(at).write_unaligned(round_bf16(value));
                }
            }
            Format::F16 => {
                let whole = count / V::LANES * V::LANES;
                for at in (0..whole).step_by(V::LANES) {
                    let values = V::load_f16(source.cast::<u16>().add(at));
                    let values = V::splat(scaling).mul_add(V::load(sums.add(at)), values);
                    values.canonical().store_f16(target.cast::<u16>().add(at));
                }
                let mut rest = [0.0_f32; PARTS];
                for (at, value) in rest.iter_mut().enumerate().take(count - whole) {
                    let before = S::FORMAT.read(source.add((whole + at) * S::SIZE));
                    *value = scaling.mul_add(*sums.add(whole + at), before);
                }
                narrow::<V, S>(rest.as_ptr(), target.add(whole * S::SIZE), count - whole);
            }
        }
    }
}

/// See [`Passes::add_tiles`].
///
/// # Safety
///
/// As [`add_stored`]; `sums` is readable for whole tiles.
#[inline(always)]
pub(super) unsafe fn add_tiles<V: Vector, S: Storage>(
    source: *const u8,
    sums: *const f32,
    scaling: f32,
    target: *mut u8,
    count: usize,
) {
    let width = 2 * V::LANES;
    let whole = count / width * width;
    // SAFETY: the caller vouches for tier and memory; offsets stay below `count`, and what is left over goes through
    // memory that holds the widest tile.
    unsafe {
        let factor = V::splat(scaling);
        for at in (0..whole).step_by(width) {
            add_tile::<V, S>(source.add(at * S::SIZE), sums.add(at), factor, target.add(at * S::SIZE));
        }
        if whole < count {
            let (mut stage, bytes) = ([0_u8; 4 * 2 * PARTS], (count - whole) * S::SIZE);
            let stage = stage.as_mut_ptr();
            stage.copy_from_nonoverlapping(source.add(whole * S::SIZE), bytes);
            add_tile::<V, S>(stage, sums.add(whole), factor, stage);
            target.add(whole * S::SIZE).copy_from_nonoverlapping(stage, bytes);
        }
    }
}

/// One tile of [`add_tiles`]. A function of its own, for closures are not always compiled for the tier.
///
/// # Safety
///
/// As [`add_tiles`], for one tile.
#[inline(always)]
unsafe fn add_tile<V: Vector, S: Storage>(source: *const u8, sums: *const f32, factor: V, target: *mut u8) {
    // SAFETY: the caller vouches for tier and memory.
    unsafe {
        let before = S::load::<V>(source);
        let sums = [V::load(sums), V::load(sums.add(V::LANES))];
        let mut after = [factor.mul_add(sums[0], before[0]), factor.mul_add(sums[1], before[1])];
        if V::any_nan(&[after]) {
            after = [after[0].canonical(), after[1].canonical()];
        }
        S::store::<V>(after, target);
    }
}

/// See [`Passes::add_scaled`].
///
/// # Safety
///
/// Both are readable, `values` writable, for `count` numbers, and apart.
#[inline(always)]
pub(super) unsafe fn add_scaled(values: *mut f32, sums: *const f32, scaling: f32, count: usize) {
    for at in 0..count {
        // SAFETY: the caller vouches for `count` numbers.
        unsafe { *values.add(at) = scaling.mul_add(*sums.add(at), *values.add(at)) };
    }
}

/// See [`Passes::multiply`].
///
/// # Safety
///
/// `values` is readable and writable for `count` numbers.
#[inline(always)]
pub(super) unsafe fn multiply(values: *mut f32, factor: f32, count: usize) {
    for at in 0..count {
        // SAFETY: the caller vouches for `count` numbers.
        unsafe { *values.add(at) *= factor };
    }
}

/// See [`Passes::squares`].
///
/// # Safety
///
/// `values` is readable for `count` numbers, a multiple of [`PARTS`]; `parts` is readable and writable.
#[inline(always)]
pub(super) unsafe fn squares(values: *const f32, parts: *mut [f32; PARTS], count: usize) {
    // SAFETY: the caller vouches for the memory.
    unsafe {
        let mut sums = *parts;
        for at in (0..count).step_by(PARTS) {
            let values = values.add(at).cast::<[f32; PARTS]>().read();
            for (sum, value) in sums.iter_mut().zip(values) {
                *sum = value.mul_add(value, *sum);
            }
        }
        *parts = sums;
    }
}

/// See [`Passes::measure`].
///
/// # Safety
///
/// All three are readable for `count` numbers.
#[inline(always)]
pub(super) unsafe fn measure(
    before: *const f32,
    after: *const f32,
    delta: *const f32,
    count: usize,
) -> Measured {
    let (mut squares, mut kept) = ([0.0_f32; PARTS], [0.0_f32; PARTS]);
    let (mut changed, mut largest) = ([0_u32; PARTS], [0.0_f32; PARTS]);
    let mut add = |part: usize, before: f32, after: f32, delta: f32| {
        squares[part] = delta.mul_add(delta, squares[part]);
        kept[part] = (after - before).mul_add(delta, kept[part]);
        changed[part] += u32::from(before.to_bits() != after.to_bits());
        let size = delta.abs();
        largest[part] = if size > largest[part] { size } else { largest[part] };
    };
    let whole = count / PARTS * PARTS;
    // SAFETY: the caller vouches for `count` numbers.
    unsafe {
        for at in (0..whole).step_by(PARTS) {
            let [before, after, delta] =
                [before, after, delta].map(|values| values.add(at).cast::<[f32; PARTS]>().read());
            for part in 0..PARTS {
                add(part, before[part], after[part], delta[part]);
            }
        }
        for at in whole..count {
            add(at - whole, *before.add(at), *after.add(at), *delta.add(at));
        }
    }
    Measured {
        changed: changed.iter().copied().map(u64::from).sum(),
        squares: squares.iter().copied().map(f64::from).sum(),
        kept: kept.iter().copied().map(f64::from).sum(),
        largest: largest.into_iter().fold(0.0, f32::max),
    }
}
