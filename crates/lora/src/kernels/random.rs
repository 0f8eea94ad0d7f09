//! Random numbers that depend on a seed, a row and a column and on nothing else: whoever computes an element, in
//! whatever order, draws the same number for it.

/// The finalizer of `SplitMix64` (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
#[inline(always)]
pub(crate) const fn mix(value: u64) -> u64 {
    let value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}

/// The step of `SplitMix64`: 2⁶⁴ divided by the golden ratio.
pub(crate) const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// What the draws of a row depend on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowKey {
    low: u32,
    high: u32,
}

impl RowKey {
    /// The key of a row, counted from the first row of the whole weight.
    pub(crate) fn new(seed: u64, row: u64) -> Self {
        let key = mix(mix(seed).wrapping_add(row.wrapping_add(1).wrapping_mul(STEP)));
        Self { low: key as u32, high: (key >> 32) as u32 }
    }

    /// The number of a column: 32 bits, of which the upper ones are the good ones. Two multiplications with a shift
    /// between them; the key comes in before each, so that rows are not shifted copies of each other.
    #[inline(always)]
    pub(crate) const fn draw(self, column: u32) -> u32 {
        let mixed = (column ^ self.low).wrapping_mul(0x7feb_352d);
        let mixed = (mixed ^ mixed >> 15).wrapping_add(self.high);
        mixed.wrapping_mul(0x846c_a68b)
    }
}
