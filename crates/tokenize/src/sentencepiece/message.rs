//! Protocol Buffers' wire format, as much of it as a model file needs.
//!
//! Source: <https://protobuf.dev/programming-guides/encoding/>

use crate::error::{Result, TokenizeError};

/// The value of a field.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Value<'m> {
    Number(u64),
    Bytes(&'m [u8]),
    Four([u8; 4]),
    Eight,
}

/// The fields of a message, in order, as number and value.
pub(crate) struct Fields<'m> {
    rest: &'m [u8],
}

impl<'m> Fields<'m> {
    pub(crate) fn new(message: &'m [u8]) -> Self {
        Self { rest: message }
    }

    fn take(&mut self, length: u64) -> Result<&'m [u8]> {
        let within = usize::try_from(length).ok().filter(|length| *length <= self.rest.len());
        let Some(length) = within else {
            return Err(TokenizeError::malformed(format!(
                "SentencePiece model: a field of {length} bytes, but {} are left; the file is cut off or damaged",
                self.rest.len()
            )));
        };
        let (taken, rest) = self.rest.split_at(length);
        self.rest = rest;
        Ok(taken)
    }

    fn varint(&mut self) -> Result<u64> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let Some((&byte, rest)) = self.rest.split_first() else {
                return Err(TokenizeError::malformed("SentencePiece model: it ends inside a number"));
            };
            self.rest = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(TokenizeError::malformed("SentencePiece model: a number of more than 64 bits"))
    }

    /// The next field, or `None` at the end.
    pub(crate) fn next(&mut self) -> Result<Option<(u64, Value<'m>)>> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        let value = match key & 7 {
            0 => Value::Number(self.varint()?),
            1 => self.take(8).map(|_| Value::Eight)?,
            2 => {
                let length = self.varint()?;
                Value::Bytes(self.take(length)?)
            }
            5 => Value::Four(self.take(4)?.first_chunk().copied().unwrap_or_default()),
            kind => {
                return Err(TokenizeError::malformed(format!(
                    "SentencePiece model: a field of the wire type {kind}; 0, 1, 2 and 5 are known"
                )));
            }
        };
        Ok(Some((key >> 3, value)))
    }
}

/// Reads the fields of a message one by one; `visit` gets number and value.
pub(crate) fn each_field<'m>(
    message: &'m [u8],
    mut visit: impl FnMut(u64, Value<'m>) -> Result<()>,
) -> Result<()> {
    let mut fields = Fields::new(message);
    while let Some((number, value)) = fields.next()? {
        visit(number, value)?;
    }
    Ok(())
}

impl<'m> Value<'m> {
    fn wrong(self, name: &str, wanted: &str) -> TokenizeError {
        TokenizeError::malformed(format!("SentencePiece model: {name} is {self:.40?} instead of {wanted}"))
    }

    pub(crate) fn bytes(self, name: &str) -> Result<&'m [u8]> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            _ => Err(self.wrong(name, "a message or a string")),
        }
    }

    pub(crate) fn text(self, name: &str) -> Result<&'m str> {
        std::str::from_utf8(self.bytes(name)?).map_err(|_| self.wrong(name, "UTF-8 text"))
    }

    pub(crate) fn number(self, name: &str) -> Result<u64> {
        match self {
            Self::Number(number) => Ok(number),
            _ => Err(self.wrong(name, "a number")),
        }
    }

    pub(crate) fn flag(self, name: &str) -> Result<bool> {
        self.number(name).map(|number| number != 0)
    }

    pub(crate) fn float(self, name: &str) -> Result<f32> {
        match self {
            Self::Four(bytes) => Ok(f32::from_le_bytes(bytes)),
            _ => Err(self.wrong(name, "a float")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(message: &[u8]) -> Result<Vec<(u64, Value<'_>)>> {
        let mut found = Vec::new();
        each_field(message, |number, value| {
            found.push((number, value));
            Ok(())
        })?;
        Ok(found)
    }

    #[test]
    fn every_kind_of_field_is_read() {
        let message =
            [0x08, 0x96, 0x01, 0x12, 2, b'h', b'i', 0x1d, 0, 0, 0x80, 0x3f, 0x21, 0, 0, 0, 0, 0, 0, 0, 0];
        let found = all(&message).unwrap();
        let expected = [
            (1, Value::Number(150)),
            (2, Value::Bytes(b"hi")),
            (3, Value::Four([0, 0, 0x80, 0x3f])),
            (4, Value::Eight),
        ];
        assert_eq!(found, expected);
        assert!((found[2].1.float("score").unwrap() - 1.0).abs() < f32::EPSILON);
        assert!(found[0].1.text("x").is_err() && found[1].1.number("x").is_err());
    }

    #[test]
    fn what_is_cut_off_or_absurd_is_refused() {
        let huge = [0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01, 1];
        let endless = [0x08; 1].into_iter().chain([0xff; 11]).collect::<Vec<u8>>();
        for message in [&[0x0a, 5, 1][..], &[0x80], &[0x0b], &[0x0d, 1, 2], &huge, &endless] {
            assert!(matches!(all(message), Err(TokenizeError::Malformed { .. })), "{message:?}");
        }
    }
}
