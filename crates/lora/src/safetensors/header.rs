//! The header of a safetensors file, from bytes of unknown origin.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Error as _, MapAccess, Visitor};

use super::StoredType;
use crate::problem::{Problem, ProblemCode};

/// How much a header may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the header.
    pub header_bytes: u64,
    /// Tensors in the file.
    pub tensors: usize,
}

impl Limits {
    /// For the shards of a checkpoint: the format's own limit of bytes, and a million tensors.
    pub const CHECKPOINT: Self = Self { header_bytes: 100_000_000, tensors: 1 << 20 };
    /// For an adapter: 64 Ki tensors, some thirty times a large one.
    pub const ADAPTER: Self = Self { header_bytes: 100_000_000, tensors: 1 << 16 };
}

impl Default for Limits {
    fn default() -> Self {
        Self::CHECKPOINT
    }
}

/// One tensor of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorEntry {
    /// Its name.
    pub name: String,
    /// Its number format.
    pub dtype: StoredType,
    /// Entries of each axis.
    pub shape: Vec<usize>,
    /// Its bytes, counted from the first byte of the file.
    pub range: Range<u64>,
}

impl TensorEntry {
    /// Its length in bytes.
    pub fn byte_len(&self) -> u64 {
        self.range.end - self.range.start
    }
}

/// What a file holds, and where.
#[derive(Clone, Debug, Default)]
pub struct Header {
    entries: Vec<TensorEntry>,
    by_name: HashMap<String, usize>,
    metadata: Vec<(String, String)>,
    data_start: u64,
    file_len: u64,
}

/// Bytes of the length before the header.
pub(super) const PREFIX: u64 = 8;

impl Header {
    /// Parses the JSON of a header, given the length of the whole file. Refused: a name twice, an unknown format
    /// or field, data that overlaps or leaves a gap, shapes that do not fit their bytes, and whatever `limits` forbid.
    pub fn parse(json: &[u8], file_len: u64, limits: &Limits) -> Result<Self, Problem> {
        let refuse = |message: String| Problem::new(ProblemCode::Header, "", message);
        if json.len() as u64 > limits.header_bytes {
            return Err(too_large(json.len() as u64, limits));
        }
        if json.first() != Some(&b'{') {
            return Err(refuse("the header does not begin with '{'; this is no safetensors file".to_owned()));
        }
        let mut deserializer = serde_json::Deserializer::from_slice(json);
        let raw = RawHeaderSeed { tensors: limits.tensors }
            .deserialize(&mut deserializer)
            .and_then(|raw| deserializer.end().map(|()| raw))
            .map_err(|error| refuse(format!("the header cannot be read: {error}")))?;
        if let Some(problem) = raw.problem {
            return Err(problem);
        }
        let data_start = PREFIX + json.len() as u64;
        let mut header = Self { metadata: raw.metadata, data_start, file_len, ..Self::default() };
        for (name, entry) in raw.entries {
            header.entries.push(checked(name, &entry, data_start)?);
        }
        header.entries.sort_by_key(|entry| (entry.range.start, entry.range.end));
        header.check_places()?;
        header.by_name =
            header.entries.iter().enumerate().map(|(index, entry)| (entry.name.clone(), index)).collect();
        Ok(header)
    }

    /// The tensors, in the order of their data.
    pub fn entries(&self) -> &[TensorEntry] {
        &self.entries
    }

    /// A tensor by its name.
    pub fn get(&self, name: &str) -> Option<&TensorEntry> {
        self.by_name.get(name).and_then(|&index| self.entries.get(index))
    }

    /// What the writer noted, in the order of the file.
    pub fn metadata(&self) -> &[(String, String)] {
        &self.metadata
    }

    /// Where the data begin, from the first byte of the file.
    pub fn data_start(&self) -> u64 {
        self.data_start
    }

    /// Bytes of the whole file.
    pub fn file_len(&self) -> u64 {
        self.file_len
    }

    fn check_places(&self) -> Result<(), Problem> {
        let mut end = self.data_start;
        for entry in &self.entries {
            let start = entry.range.start;
            if start != end {
                let fault =
                    if start < end { "overlaps the tensor before it" } else { "leaves a gap before it" };
                return Err(Problem::new(
                    ProblemCode::Offsets,
                    &entry.name,
                    format!(
                        "its data at {} {fault}, which ends at {}; data must lie without gaps",
                        start - self.data_start,
                        end - self.data_start
                    ),
                ));
            }
            end = entry.range.end;
        }
        let (needed, present) = (end - self.data_start, self.file_len.saturating_sub(self.data_start));
        if needed > present {
            return Err(Problem::new(
                ProblemCode::Truncated,
                "",
                format!(
                    "the header describes {needed} bytes of data, but the file has {present}: fetch it again"
                ),
            ));
        }
        if needed < present {
            return Err(Problem::new(
                ProblemCode::Offsets,
                "",
                format!(
                    "the header describes {needed} bytes of data, but the file has {present}: bytes that no tensor owns"
                ),
            ));
        }
        Ok(())
    }
}

