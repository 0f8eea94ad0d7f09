//! What depends on the processor or on memory: classifying 64 bytes at a time, asking for memory ahead of use, tables
//! in huge pages, ids and bytes of tokens written without a branch.
//!
//! The portable tier is the specification; the tests hold the others against it.

mod append;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod look;
#[cfg(target_arch = "x86_64")]
mod look_avx2;
#[cfg(target_arch = "x86_64")]
mod look_avx512;
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

    /// Writes `base` and the place of each set bit added, in order. What stands behind them in `room` is lost.
    #[inline(always)]
    fn places(base: usize, bits: u64, room: &mut [usize; BLOCK]) {
        places(base, bits, room);
    }
}

/// [`Lanes::places`]: eight at a time, the superfluous ones overwritten later; no branch for each bit.
#[inline(always)]
fn places(base: usize, mut bits: u64, room: &mut [usize; BLOCK]) {
    for eight in room.as_chunks_mut::<8>().0 {
        for slot in eight {
            *slot = base + bits.trailing_zeros() as usize;
            bits &= bits.wrapping_sub(1);
        }
        if bits == 0 {
            break;
        }
    }
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
    if tier() >= Tier::Avx512 {
        return avx512::run(work);
    }
    with_avx2(work)
}

/// Runs the work, compiled for AVX2 where that is there: what wider vectors make no faster.
#[inline(always)]
pub(crate) fn with_avx2<W: Work>(work: W) -> W::Outcome {
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
    if tier >= Tier::Avx512 {
        return avx512::fill::<G>(text, starts);
    } else if tier >= Tier::Avx2 {
        return avx2::fill::<G>(text, starts);
    }
    let _ = tier;
    block::fill::<G, portable::Portable>(text, starts);
}

#[cfg(test)]
mod tests {
    use infer_accel_tensor::simd::available;
    use proptest::prelude::*;

    use super::*;
    use crate::pretokenize::grammar::{Cl100k, DeepSeek, Gpt2, Llama3, O200k};

    const PART_OF_TEXT: &str =
        "[a-zA-Z]{0,9}|[ \\t\\r\\n]{1,3}|[0-9]{1,7}|[ -/]{1,4}|.|[à-öА-я一-丁]{1,5}|'s|'LL|ſ";

    /// Where all spans of a text start, and the end of the last one.
    fn bounds(fill: impl Fn(&[u8], &mut Starts), text: &str) -> Vec<usize> {
        let (mut starts, mut all, mut at) = (Starts::new(), vec![0], 0);
        while at < text.len() {
            fill(&text.as_bytes()[at..], &mut starts);
            all.extend(starts.bounds()[1..].iter().map(|bound| at + bound));
            at = all[all.len() - 1];
        }
        all
    }

    fn check_tiers<G: Grammar>(text: &str) {
        let expected = bounds(|text, starts| fill_with::<G>(Tier::Portable, text, starts), text);
        for &tier in available() {
            assert_eq!(bounds(|text, starts| fill_with::<G>(tier, text, starts), text), expected, "{tier}");
        }
        #[cfg(target_arch = "x86_64")]
        if available().contains(&Tier::Avx512) {
            assert_eq!(bounds(avx512::plain::fill::<G>, text), expected, "AVX-512 without VBMI2");
        }
    }

    proptest! {
        #[test]
        fn tiers_split_alike(parts in prop::collection::vec(PART_OF_TEXT, 0..160)) {
            let text = parts.concat();
            check_tiers::<Cl100k>(&text);
            check_tiers::<Gpt2>(&text);
            check_tiers::<Llama3>(&text);
            check_tiers::<O200k>(&text);
            check_tiers::<DeepSeek>(&text);
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn tiers_classify_as_the_portable_one() {
        let detected = infer_accel_tensor::simd::detected();
        for shift in 0..=u8::MAX {
            let mut bytes = [0; BLOCK];
            for (place, byte) in bytes.iter_mut().enumerate() {
                *byte = (place as u8).wrapping_mul(5).wrapping_add(shift);
            }
            let masks = portable::Portable::classify(&bytes);
            let bits = u64::from_le_bytes(bytes[..8].try_into().unwrap());
            let value = u64::from_le_bytes(bytes[8..16].try_into().unwrap());
            if detected >= Tier::Avx2 {
                assert_eq!(avx2::plain::classify(&bytes), masks);
                let expected = portable::Portable::gather_bits(value, bits);
                assert_eq!(avx2::plain::gather_bits(value, bits), expected);
                assert_eq!(
                    avx2::plain::scatter_bits(value, bits),
                    portable::Portable::scatter_bits(value, bits)
                );
            }
            if detected >= Tier::Avx512 {
                assert_eq!(avx512::plain::classify(&bytes), masks);
                for bits in [bits, !bits, bits & value, u64::MAX, 1 << (shift % 64), 0] {
                    let count = bits.count_ones() as usize;
                    let mut expected = [0; BLOCK];
                    places(1000, bits, &mut expected);
                    assert!(expected[..count].iter().all(|place| bits >> (place - 1000) & 1 != 0));
                    let Some(got) = avx512::plain::places(1000, bits) else { continue };
                    assert_eq!(got[..count], expected[..count]);
                }
            }
        }
    }
}
