//! Lists of ids that are too long for an entry of the cache: a ring, whose oldest lists give way to new ones.

/// The ring, and how much was ever written to it.
pub(crate) struct Side {
    ring: Box<[u32]>,
    written: u64,
}

impl Side {
    /// A ring of `len` ids.
    pub(crate) fn new(len: usize) -> Self {
        Self { ring: vec![0; len].into_boxed_slice(), written: 0 }
    }

    /// Keeps the ids and returns where; `None` if they are more than a quarter of the ring.
    pub(crate) fn keep(&mut self, ids: &[u32]) -> Option<u64> {
        let len = self.ring.len();
        if ids.len() > len / 4 {
            return None;
        }
        let place = (self.written % len as u64) as usize;
        // A list lies in one piece: what is left of the ring before its beginning stays unused.
        let skipped = if place + ids.len() > len { len - place } else { 0 };
        let start = self.written + skipped as u64;
        let place = (place + skipped) % len;
        self.ring.get_mut(place..place + ids.len())?.copy_from_slice(ids);
        self.written = start + ids.len() as u64;
        Some(start)
    }

    /// The `count` ids that were kept at `start`, unless others have taken their place since.
    pub(crate) fn get(&self, start: u64, count: usize) -> Option<&[u32]> {
        let len = self.ring.len() as u64;
        // Whatever lies less than a ring behind the end is there still.
        let age = self.written.checked_sub(start)?;
        let place = (start % len) as usize;
        (count as u64 <= age && age <= len).then(|| self.ring.get(place..place + count))?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_come_back_until_others_take_their_place() {
        for len in [8, 9, 64, 1000] {
            let mut side = Side::new(len);
            let mut kept: Vec<(u64, Vec<u32>)> = Vec::new();
            for number in 0..2000_u32 {
                let ids: Vec<u32> =
                    (0..=number * 7 % (len as u32 / 4 - 1).max(1)).map(|id| number * 100 + id).collect();
                let start = side.keep(&ids).unwrap();
                kept.push((start, ids));
                assert_eq!(side.get(start, kept.last().unwrap().1.len()), Some(&*kept.last().unwrap().1));
                for (start, ids) in kept.iter().rev().take(50) {
                    assert!(side.get(*start, ids.len()).is_none_or(|found| found == ids));
                }
            }
            assert_eq!(side.get(kept[0].0, kept[0].1.len()), None);
            assert_eq!(side.keep(&vec![0; len / 4 + 1]), None);
            assert_eq!(side.get(u64::MAX, 1), None);
        }
    }
}
