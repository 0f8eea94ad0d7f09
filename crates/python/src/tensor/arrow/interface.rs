//! The structures of the C data interface, and who releases them.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ops::Deref;
use std::ptr::NonNull;

use super::broken;
use crate::errors::NativeError;

#[repr(C)]
pub(super) struct SchemaStruct {
    format: *const c_char,
    name: *const c_char,
    metadata: *const c_char,
    flags: i64,
    num_children: i64,
    children: *mut *mut SchemaStruct,
    dictionary: *mut SchemaStruct,
    release: Option<unsafe extern "C" fn(*mut SchemaStruct)>,
    private_data: *mut c_void,
}

#[repr(C)]
pub(super) struct ArrayStruct {
    length: i64,
    null_count: i64,
    offset: i64,
    num_buffers: i64,
    num_children: i64,
    buffers: *const *const c_void,
    children: *mut *mut ArrayStruct,
    dictionary: *mut ArrayStruct,
    release: Option<unsafe extern "C" fn(*mut ArrayStruct)>,
    private_data: *mut c_void,
}

#[repr(C)]
pub(super) struct StreamStruct {
    get_schema: Option<unsafe extern "C" fn(*mut StreamStruct, *mut SchemaStruct) -> c_int>,
    get_next: Option<unsafe extern "C" fn(*mut StreamStruct, *mut ArrayStruct) -> c_int>,
    get_last_error: Option<unsafe extern "C" fn(*mut StreamStruct) -> *const c_char>,
    release: Option<unsafe extern "C" fn(*mut StreamStruct)>,
    private_data: *mut c_void,
}

/// A structure of the interface.
///
/// # Safety
/// All bits zero are a value of it, a released one.
pub(super) unsafe trait Release: Sized {
    fn is_released(&self) -> bool;
    /// Calls the producer's function, which leaves the structure as released.
    ///
    /// # Safety
    /// The structure came from a producer, and has not been moved out of.
    unsafe fn release(&mut self);
}

macro_rules! release {
    ($($structure:ty),*) => {$(
        // SAFETY: numbers, pointers and optional functions only.
        unsafe impl Release for $structure {
            fn is_released(&self) -> bool {
                self.release.is_none()
            }

            unsafe fn release(&mut self) {
                if let Some(release) = self.release {
                    // SAFETY: the producer's own function on its own structure, by the caller's word.
                    unsafe { release(self) };
                }
            }
        }
    )*};
}

release!(SchemaStruct, ArrayStruct, StreamStruct);

/// A structure that was moved here, and is released when it is dropped.
pub(super) struct Foreign<T: Release>(T);

// SAFETY: the interface lets any thread release what it was given, and what is read of an array never changes.
unsafe impl Send for Foreign<ArrayStruct> {}
// SAFETY: as above: shared references only read.
unsafe impl Sync for Foreign<ArrayStruct> {}

impl<T: Release> Foreign<T> {
    /// Moves a structure here and leaves a released one behind; `None` where it was released before.
    ///
    /// # Safety
    /// The pointer is that of such a structure, which nobody else uses meanwhile.
    pub(super) unsafe fn take(from: NonNull<T>) -> Option<Self> {
        // SAFETY: all bits zero are a value, by the trait; the rest is the caller's word.
        let taken = unsafe { from.replace(std::mem::zeroed()) };
        (!taken.is_released()).then_some(Self(taken))
    }

    /// What `fill` writes into an empty structure.
    fn filled(fill: impl FnOnce(*mut T) -> Result<(), NativeError>) -> Result<Self, NativeError> {
        // SAFETY: all bits zero are a value, by the trait.
        let mut structure = Self(unsafe { std::mem::zeroed() });
        fill(&raw mut structure.0)?;
        Ok(structure)
    }
}

impl<T: Release> Drop for Foreign<T> {
    fn drop(&mut self) {
        // SAFETY: it came from a producer and is still here; one that was never filled has no function to call.
        unsafe { self.0.release() };
    }
}

impl<T: Release> Deref for Foreign<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl SchemaStruct {
    /// The format of the values; empty where there is none.
    pub(super) fn format(&self) -> &str {
        if self.format.is_null() {
            return "";
        }
        // SAFETY: a text that ends with a zero and lives as long as the structure, by the interface.
        unsafe { CStr::from_ptr(self.format) }.to_str().unwrap_or_default()
    }

    /// Whether the values are places in a dictionary.
    pub(super) fn is_dictionary(&self) -> bool {
        !self.dictionary.is_null()
    }
}

impl Foreign<StreamStruct> {
    pub(super) fn schema(&mut self) -> Result<Foreign<SchemaStruct>, NativeError> {
        let Some(get) = self.0.get_schema else { return Err(broken("a stream without a schema came")) };
        let stream = &raw mut self.0;
        // SAFETY: the producer's own function on its own stream, and room for what it returns.
        Foreign::filled(|schema| self.checked(unsafe { get(stream, schema) }))
    }

    /// The next array, or `None` at the end.
    pub(super) fn next_array(&mut self) -> Result<Option<Foreign<ArrayStruct>>, NativeError> {
        let Some(get) = self.0.get_next else { return Err(broken("a stream without arrays came")) };
        let stream = &raw mut self.0;
        // SAFETY: as for the schema.
        let array: Foreign<ArrayStruct> =
            Foreign::filled(|array| self.checked(unsafe { get(stream, array) }))?;
        Ok((!array.is_released()).then_some(array))
    }

    fn checked(&self, status: c_int) -> Result<(), NativeError> {
        if status == 0 {
            return Ok(());
        }
        let stream = (&raw const self.0).cast_mut();
        // SAFETY: the producer's own function on its own stream.
        let message = self.0.get_last_error.map(|get| unsafe { get(stream) }).filter(|text| !text.is_null());
        // SAFETY: a text that ends with a zero and lives until the next call, by the interface.
        let message = message.map(|text| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned());
        Err(broken(format!("the producer failed ({status}): {}", message.unwrap_or_default())))
    }
}

/// The counts of an array, which are no less than 0.
pub(super) struct Extent {
    pub(super) first: usize,
    pub(super) length: usize,
}

impl ArrayStruct {
    pub(super) fn extent(&self) -> Result<Extent, NativeError> {
        let (first, length) = (usize::try_from(self.offset), usize::try_from(self.length));
        match (first, length) {
            (Ok(first), Ok(length))
                if first.checked_add(length).is_some_and(|end| end < isize::MAX as usize / 16) =>
            {
                Ok(Extent { first, length })
            }
            _ => Err(broken(format!("an array of {} values from {} on came", self.length, self.offset))),
        }
    }

    /// Whether nulls are possible, as far as the producer knows.
    pub(super) fn may_have_nulls(&self) -> bool {
        self.null_count != 0
    }

    /// The addresses of the buffers.
    pub(super) fn buffers(&self) -> &[*const c_void] {
        let count = usize::try_from(self.num_buffers).unwrap_or(0);
        if self.buffers.is_null() || count == 0 {
            return &[];
        }
        // SAFETY: so many pointers, which live as long as the structure, by the interface.
        unsafe { std::slice::from_raw_parts(self.buffers, count) }
    }
}
