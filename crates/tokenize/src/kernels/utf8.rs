//! Code points to UTF-8.
#![allow(unsafe_code)] // one block, below: bytes that were just made from characters are not looked through again

/// Characters that are narrowed together where all of them are ASCII.
const RUN: usize = 256;
/// Characters that are looked at together where not all of them are.
const BLOCK: usize = 16;
/// The most bytes that a character takes.
const WIDEST: usize = 4;

/// Turns code points into a text, in the memory of `reused`, whose content goes.
///
/// Made for long texts that are ASCII but for a few characters: blocks of ASCII are narrowed at once.
///
/// # Errors
/// The place of the first code point that is no character (a surrogate, or above U+10FFFF).
pub fn text_of(code_points: &[u32], reused: String) -> Result<String, usize> {
    let mut bytes = reused.into_bytes();
    bytes.clear();
    bytes.reserve(code_points.len() + code_points.len() / 16);
    for (index, run) in code_points.chunks(RUN).enumerate() {
        if is_ascii(run) {
            bytes.extend(run.iter().map(|&code_point| code_point as u8));
        } else {
            append_run(run, &mut bytes).map_err(|place| index * RUN + place)?;
        }
    }
    // SAFETY: every byte was written above: code points below 0x80 as they are, which are characters of one byte, and
    // others by `char::encode_utf8`; each character whole.
    Ok(unsafe { String::from_utf8_unchecked(bytes) })
}

fn is_ascii(code_points: &[u32]) -> bool {
    code_points.iter().fold(0, |all, code_point| all | code_point) < 0x80
}

/// Appends characters that are not all ASCII; fails with the place of what is none.
fn append_run(run: &[u32], bytes: &mut Vec<u8>) -> Result<(), usize> {
    for (index, block) in run.chunks(BLOCK).enumerate() {
        if is_ascii(block) {
            bytes.extend(block.iter().map(|&code_point| code_point as u8));
        } else {
            append(block, bytes).map_err(|place| index * BLOCK + place)?;
        }
    }
    Ok(())
}

/// Appends at most [`BLOCK`] characters; fails with the place of what is none.
#[inline]
fn append(code_points: &[u32], bytes: &mut Vec<u8>) -> Result<(), usize> {
    let mut written = [0; BLOCK * WIDEST];
    let mut length = 0;
    for (place, &code_point) in code_points.iter().enumerate() {
        let character = char::from_u32(code_point).ok_or(place)?;
        if let Some(room) = written.get_mut(length..) {
            length += character.encode_utf8(room).len();
        }
    }
    bytes.extend_from_slice(written.get(..length).unwrap_or_default());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn characters_become_their_text(text in "\\PC{0,60}[ -~]{0,600}\\PC{0,20}", before in "\\PC{0,9}") {
            let code_points: Vec<u32> = text.chars().map(u32::from).collect();
            prop_assert_eq!(text_of(&code_points, before).unwrap(), text);
        }

        #[test]
        fn what_is_no_character_is_found(length in 0..700_usize, at in 0..700_usize, bad in 0xd800..0xe000_u32) {
            let mut code_points = vec![u32::from('é'); length];
            code_points.insert(at.min(length), bad);
            prop_assert_eq!(text_of(&code_points, String::new()), Err(at.min(length)));
            let last = code_points.len() - 1;
            code_points[at.min(length)] = 0x61;
            code_points[last] = 0x11_0000 + bad;
            prop_assert_eq!(text_of(&code_points, String::new()), Err(last));
        }
    }

    #[test]
    fn every_width_is_written() {
        let text: String = (0..=0x10_ffff).filter_map(char::from_u32).step_by(7).collect();
        let code_points: Vec<u32> = text.chars().map(u32::from).collect();
        assert_eq!(text_of(&code_points, String::new()).unwrap(), text);
    }
}
