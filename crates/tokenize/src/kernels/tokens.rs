//! Writing the bytes of tokens, one after the other, without a branch on how long each of them is.
#![allow(unsafe_code)]

/// Bytes of an entry.
const WIDTH: usize = 16;
/// The longest token that an entry holds.
pub(crate) const LONGEST: usize = WIDTH - 1;

/// A token's bytes and, in the last place, how many they are: one access to memory for most tokens of any text.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(16))]
pub(crate) struct ShortToken([u8; WIDTH]);

impl ShortToken {
    /// Stands for what is not to be written like others.
    pub(crate) const OTHER: Self = Self([u8::MAX; WIDTH]);

    /// [`Self::OTHER`] for tokens of more than [`LONGEST`] bytes.
    pub(crate) fn new(token: &[u8]) -> Self {
        let mut bytes = [0; WIDTH];
        let Some(room) = bytes[..LONGEST].get_mut(..token.len()) else { return Self::OTHER };
        room.copy_from_slice(token);
        bytes[LONGEST] = token.len() as u8;
        Self(bytes)
    }
}

/// Appends the bytes of tokens up to the first one that is [`ShortToken::OTHER`] or lies beyond the table; returns how
/// many were written. Each is written at full width, and what is superfluous overwritten by the next one.
pub(crate) fn append_short(table: &[ShortToken], ids: &[u32], out: &mut Vec<u8>) -> usize {
    out.reserve(ids.len() * WIDTH);
    let room = out.spare_capacity_mut();
    let (mut filled, mut done) = (0, 0);
    for id in ids {
        let Some(ShortToken(bytes)) = table.get(*id as usize) else { break };
        let length = usize::from(bytes[LONGEST]);
        if length > LONGEST {
            break;
        }
        let Some(slots) = room.get_mut(filled..).and_then(|room| room.first_chunk_mut::<WIDTH>()) else {
            break;
        };
        *slots = bytes.map(std::mem::MaybeUninit::new);
        filled += length;
        done += 1;
    }
    // SAFETY: `filled` bytes after the length are written: each token wrote 16 and moved on by 15 at most.
    unsafe { out.set_len(out.len() + filled) }
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_stand_one_after_the_other() {
        let texts: [&[u8]; 5] = [b"a", b"", b"fifteen letters", b"0123456789abcdef", b"\xff\xc3"];
        let table = texts.map(ShortToken::new);
        let mut out = b"before ".to_vec();
        assert_eq!(append_short(&table, &[2, 0, 1, 4, 0, 3, 0], &mut out), 5);
        assert_eq!(out, b"before fifteen lettersa\xff\xc3a");
        assert_eq!(append_short(&table, &[3], &mut out), 0);
        assert_eq!(append_short(&table, &[0, 5, 0], &mut out), 1);
        assert_eq!(append_short(&table, &[u32::MAX], &mut out), 0);
        assert_eq!(append_short(&[], &[0], &mut out), 0);
        assert_eq!(out, b"before fifteen lettersa\xff\xc3aa");
        let mut many = Vec::new();
        assert_eq!(append_short(&table, &[2; 1000], &mut many), 1000);
        assert_eq!(many, b"fifteen letters".repeat(1000));
    }
}