/// The fault of a header of `bytes` bytes.
pub(super) fn too_large(bytes: u64, limits: &Limits) -> Problem {
    let message = format!(
        "a header of {bytes} bytes came; at most {} are allowed. A safetensors file begins with this number: is it one?",
        limits.header_bytes
    );
    Problem::new(ProblemCode::Size, "", message)
}

fn checked(name: String, raw: &RawEntry<'_>, data_start: u64) -> Result<TensorEntry, Problem> {
    let Some(dtype) = StoredType::from_name(raw.dtype) else {
        let known: Vec<&str> = StoredType::ALL.iter().map(|dtype| dtype.name()).collect();
        let message = format!(
            "dtype {:?} came; the format has: {}",
            raw.dtype.escape_debug().to_string(),
            known.join(", ")
        );
        return Err(Problem::new(ProblemCode::DType, name, message));
    };
    let [start, end] = raw.data_offsets;
    let expected = dtype.byte_len(&raw.shape);
    let shape: Option<Vec<usize>> = raw.shape.iter().map(|&extent| usize::try_from(extent).ok()).collect();
    let (Some(expected), Some(shape)) = (expected, shape) else {
        let message =
            format!("{dtype} of shape {:?} is larger than any memory, or ends within a byte", raw.shape);
        return Err(Problem::new(ProblemCode::Size, name, message));
    };
    if end.checked_sub(start) != Some(expected) {
        let message =
            format!("{dtype} of shape {shape:?} takes {expected} bytes, but its data are {start}..{end}");
        return Err(Problem::new(ProblemCode::Offsets, name, message));
    }
    let (Some(start), Some(end)) = (start.checked_add(data_start), end.checked_add(data_start)) else {
        return Err(Problem::new(ProblemCode::Offsets, name, "its data lie beyond any file"));
    };
    Ok(TensorEntry { name, dtype, shape, range: start..end })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEntry<'a> {
    dtype: &'a str,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

#[derive(Default)]
struct RawHeader<'a> {
    entries: Vec<(String, RawEntry<'a>)>,
    metadata: Vec<(String, String)>,
    /// A fault that is named better than a parser's error could.
    problem: Option<Problem>,
}

struct RawHeaderSeed {
    tensors: usize,
}

impl<'de> DeserializeSeed<'de> for RawHeaderSeed {
    type Value = RawHeader<'de>;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for RawHeaderSeed {
    type Value = RawHeader<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut header = RawHeader::default();
        let mut seen = std::collections::HashSet::new();
        while let Some(name) = map.next_key::<String>()? {
            if !seen.insert(name.clone()) {
                let problem = Problem::new(ProblemCode::Duplicate, &name, "the header has this name twice");
                header.problem.get_or_insert(problem);
            } else if seen.len() > self.tensors.saturating_add(1) {
                let message =
                    format!("the header has more than {} tensors, which is the limit", self.tensors);
                header.problem.get_or_insert_with(|| Problem::new(ProblemCode::Size, "", message));
            } else if name == "__metadata__" {
                header.metadata = map.next_value::<Metadata>()?.0;
                continue;
            }
            if header.problem.is_some() {
                map.next_value::<serde::de::IgnoredAny>()?;
                continue;
            }
            let entry = map.next_value().map_err(|error| A::Error::custom(format!("{name:?}: {error}")))?;
            header.entries.push((name, entry));
        }
        if header.problem.is_none() && header.entries.len() > self.tensors {
            let message = format!("the header has more than {} tensors, which is the limit", self.tensors);
            header.problem = Some(Problem::new(ProblemCode::Size, "", message));
        }
        Ok(header)
    }
}

struct Metadata(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Notes;
        impl<'de> Visitor<'de> for Notes {
            type Value = Metadata;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of texts")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Metadata, A::Error> {
                let mut notes: Vec<(String, String)> = Vec::new();
                let mut seen = std::collections::HashSet::new();
                while let Some((key, value)) = map.next_entry::<String, String>()? {
                    if !seen.insert(key.clone()) {
                        return Err(A::Error::custom(format!("__metadata__ has {key:?} twice")));
                    }
                    notes.push((key, value));
                }
                Ok(Metadata(notes))
            }
        }
        deserializer.deserialize_map(Notes)
    }
}
