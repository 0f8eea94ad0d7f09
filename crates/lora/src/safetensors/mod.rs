//! Files of named tensors, read strictly: the format's rules hold to the letter, or the file is refused.
//!
//! * [`Header`]: names, formats, shapes and places of tensors, parsed from bytes of unknown origin.
//! * [`File`]: an open file with its header; tensors are read from it by position.
//! * [`header_bytes`]: the header of a file that is about to be written.
//!
//! The format: an 8-byte little-endian length, a JSON object of that length, and the data, without gaps. See
//! <https://github.com/huggingface/safetensors>.

mod file;
mod header;
mod stored;
mod write;

pub use file::{File, OpenOptions, open_plain};
pub use header::{Header, Limits, TensorEntry};
pub use stored::StoredType;
pub use write::{EntryPlan, header_bytes};
