//! The strings of an Arrow array.

use std::ffi::c_void;

use infer_accel_tensor::ErrorKind;

use super::broken;
use super::interface::{ArrayStruct, Extent, SchemaStruct};
use crate::errors::NativeError;

/// How an array's strings lie in its buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// `utf8`: offsets of 32 bits.
    Short,
    /// `large_utf8`: offsets of 64 bits.
    Large,
    /// `utf8_view`: a place and a length each, short strings in place.
    View,
}

impl Kind {
    pub(super) fn of(schema: &SchemaStruct) -> Result<Self, NativeError> {
        match schema.format() {
            _ if schema.is_dictionary() => Err(wrong_type("a dictionary; cast it to strings first")),
            "u" => Ok(Self::Short),
            "U" => Ok(Self::Large),
            "vu" => Ok(Self::View),
            format @ ("z" | "Z" | "vz") => Err(wrong_type(&format!(
                "binary data (format {format:?}); decode or cast it to strings first"
            ))),
            format => Err(wrong_type(&format!("format {format:?}; for a table pass one of its columns"))),
        }
    }
}

fn wrong_type(what: &str) -> NativeError {
    let message =
        format!("Arrow data of strings (utf8, large_utf8, utf8_view) is expected, and this is {what}");
    NativeError::new(ErrorKind::DType, "tokenizer.not_text", message)
}

/// Appends the strings of an array, in order.
pub(super) fn append<'a>(
    array: &'a ArrayStruct,
    kind: Kind,
    texts: &mut Vec<&'a str>,
) -> Result<(), NativeError> {
    let extent = array.extent()?;
    let buffers = array.buffers();
    if extent.length == 0 {
        return Ok(());
    }
    let base = texts.len();
    if array.may_have_nulls() {
        refuse_nulls(buffers.first().copied(), &extent, base)?;
    }
    texts.reserve(extent.length);
    let mut push = |index: usize, bytes: &'a [u8]| {
        let text = std::str::from_utf8(bytes).map_err(|error| invalid(base + index, &error))?;
        texts.push(text);
        Ok(())
    };
    match (kind, buffers) {
        (Kind::Short, &[_, offsets, data]) => {
            // SAFETY: the buffers of an array of this format, which live as long as the array, by the interface.
            unsafe { each::<i32>(Offsets { offsets, data }, &extent, &mut push) }
        }
        (Kind::Large, &[_, offsets, data]) => {
            // SAFETY: as above.
            unsafe { each::<i64>(Offsets { offsets, data }, &extent, &mut push) }
        }
        (Kind::View, &[_, places, ref data @ .., sizes]) => {
            // SAFETY: as above.
            unsafe { each_view(Views { places, data, sizes }, &extent, &mut push) }
        }
        (kind, buffers) => Err(broken(format!("{} buffers came for {kind:?} strings", buffers.len()))),
    }
}

fn refuse_nulls(validity: Option<*const c_void>, extent: &Extent, base: usize) -> Result<(), NativeError> {
    let Some(bits) = validity.filter(|bits| !bits.is_null()) else { return Ok(()) };
    let is_valid = |index: usize| {
        let place = extent.first + index;
        // SAFETY: a bit for each value, by the interface.
        let byte = unsafe { bits.cast::<u8>().add(place / 8).read() };
        byte >> (place % 8) & 1 == 1
    };
    match (0..extent.length).find(|&index| !is_valid(index)) {
        None => Ok(()),
        Some(index) => Err(NativeError::new(
            ErrorKind::DType,
            "tokenizer.null_text",
            format!(
                "the text at position {} is null, which has no tokens; fill or drop nulls first",
                base + index
            ),
        )),
    }
}

fn invalid(position: usize, error: &std::str::Utf8Error) -> NativeError {
    broken(format!("the text at position {position} is no UTF-8: {error}"))
}

/// Where strings lie: one more offset than strings, and their bytes.
#[derive(Clone, Copy)]
struct Offsets {
    offsets: *const c_void,
    data: *const c_void,
}

