//! Looking up some spans in the hot table.

use infer_accel_tensor::simd::{Tier, tier};

use crate::bpe::key::{Key, key_at};
use crate::hot::HotTable;

/// Spans that are looked up together: a bit each.
pub(crate) const PART: usize = u64::BITS as usize;

/// What [`look`] found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Looked {
    /// Spans that are left to the tables below, a bit each.
    pub(crate) unknown: u64,
    /// Those among them that are known to be more than one id.
    pub(crate) several: u64,
    /// Ids of the others.
    pub(crate) count: usize,
}

/// Writes the key of each span, and the value that the table has for it, then zeros; spans lie between neighbours of `bounds`, of
/// which the first [`PART`] and one count. Where `IDS`, a span is known only if it is a single id, which the value
/// then holds; otherwise its number of ids is enough.
#[inline(always)]
pub(crate) fn look<const IDS: bool>(
    table: &HotTable,
    text: &[u8],
    bounds: &[usize],
    keys: &mut [Key; PART],
    values: &mut [u32; PART],
) -> Looked {
    look_with::<IDS>(tier(), table, text, bounds, keys, values)
}

/// [`look`] with a tier of the caller's choice, which must not be above the detected one.
#[inline(always)]
pub(crate) fn look_with<const IDS: bool>(
    tier: Tier,
    table: &HotTable,
    text: &[u8],
    bounds: &[usize],
    keys: &mut [Key; PART],
    values: &mut [u32; PART],
) -> Looked {
    #[cfg(target_arch = "x86_64")]
    if tier >= Tier::Avx512
        && let Some(looked) = super::look_avx512::look::<IDS>(table, text, bounds, keys, values)
    {
        return looked;
    }
    #[cfg(target_arch = "x86_64")]
    if tier >= Tier::Avx2 {
        return super::look_avx2::look::<IDS>(table, text, bounds, keys, values);
    }
    let _ = tier;
    portable::<IDS>(table, text, bounds, keys, values)
}

/// How many ids a span is known to have, by its value; 0 if it is not known well enough.
fn known<const IDS: bool>(value: u32) -> u32 {
    let count = value >> 24;
    if IDS { u32::from(count == 1) } else { count }
}

fn portable<const IDS: bool>(
    table: &HotTable,
    text: &[u8],
    bounds: &[usize],
    keys: &mut [Key; PART],
    values: &mut [u32; PART],
) -> Looked {
    let mut looked = Looked::default();
    values.fill(0);
    let slots = keys.iter_mut().zip(values);
    for (place, ((key, value), pair)) in slots.zip(bounds.windows(2)).enumerate() {
        *key = key_at(text, pair[0], pair[1]);
        *value = table.get(*key);
        let known = known::<IDS>(*value);
        looked.count += known as usize;
        looked.unknown |= u64::from(known == 0) << place;
        looked.several |= u64::from(known == 0 && *value != 0) << place;
    }
    looked
}

#[cfg(test)]
mod tests {
    use infer_accel_tensor::simd::available;

    use super::*;
    use crate::bpe::key::key_of;

    #[test]
    fn tiers_agree_at_every_length_and_place() {
        let text: Vec<u8> = (0..400_u32).map(|place| (place.wrapping_mul(place) >> 3) as u8).collect();
        let mut table = HotTable::new(64);
        for seed in 0..400_usize {
            let size = 1 + seed * 7 % 90;
            let text = &text[seed % 50..seed % 50 + size];
            let mut bounds = vec![0];
            while let Some(&last) = bounds.last().filter(|last| **last < size) {
                bounds.push(size.min(last + 1 + (last * 5 + seed) % (1 + seed % 23)));
            }
            let (mut expected, mut expected_values) = ([Key::default(); PART], [7; PART]);
            let known = portable::<true>(&table, text, &bounds, &mut expected, &mut expected_values);
            let counted = portable::<false>(&table, text, &bounds, &mut expected, &mut expected_values);
            for &tier in available() {
                let (mut keys, mut values) = ([Key::default(); PART], [7; PART]);
                let looked = look_with::<true>(tier, &table, text, &bounds, &mut keys, &mut values);
                assert_eq!((known, expected, expected_values), (looked, keys, values), "{tier}");
                (keys, values) = ([Key::default(); PART], [7; PART]);
                let looked = look_with::<false>(tier, &table, text, &bounds, &mut keys, &mut values);
                assert_eq!((counted, expected, expected_values), (looked, keys, values), "{tier}");
            }
            for pair in bounds.windows(2).step_by(2) {
                table.insert(key_of(&text[pair[0]..pair[1]]), (1 + seed as u32 % 3) << 24 | seed as u32);
            }
        }
    }
}
