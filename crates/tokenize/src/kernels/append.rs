//! Writing ids of which each span has a few, without a branch on how many.
#![allow(unsafe_code)]

use std::mem::MaybeUninit;
use std::ops::Range;

/// Ids that a span has at most.
pub(crate) const HELD: usize = 4;

/// Ids that [`append_runs`] copies together.
const WIDTH: usize = 8;
/// Ids that must follow the last one of a run.
pub(crate) const PADDING: usize = WIDTH - 1;

/// Where a value has the number of ids; the first id is below.
pub(crate) const COUNT_SHIFT: u32 = 24;
const ID: u32 = (1 << COUNT_SHIFT) - 1;

/// Appends what each of `spans` has: the id in its value, or for `others`, which are in order, as many of its `ids` as the
/// value says. Runs between two others are copied eight at a time, and what is superfluous overwritten; `values` has
/// [`PADDING`] more than there are spans.
#[inline(always)]
pub(crate) fn append_runs(
    values: &[u32],
    ids: &[[u32; HELD]],
    others: impl Iterator<Item = usize>,
    spans: Range<usize>,
    out: &mut Vec<u32>,
) {
    out.reserve(spans.len() * HELD + PADDING);
    let room = out.spare_capacity_mut();
    let (mut filled, mut first) = (0, spans.start);
    for place in others {
        filled += copy_run(values, first..place, room.get_mut(filled..).unwrap_or_default());
        first = place + 1;
        let held = (ids.get(place), values.get(place), room.get_mut(filled..filled + HELD));
        if let (Some(ids), Some(value), Some(slots)) = held {
            for (slot, id) in slots.iter_mut().zip(ids) {
                slot.write(*id);
            }
            filled += ((value >> COUNT_SHIFT) as usize).min(HELD);
        }
    }
    filled += copy_run(values, first..spans.end, room.get_mut(filled..).unwrap_or_default());
    // SAFETY: `filled` elements after the length are written: each run wrote as many as it says, or more, and each other
    // span four, of which at most four count.
    unsafe { out.set_len(out.len() + filled) }
}

/// Writes the ids of a run, and up to [`PADDING`] more; returns how many of the run were written.
#[inline(always)]
fn copy_run(values: &[u32], run: Range<usize>, room: &mut [MaybeUninit<u32>]) -> usize {
    let count = run.len();
    let wanted = count.next_multiple_of(WIDTH);
    let (Some(from), Some(slots)) = (values.get(run.start..run.start + wanted), room.get_mut(..wanted))
    else {
        return 0;
    };
    for (slots, from) in slots.as_chunks_mut::<WIDTH>().0.iter_mut().zip(from.as_chunks::<WIDTH>().0) {
        *slots = from.map(|value| MaybeUninit::new(value & ID));
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_and_others_alternate() {
        let values: Vec<u32> =
            (0..40 + PADDING as u32).map(|place| ((place % 5) << COUNT_SHIFT) | place).collect();
        let ids = [[100, 101, 102, 103]; 40];
        for step in 1..41 {
            for spans in [0..40, 3..40, 7..23, 11..11, 39..40] {
                let others = || (0..40).step_by(step).filter(|place| spans.contains(place));
                let expected: Vec<u32> = spans
                    .clone()
                    .flat_map(|place| {
                        let count = place % 5;
                        if others().any(|other| other == place) {
                            ids[place][..count].to_vec()
                        } else {
                            vec![place as u32]
                        }
                    })
                    .collect();
                let mut out = vec![7];
                append_runs(&values, &ids, others(), spans.clone(), &mut out);
                assert_eq!(out[1..], expected);
            }
        }
    }
}
