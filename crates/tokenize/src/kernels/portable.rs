//! The tier that every processor runs.

use super::{BLOCK, Lanes, Masks};

pub(crate) struct Portable;

impl Lanes for Portable {
    const MOVES_BITS: bool = false;

    fn classify(bytes: &[u8; BLOCK]) -> Masks {
        let mut masks = Masks::default();
        for (place, byte) in bytes.iter().enumerate() {
            let bit = |member: bool| u64::from(member) << place;
            masks.upper |= bit(byte.is_ascii_uppercase());
            masks.lower |= bit(byte.is_ascii_lowercase());
            masks.number |= bit(byte.is_ascii_digit());
            masks.space |= bit(matches!(byte, b'\t'..=b'\r' | b' '));
            masks.line_break |= bit(matches!(byte, b'\r' | b'\n'));
            masks.blank |= bit(*byte == b' ');
            masks.apostrophe |= bit(*byte == b'\'');
            masks.slash |= bit(*byte == b'/');
            masks.control |= bit(byte.is_ascii_control() && !matches!(byte, b'\t'..=b'\r'));
            masks.non_ascii |= bit(!byte.is_ascii());
        }
        masks
    }

    fn gather_bits(value: u64, places: u64) -> u64 {
        let (mut places, mut gathered, mut next) = (places, 0, 0);
        while places != 0 {
            gathered |= (value >> places.trailing_zeros() & 1) << next;
            places &= places - 1;
            next += 1;
        }
        gathered
    }

    fn scatter_bits(value: u64, places: u64) -> u64 {
        let (mut places, mut scattered, mut next) = (places, 0, 0);
        while places != 0 {
            scattered |= (value >> next & 1) << places.trailing_zeros();
            places &= places - 1;
            next += 1;
        }
        scattered
    }
}
