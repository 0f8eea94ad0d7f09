//! What depends on the processor or on memory: classifying 64 bytes at a time, asking for memory ahead of use, tables
//! in huge pages, ids and bytes of tokens written without a branch.
//!
//! The portable tier is the specification; the tests hold the others against it.

mod append;
#[cfg(target_arch = "x86_64")]
mod avx2;
mod look;
#[cfg(target_arch = "x86_64")]
mod look_avx2;
mod portable;
mod prefetch;
mod table;
mod tokens;
mod utf8;

use crate::pretokenize::block::{self, Starts};
use crate::pretokenize::grammar::Grammar;
pub(crate) use append::{COUNT_SHIFT, HELD, PADDING, append_runs};
use infer_accel_tensor::simd::{Tier, tier};
pub(crate) use look::{PART, look};
pub(crate) use prefetch::prefetch;
pub(crate) use table::Table;
pub(crate) use tokens::{ShortToken, append_short};
pub use utf8::text_of;

/// Bytes that are classified together.
pub(crate) const BLOCK: usize = 64;

/// Bit i of each mask says whether byte i is in the class. Bytes above 0x7f are only in `non_ascii`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Masks {
    pub(crate) upper: u64,
    pub(crate) lower: u64,
    pub(crate) number: u64,
    /// All white space, line breaks included.
    pub(crate) space: u64,
    pub(crate) line_break: u64,
    /// U+0020 alone.
    pub(crate) blank: u64,
    pub(crate) apostrophe: u64,
    pub(crate) slash: u64,
    /// What is neither printed nor white space.
    pub(crate) control: u64,
    pub(crate) non_ascii: u64,
}

impl Masks {
    /// The bytes of ASCII that are no letter, number, white space or control character.
    #[inline(always)]
    pub(crate) fn symbols(&self) -> u64 {
        !(self.upper | self.lower | self.number | self.space | self.control | self.non_ascii)
    }
}

/// The operations of a tier.
pub(crate) trait Lanes {
    /// Whether [`Self::gather_bits`] and [`Self::scatter_bits`] are cheap.
    const MOVES_BITS: bool;
    fn classify(bytes: &[u8; BLOCK]) -> Masks;
    /// The bits of `value` at the set places of `places`, moved together at the low end.
    fn gather_bits(value: u64, places: u64) -> u64;
    /// The inverse: the low bits of `value`, moved to the set places of `places`.
    fn scatter_bits(value: u64, places: u64) -> u64;
}

/// Work that does the same on every tier, only faster.
///
/// Not a closure: that would be a function of its own, compiled without the features of the one that calls it, and what is
/// compiled for fewer features is only inlined where the compiler thinks it small.
pub(crate) trait Work {
    type Outcome;
    /// Each implementation is `#[inline(always)]`, and so is what it calls.
    fn run(self) -> Self::Outcome;
}

/// Runs the work, compiled for the best tier.
#[inline(always)]
pub(crate) fn with_best_tier<W: Work>(work: W) -> W::Outcome {
    #[cfg(target_arch = "x86_64")]
    if tier() >= Tier::Avx2 {
        return avx2::run(work);
    }
    work.run()
}

/// Finds the next span starts with the best tier; see [`block::fill`].
pub(crate) fn fill<G: Grammar>(text: &[u8], starts: &mut Starts) {
    fill_with::<G>(tier(), text, starts);
}

/// [`fill`] with a tier of the caller's choice, which must not be above the detected one.
pub(crate) fn fill_with<G: Grammar>(tier: Tier, text: &[u8], starts: &mut Starts) {
    #[cfg(target_arch = "x86_64")]
    if tier >= Tier::Avx2 {
        return avx2::fill::<G>(text, starts);
    }
    let _ = tier;
    block::fill::<G, portable::Portable>(text, starts);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn avx2_classifies_as_the_portable_tier() {
        if infer_accel_tensor::simd::detected() < Tier::Avx2 {
            return;
        }
        for shift in 0..=u8::MAX {
            let mut bytes = [0; BLOCK];
            for (place, byte) in bytes.iter_mut().enumerate() {
                *byte = (place as u8).wrapping_mul(5).wrapping_add(shift);
            }
            assert_eq!(avx2::plain::classify(&bytes), portable::Portable::classify(&bytes));
            let places = u64::from_le_bytes(bytes[..8].try_into().unwrap());
            let value = u64::from_le_bytes(bytes[8..16].try_into().unwrap());
            let expected = portable::Portable::gather_bits(value, places);
            assert_eq!(avx2::plain::gather_bits(value, places), expected);
            assert_eq!(
                avx2::plain::scatter_bits(value, places),
                portable::Portable::scatter_bits(value, places)
            );
        }
    }
}