/// # Safety
/// These are the buffers of an array of this extent with offsets of this type, and live as long as `'a`.
unsafe fn each<'a, T: Copy + Into<i64>>(
    Offsets { offsets, data }: Offsets,
    extent: &Extent,
    push: &mut impl FnMut(usize, &'a [u8]) -> Result<(), NativeError>,
) -> Result<(), NativeError> {
    if offsets.is_null() {
        return Err(broken("strings without offsets came"));
    }
    let offset = |index: usize| {
        // SAFETY: an offset for each string and one at the end; nothing is said about how they are aligned.
        let offset = unsafe { offsets.cast::<T>().add(extent.first + index).read_unaligned() };
        usize::try_from(offset.into()).map_err(|_| broken(format!("a negative offset came at {index}")))
    };
    let mut start = offset(0)?;
    for index in 0..extent.length {
        let end = offset(index + 1)?;
        if end < start {
            return Err(broken(format!("the string at position {index} ends before it begins")));
        }
        // SAFETY: the offsets are in order, and lie in the data by the producer's word.
        push(index, unsafe { part(data, start, end - start) }?)?;
        start = end;
    }
    Ok(())
}

/// Where strings lie: a view for each, buffers of bytes, and how long those are.
#[derive(Clone, Copy)]
struct Views<'a> {
    places: *const c_void,
    data: &'a [*const c_void],
    sizes: *const c_void,
}

/// The most bytes that lie in a view itself.
const INLINE: usize = 12;
/// Bytes of a view: the length, then the string, or four of its bytes, the buffer and the offset.
const VIEW: usize = 16;

/// # Safety
/// These are the buffers of an array of this extent, and live as long as `'a`.
unsafe fn each_view<'a>(
    Views { places, data, sizes }: Views<'a>,
    extent: &Extent,
    push: &mut impl FnMut(usize, &'a [u8]) -> Result<(), NativeError>,
) -> Result<(), NativeError> {
    if places.is_null() || (!data.is_empty() && sizes.is_null()) {
        return Err(broken("views without their buffers came"));
    }
    for index in 0..extent.length {
        // SAFETY: a view for each string.
        let view = unsafe { places.cast::<u8>().add((extent.first + index) * VIEW) };
        // SAFETY: 16 bytes, of which these are four.
        let number = |at: usize| i64::from(unsafe { view.add(at).cast::<i32>().read_unaligned() });
        let out = || broken(format!("the view at position {index} lies outside of its buffers"));
        let length = usize::try_from(number(0)).map_err(|_| out())?;
        if length <= INLINE {
            // SAFETY: so many bytes of the view itself.
            push(index, unsafe { std::slice::from_raw_parts(view.add(4), length) })?;
            continue;
        }
        let (buffer, start) = (usize::try_from(number(8)), usize::try_from(number(12)));
        let (Ok(buffer), Ok(start)) = (buffer, start) else { return Err(out()) };
        let Some(&bytes) = data.get(buffer) else { return Err(out()) };
        // SAFETY: a size for each buffer of bytes.
        let size = unsafe { sizes.cast::<i64>().add(buffer).read_unaligned() };
        if usize::try_from(size).is_ok_and(|size| start + length <= size) {
            // SAFETY: inside the buffer, as its size says.
            push(index, unsafe { part(bytes, start, length) }?)?;
        } else {
            return Err(out());
        }
    }
    Ok(())
}

/// # Safety
/// So many bytes lie there, unless there are none, and live as long as `'a`.
unsafe fn part<'a>(data: *const c_void, start: usize, length: usize) -> Result<&'a [u8], NativeError> {
    if length == 0 {
        return Ok(&[]);
    }
    if data.is_null() {
        return Err(broken("strings without their bytes came"));
    }
    // SAFETY: by the caller's word; Arrow's data never changes, by its format.
    Ok(unsafe { std::slice::from_raw_parts(data.cast::<u8>().add(start), length) })
}
