//! How a residue is stored.

use super::{AdapterDigest, Residue};
use crate::{Error, kernels};
use infer_accel_tensor::DType;

/// An element that rounding `W′ − Δ` does not give back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exception {
    /// Its place in a dense weight.
    pub(crate) index: u64,
    /// What must be added to the bits that come back, wrapped around at the width of the format.
    pub(crate) difference: u32,
}

/// `IAresid`, and the version of the layout.
const MAGIC: [u8; 8] = *b"IAresid\x01";

/// Bytes before the entries.
pub(super) const HEADER_BYTES: usize = 72;

/// The most bytes of a stored number: 64 bits by seven.
const NUMBER_BYTES: usize = 10;

/// The three formats, by their stored code.
const FORMATS: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

fn code(dtype: DType) -> u8 {
    FORMATS.iter().position(|&format| format == dtype).unwrap_or_default() as u8
}

/// Appends a number, seven bits a byte.
fn put(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

/// Takes a number from the front.
fn take(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0_u64;
    for at in 0..NUMBER_BYTES {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        let bits = u64::from(byte & 0x7f);
        if at == NUMBER_BYTES - 1 && bits > 1 {
            return None;
        }
        number |= bits << (7 * at);
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

/// A difference of bits as a number that is small if the bits are neighbours.
fn fold(difference: u32, dtype: DType) -> u64 {
    let signed = if dtype == DType::F32 {
        difference.cast_signed()
    } else {
        i32::from((difference as u16).cast_signed())
    };
    u64::from((signed << 1 ^ signed >> 31).cast_unsigned())
}

/// The inverse of [`fold`]; `None` for a number that no difference gives.
fn unfold(number: u64, dtype: DType) -> Option<u32> {
    let number = u32::try_from(number).ok()?;
    let signed = (number >> 1).cast_signed() ^ -(number & 1).cast_signed();
    if dtype == DType::F32 {
        return Some(signed.cast_unsigned());
    }
    i16::try_from(signed).ok().map(|small| u32::from(small.cast_unsigned()))
}

/// Appends exceptions whose indices rise; `next` is the first index that has not been passed.
pub(super) fn append(entries: &mut Vec<u8>, next: &mut u64, exceptions: &[Exception], dtype: DType) {
    for exception in exceptions {
        put(entries, exception.index - *next);
        put(entries, fold(exception.difference, dtype));
        *next = exception.index + 1;
    }
}

/// The exceptions in stored bytes; ends at the first that is damaged.
pub(super) struct Entries<'a> {
    bytes: &'a [u8],
    dtype: DType,
    next: u64,
}

impl<'a> Entries<'a> {
    pub(super) fn new(bytes: &'a [u8], dtype: DType) -> Self {
        Self { bytes, dtype, next: 0 }
    }

    /// Whether all bytes were understood.
    fn is_done(&self) -> bool {
        self.bytes.is_empty()
    }
}

impl Iterator for Entries<'_> {
    type Item = Exception;

    fn next(&mut self) -> Option<Exception> {
        let mut bytes = self.bytes;
        let index = self.next.checked_add(take(&mut bytes)?)?;
        let difference = unfold(take(&mut bytes)?, self.dtype)?;
        self.next = index.checked_add(1)?;
        self.bytes = bytes;
        Some(Exception { index, difference })
    }
}

fn damaged(problem: &'static str) -> Error {
    Error::ResidueFormat { problem }
}

/// The checksum of a header without its checksum, and of the entries.
fn checksum(header: &[u8], entries: &[u8]) -> u64 {
    kernels::mix(kernels::bytes_digest(header) ^ kernels::mix(kernels::bytes_digest(entries)))
}

impl Residue {
    /// The residue as bytes, to be stored.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.nbytes());
        bytes.extend(MAGIC);
        bytes.extend(self.revision.to_le_bytes());
        bytes.extend([code(self.base), code(self.merged), 0, 0]);
        let sides = self.shape.map(|side| side as u64);
        let numbers =
            [sides[0], sides[1], self.adapter.0, self.weight, self.count, self.entries.len() as u64];
        bytes.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
        let sum = checksum(&bytes, &self.entries);
        bytes.extend(sum.to_le_bytes());
        bytes.extend(&self.entries);
        bytes
    }

    /// The residue that was stored.
    ///
    /// # Errors
    ///
    /// [`Error::ResidueFormat`] for bytes that [`Self::to_bytes`] did not give, or that were changed since.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Error> {
        let (header, entries) =
            bytes.split_at_checked(HEADER_BYTES).ok_or(damaged("it is shorter than its header"))?;
        let (magic, mut rest) = header.split_at(MAGIC.len());
        if magic != MAGIC {
            return Err(damaged("it does not begin with the mark of a residue of this layout"));
        }
        let mut number = |size: usize| {
            let (field, left) = rest.split_at(size.min(rest.len()));
            rest = left;
            field.iter().rev().fold(0_u64, |number, &byte| number << 8 | u64::from(byte))
        };
        let (revision, formats) = (number(4) as u32, [number(1), number(1)]);
        let reserved = number(2);
        let (sides, adapter, weight) = ([number(8), number(8)], AdapterDigest(number(8)), number(8));
        let (count, length, sum) = (number(8), number(8), number(8));
        if length != entries.len() as u64 {
            return Err(damaged("it is shorter or longer than its header says: it was cut off, or added to"));
        }
        if sum != checksum(&header[..HEADER_BYTES - 8], entries) || reserved != 0 {
            return Err(damaged("its checksum is wrong: bytes were changed"));
        }
        let format = |code: u64| FORMATS.get(code as usize).copied();
        let (Some(base), Some(merged)) = (format(formats[0]), format(formats[1])) else {
            return Err(damaged("it names an unknown number format"));
        };
        let elements = sides[0].checked_mul(sides[1]);
        let (Ok(rows), Ok(columns), Some(elements)) =
            (usize::try_from(sides[0]), usize::try_from(sides[1]), elements)
        else {
            return Err(damaged("its shape has more elements than can be counted"));
        };
        let mut all = Entries::new(entries, base);
        let (mut found, mut last) = (0, None);
        for exception in all.by_ref() {
            found += 1;
            last = Some(exception.index);
        }
        if !all.is_done() || found != count || last.is_some_and(|index| index >= elements) {
            return Err(damaged("its entries are not those that its header promises"));
        }
        let shape = [rows, columns];
        Ok(Self { revision, base, merged, shape, adapter, weight, count, entries: entries.to_vec() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn residue(exceptions: &[Exception], base: DType, shape: [usize; 2]) -> Residue {
        let (mut entries, mut next) = (Vec::new(), 0);
        append(&mut entries, &mut next, exceptions, base);
        let (adapter, count) = (AdapterDigest(7), exceptions.len() as u64);
        Residue { revision: 1, base, merged: DType::F32, shape, adapter, weight: 9, count, entries }
    }

    /// The bytes of a residue whose checksum is right, whatever else is wrong.
    fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
        let sum = checksum(&bytes[..HEADER_BYTES - 8], &bytes[HEADER_BYTES..]);
        bytes[HEADER_BYTES - 8..HEADER_BYTES].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    proptest! {
        #[test]
        fn what_is_stored_comes_back(
            gaps in prop::collection::vec((0_u64..100_000, any::<u32>()), 0..50),
            base in prop_oneof![Just(DType::F32), Just(DType::F16), Just(DType::BF16)],
        ) {
            let (mut index, mut exceptions) = (0, Vec::new());
            for (gap, difference) in gaps {
                let difference = if base == DType::F32 { difference } else { difference & 0xffff };
                exceptions.push(Exception { index: index + gap, difference });
                index += gap + 1;
            }
            let stored = residue(&exceptions, base, [5_000, 1_001]);
            let back = Residue::from_bytes(&stored.to_bytes()).unwrap();
            prop_assert_eq!(&back, &stored);
            let all: Vec<Exception> = Entries::new(&back.entries, base).collect();
            prop_assert_eq!(all, exceptions);
        }

        /// A changed byte is noticed, wherever it is, and so is a missing end.
        #[test]
        fn damage_is_noticed(at: prop::sample::Index, change in 1_u8.., cut: prop::sample::Index) {
            let exceptions: Vec<Exception> =
                (0..40).map(|step| Exception { index: step * step * 7, difference: 1 << (step % 16) }).collect();
            let bytes = residue(&exceptions, DType::BF16, [200, 100]).to_bytes();
            let mut changed = bytes.clone();
            changed[at.index(bytes.len())] ^= change;
            let refused = |bytes: &[u8]| matches!(Residue::from_bytes(bytes), Err(Error::ResidueFormat { .. }));
            prop_assert!(refused(&changed));
            prop_assert!(refused(&bytes[..cut.index(bytes.len())]));
        }

        /// Bytes of somebody who knows the checksum: refused, or a residue whose entries lie inside the weight.
        #[test]
        fn forged_entries_do_no_harm(
            entries in prop::collection::vec(any::<u8>(), 0..60),
            fields in prop::collection::vec(any::<u64>(), 6),
            formats in (any::<u8>(), any::<u8>()),
        ) {
            let mut bytes = residue(&[], DType::F16, [10, 10]).to_bytes();
            bytes[12] = formats.0 % 4;
            bytes[13] = formats.1 % 4;
            for (at, field) in fields.iter().enumerate() {
                let small = if field % 3 == 0 { *field } else { field % 64 };
                bytes[16 + 8 * at..24 + 8 * at].copy_from_slice(&small.to_le_bytes());
            }
            bytes[56..64].copy_from_slice(&(entries.len() as u64).to_le_bytes());
            bytes.extend(&entries);
            if let Ok(residue) = Residue::from_bytes(&sealed(bytes)) {
                let elements = residue.shape[0] as u64 * residue.shape[1] as u64;
                prop_assert!(residue.entries().all(|(index, _)| index < elements));
                prop_assert_eq!(residue.entries().count() as u64, residue.count);
            }
        }
    }
}
