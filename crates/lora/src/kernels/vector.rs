//! What the micro-kernels ask of a register: the tile logic is written once over this trait, and each tier
//! supplies the thin wrappers.

/// A register of binary32 lanes.
///
/// Every method is `unsafe` for one reason: an implementation may be made of instructions that only some
/// processors have. A caller must have checked for the tier, or run inside a function that enables it. Methods
/// that take a pointer moreover read or write exactly the elements that they name, at any alignment.
pub(crate) trait Vector: Copy {
    /// Number of lanes.
    const LANES: usize;

    /// Every lane holds `value`, bit for bit.
    unsafe fn splat(value: f32) -> Self;

    /// Reads `LANES` numbers.
    unsafe fn load(source: *const f32) -> Self;

    /// Writes `LANES` numbers.
    unsafe fn store(self, target: *mut f32);

    /// `self · factor + addend` in each lane, rounded once.
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self;

    /// `self + other` in each lane.
    unsafe fn add(self, other: Self) -> Self;

    /// Whether a lane of any of the registers is not a number.
    unsafe fn any_nan(pairs: &[[Self; 2]]) -> bool;

    /// Replaces what is not a number by the positive quiet NaN without payload.
    unsafe fn canonical(self) -> Self;

    /// Reads `LANES` binary16 numbers.
    unsafe fn load_f16(source: *const u16) -> Self;

    /// Writes `LANES` binary16 numbers, rounded to nearest even. Lanes that are not numbers must be canonical.
    unsafe fn store_f16(self, target: *mut u16);

    /// Reads `LANES` bfloat16 numbers.
    unsafe fn load_bf16(source: *const u16) -> Self;

    /// Reads `2 · LANES` bfloat16 numbers: those at even places, and those at odd places. Splitting them so costs
    /// one shift and one mask, where keeping them in order costs a shuffle each.
    unsafe fn load_bf16_split(source: *const u16) -> [Self; 2];

    /// The inverse of [`Self::load_bf16_split`], rounded to nearest even. Lanes that are not numbers must be
    /// canonical.
    unsafe fn store_bf16_split(split: [Self; 2], target: *mut u16);

    /// The even lanes and the odd lanes of two registers in order.
    unsafe fn split(ordered: [Self; 2]) -> [Self; 2];

    /// The inverse of [`Self::split`].
    unsafe fn join(split: [Self; 2]) -> [Self; 2];

    /// The same address, of which the compiler no longer knows that it is the same.
    #[inline(always)]
    fn alias(address: *const u8) -> *const u8 {
        address
    }

    /// Reads 32 bytes of each of eight rows and writes the words transposed: word `w` of row `r` goes to
    /// `words[w · stride + r]`.
    unsafe fn transpose_words(rows: &[*const u8; 8], words: *mut u32, stride: usize);

    /// Asks for the cache line of an address, which need not be valid.
    unsafe fn prefetch(address: *const u8);
}

/// The dot product of pairs, the instruction `vdpbf16ps`.
pub(crate) trait PairDot: Vector {
    /// Each lane of `factor` and `other` holds two bfloat16 numbers. Adds to `sums` the product of the upper
    /// numbers, rounds, adds the product of the lower numbers, rounds. Subnormal numbers, wherever they appear,
    /// count as zero.
    unsafe fn pair_dot(factor: Self, other: Self, sums: Self) -> Self;
}

/// One step of an inner product: what a packed value is, and how it is accumulated.
pub(crate) trait Product<V: Vector> {
    /// Adds `factor · other` to `sums`.
    unsafe fn accumulate(factor: V, other: V, sums: V) -> V;
}

/// A step takes one rank; packed values are binary32.
pub(crate) struct Fused;

impl<V: Vector> Product<V> for Fused {
    #[inline(always)]
    unsafe fn accumulate(factor: V, other: V, sums: V) -> V {
        // SAFETY: the caller vouches for the tier.
        unsafe { factor.mul_add(other, sums) }
    }
}

/// A step takes two ranks; packed values are pairs of bfloat16.
pub(crate) struct Paired;

impl<V: PairDot> Product<V> for Paired {
    #[inline(always)]
    unsafe fn accumulate(factor: V, other: V, sums: V) -> V {
        // SAFETY: the caller vouches for the tier.
        unsafe { V::pair_dot(factor, other, sums) }
    }
}
