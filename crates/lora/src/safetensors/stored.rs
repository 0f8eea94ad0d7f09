//! Number formats that a file can name, among them some that nothing here computes with.

use std::fmt;

use infer_accel_tensor::DType;

macro_rules! stored_types {
    ($($(#[$doc:meta])* $variant:ident $name:literal $bits:literal $dtype:expr;)*) => {
        /// A number format of a safetensors file. Those without a [`dtype`](StoredType::dtype) are carried as bytes.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum StoredType {
            $($(#[$doc])* $variant,)*
        }

        impl StoredType {
            /// Every format, in the order of their definition.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The name in the file.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// Bits of one element.
            pub const fn bits(self) -> u64 {
                match self { $(Self::$variant => $bits,)* }
            }

            /// The format in which this library computes with it, if it does.
            pub const fn dtype(self) -> Option<DType> {
                match self { $(Self::$variant => $dtype,)* }
            }

            /// The format of a name.
            pub fn from_name(name: &str) -> Option<Self> {
                match name { $($name => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

stored_types! {
    /// One byte, 0 or 1.
    Bool "BOOL" 8 Some(DType::Bool);
    /// OCP MX: 2 exponent bits, 1 mantissa bit, two to a byte.
    F4 "F4" 4 None;
    /// OCP MX: 2 exponent bits, 3 mantissa bits.
    F6E2M3 "F6_E2M3" 6 None;
    /// OCP MX: 3 exponent bits, 2 mantissa bits.
    F6E3M2 "F6_E3M2" 6 None;
    /// Unsigned 8-bit integer.
    U8 "U8" 8 Some(DType::U8);
    /// Signed 8-bit integer.
    I8 "I8" 8 Some(DType::I8);
    /// OCP 8-bit float, 5 exponent bits.
    F8E5M2 "F8_E5M2" 8 Some(DType::F8E5M2);
    /// OCP 8-bit float, 4 exponent bits, no infinity.
    F8E4M3 "F8_E4M3" 8 Some(DType::F8E4M3);
    /// A power of two: the scale of an OCP MX block.
    F8E8M0 "F8_E8M0" 8 None;
    /// 8-bit float of other hardware, 4 exponent bits, no negative zero.
    F8E4M3Fnuz "F8_E4M3FNUZ" 8 None;
    /// 8-bit float of other hardware, 5 exponent bits, no negative zero.
    F8E5M2Fnuz "F8_E5M2FNUZ" 8 None;
    /// Signed 16-bit integer.
    I16 "I16" 16 Some(DType::I16);
    /// Unsigned 16-bit integer.
    U16 "U16" 16 Some(DType::U16);
    /// IEEE 754 binary16.
    F16 "F16" 16 Some(DType::F16);
    /// The upper half of a binary32.
    BF16 "BF16" 16 Some(DType::BF16);
    /// Signed 32-bit integer.
    I32 "I32" 32 Some(DType::I32);
    /// Unsigned 32-bit integer.
    U32 "U32" 32 Some(DType::U32);
    /// IEEE 754 binary32.
    F32 "F32" 32 Some(DType::F32);
    /// Two binary32: real and imaginary part.
    C64 "C64" 64 None;
    /// IEEE 754 binary64.
    F64 "F64" 64 Some(DType::F64);
    /// Signed 64-bit integer.
    I64 "I64" 64 Some(DType::I64);
    /// Unsigned 64-bit integer.
    U64 "U64" 64 Some(DType::U64);
}

impl StoredType {
    /// The name under which a file holds a format of this library; every one has a name.
    pub const fn of(dtype: DType) -> Option<Self> {
        Some(match dtype {
            DType::F64 => Self::F64,
            DType::F32 => Self::F32,
            DType::F16 => Self::F16,
            DType::BF16 => Self::BF16,
            DType::F8E4M3 => Self::F8E4M3,
            DType::F8E5M2 => Self::F8E5M2,
            DType::I64 => Self::I64,
            DType::I32 => Self::I32,
            DType::I16 => Self::I16,
            DType::I8 => Self::I8,
            DType::U64 => Self::U64,
            DType::U32 => Self::U32,
            DType::U16 => Self::U16,
            DType::U8 => Self::U8,
            DType::Bool => Self::Bool,
            _ => return None,
        })
    }

    /// Bytes of a tensor of this format; `None` where they overflow or end within a byte.
    pub fn byte_len(self, shape: &[u64]) -> Option<u64> {
        let elements = shape.iter().try_fold(1_u64, |product, &extent| product.checked_mul(extent))?;
        let bits = elements.checked_mul(self.bits())?;
        bits.is_multiple_of(8).then_some(bits / 8)
    }
}

impl fmt::Display for StoredType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_formats_round_trip() {
        for &stored in StoredType::ALL {
            assert_eq!(StoredType::from_name(stored.name()), Some(stored));
            if let Some(dtype) = stored.dtype() {
                assert_eq!(StoredType::of(dtype), Some(stored));
                assert_eq!(stored.bits(), dtype.size() as u64 * 8);
            }
        }
        assert_eq!(StoredType::from_name("F128"), None);
    }

    #[test]
    fn lengths_end_on_a_byte_and_do_not_wrap() {
        assert_eq!(StoredType::BF16.byte_len(&[3, 5]), Some(30));
        assert_eq!(StoredType::F32.byte_len(&[]), Some(4));
        assert_eq!(StoredType::F4.byte_len(&[3]), None);
        assert_eq!(StoredType::F6E2M3.byte_len(&[4]), Some(3));
        assert_eq!(StoredType::U8.byte_len(&[1 << 32, 1 << 32]), None);
        assert_eq!(StoredType::F64.byte_len(&[1 << 61]), None);
    }
}
