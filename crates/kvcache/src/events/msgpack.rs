//! The few items of `MessagePack` that events are made of, each in its shortest form.
//!
//! Source: the `MessagePack` specification, "Formats".

pub(super) const NIL: u8 = 0xc0;

pub(super) fn push_nil(bytes: &mut Vec<u8>) {
    bytes.push(NIL);
}

pub(super) fn push_unsigned(bytes: &mut Vec<u8>, value: u64) {
    match value {
        0..0x80 => bytes.push(value as u8),
        0x80..0x100 => bytes.extend_from_slice(&[0xcc, value as u8]),
        0x100..0x1_0000 => {
            bytes.push(0xcd);
            bytes.extend_from_slice(&(value as u16).to_be_bytes());
        }
        0x1_0000..0x1_0000_0000 => {
            bytes.push(0xce);
            bytes.extend_from_slice(&(value as u32).to_be_bytes());
        }
        _ => {
            bytes.push(0xcf);
            bytes.extend_from_slice(&value.to_be_bytes());
        }
    }
}

/// A number below zero, `-1 - magnitude`; below -2⁶³ there is none, and the lowest one is written.
pub(super) fn push_negative(bytes: &mut Vec<u8>, magnitude: u64) {
    let value = -1 - i64::try_from(magnitude).unwrap_or(i64::MAX);
    let big_endian = value.to_be_bytes();
    let (tag, width) = match value {
        -32.. => {
            bytes.push(value as u8);
            return;
        }
        -0x80.. => (0xd0, 1),
        -0x8000.. => (0xd1, 2),
        -0x8000_0000.. => (0xd2, 4),
        _ => (0xd3, 8),
    };
    bytes.push(tag);
    bytes.extend_from_slice(&big_endian[8 - width..]);
}

pub(super) fn push_float(bytes: &mut Vec<u8>, value: f64) {
    bytes.push(0xcb);
    bytes.extend_from_slice(&value.to_be_bytes());
}

pub(super) fn push_text(bytes: &mut Vec<u8>, text: &[u8]) {
    if text.len() < 32 {
        bytes.push(0xa0 | text.len() as u8);
    } else {
        push_length(bytes, text.len(), [0xd9, 0xda, 0xdb]);
    }
    bytes.extend_from_slice(text);
}

pub(super) fn push_bytes(bytes: &mut Vec<u8>, value: &[u8]) {
    push_length(bytes, value.len(), [0xc4, 0xc5, 0xc6]);
    bytes.extend_from_slice(value);
}

pub(super) fn push_array_head(bytes: &mut Vec<u8>, len: usize) {
    match len {
        0..16 => bytes.push(0x90 | len as u8),
        16..0x1_0000 => {
            bytes.push(0xdc);
            bytes.extend_from_slice(&(len as u16).to_be_bytes());
        }
        _ => {
            bytes.push(0xdd);
            bytes.extend_from_slice(&(len as u32).to_be_bytes());
        }
    }
}

/// A length with the tag of its width.
fn push_length(bytes: &mut Vec<u8>, len: usize, tags: [u8; 3]) {
    match len {
        0..0x100 => bytes.extend_from_slice(&[tags[0], len as u8]),
        0x100..0x1_0000 => {
            bytes.push(tags[1]);
            bytes.extend_from_slice(&(len as u16).to_be_bytes());
        }
        _ => {
            bytes.push(tags[2]);
            bytes.extend_from_slice(&(len as u32).to_be_bytes());
        }
    }
}
