//! Extra keys as events carry them: untagged, in `MessagePack`.
//!
//! A block's hash contains `("lora", name, path)`, `("mm", identifier, offset)`, `("cache_salt", salt)` and
//! `("prompt_embeds", digest)`; its event says `name`, `(identifier, offset)`, `salt` and `digest`.

use super::msgpack;

/// An item of canonical CBOR: its major type, its argument, and what follows its head.
fn head(bytes: &[u8]) -> Option<(u8, u64, &[u8])> {
    let (first, rest) = bytes.split_first()?;
    let (major, tag) = (first >> 5, first & 0x1f);
    let width = match tag {
        0..24 => return Some((major, u64::from(tag), rest)),
        24 => 1,
        25 => 2,
        26 => 4,
        _ => 8,
    };
    let (argument, rest) = rest.split_at_checked(width)?;
    let argument = argument.iter().fold(0, |value, byte| value << 8 | u64::from(*byte));
    Some((major, argument, rest))
}

/// Writes the item that `bytes` begins with and returns what follows it.
fn push_item<'a>(out: &mut Vec<u8>, bytes: &'a [u8]) -> Option<&'a [u8]> {
    let (major, argument, mut rest) = head(bytes)?;
    match major {
        0 => msgpack::push_unsigned(out, argument),
        1 => msgpack::push_negative(out, argument),
        2 | 3 => {
            let (content, after) = rest.split_at_checked(argument as usize)?;
            let push = if major == 2 { msgpack::push_bytes } else { msgpack::push_text };
            push(out, content);
            rest = after;
        }
        4 => {
            msgpack::push_array_head(out, argument as usize);
            for _ in 0..argument {
                rest = push_item(out, rest)?;
            }
        }
        _ => out.push(match argument {
            20 => 0xc2,
            21 => 0xc3,
            _ => msgpack::NIL,
        }),
    }
    Some(rest)
}

/// Where the item ends that `bytes` begins with.
fn skip(bytes: &[u8]) -> Option<&[u8]> {
    push_item(&mut Vec::new(), bytes)
}

/// The text that `bytes` begins with, and what follows it.
fn text(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (major, length, rest) = head(bytes)?;
    if major == 3 { rest.split_at_checked(length as usize) } else { None }
}

/// Writes a block's keys without their tags. A key of a form that vLLM does not make is written as it is.
pub(super) fn push_untagged(out: &mut Vec<u8>, cbor: &[u8]) {
    let written = out.len();
    if untagged(out, cbor).is_none() {
        // Never so: the CBOR is this crate's own.
        out.truncate(written);
        msgpack::push_nil(out);
    }
}

fn untagged(out: &mut Vec<u8>, cbor: &[u8]) -> Option<()> {
    let (_, count, mut rest) = head(cbor)?;
    msgpack::push_array_head(out, count as usize);
    for _ in 0..count {
        let (major, length, items) = head(rest)?;
        let end = skip(rest)?;
        match text(items) {
            Some((b"mm", after)) if major == 4 && length > 1 => {
                msgpack::push_array_head(out, length as usize - 1);
                let mut item = after;
                for _ in 1..length {
                    item = push_item(out, item)?;
                }
            }
            Some((_, after)) if major == 4 && length > 1 => {
                push_item(out, after)?;
            }
            _ => {
                push_item(out, rest)?;
            }
        }
        rest = end;
    }
    Some(())
}

/// Writes the name in a block's `("lora", name, path)`, if it has one.
pub(super) fn push_adapter(out: &mut Vec<u8>, cbor: &[u8]) {
    let written = out.len();
    let found = || {
        let (_, count, mut rest) = head(cbor)?;
        for _ in 0..count {
            if let Some((4, 3, items)) = head(rest)
                && let Some((b"lora", after)) = text(items)
            {
                return push_item(out, after).map(|_| ());
            }
            rest = skip(rest)?;
        }
        None
    };
    if { found }().is_none() {
        out.truncate(written);
    }
}
