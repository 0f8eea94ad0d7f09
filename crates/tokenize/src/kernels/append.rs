//! Writing ids of which each span has a few, without a branch on how many.
#![allow(unsafe_code)]

/// Ids that a span has at most.
pub(crate) const HELD: usize = 4;

/// Appends the first `count` ids of each span; no count is above [`HELD`]. All four are written whatever the count, and the
/// superfluous ones overwritten by the next span's.
#[inline(always)]
pub(crate) fn append_held(ids: &[[u32; HELD]], counts: &[u8], out: &mut Vec<u32>) {
    out.reserve(ids.len() * HELD);
    let room = out.spare_capacity_mut();
    let mut filled = 0;
    for (ids, count) in ids.iter().zip(counts) {
        let Some(slots) = room.get_mut(filled..filled + HELD) else { break };
        for (slot, id) in slots.iter_mut().zip(ids) {
            slot.write(*id);
        }
        filled += usize::from(*count).min(HELD);
    }
    // SAFETY: `filled` elements after the length are written: each span wrote four and moved on by four at most.
    unsafe { out.set_len(out.len() + filled) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_as_counted_in_order() {
        let ids = [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12], [13, 14, 15, 16]];
        let mut out = vec![0];
        append_held(&ids, &[4, 0, 1, 2], &mut out);
        assert_eq!(out, [0, 1, 2, 3, 4, 9, 13, 14]);
        append_held(&ids, &[200, 1], &mut out);
        assert_eq!(out[8..], [1, 2, 3, 4, 5]);
    }
}
