//! The header of a file that is about to be written.

use std::collections::BTreeMap;

use serde_json::json;

use super::StoredType;

/// A tensor that is going to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryPlan {
    /// Its name.
    pub name: String,
    /// Its number format.
    pub dtype: StoredType,
    /// Entries of each axis.
    pub shape: Vec<usize>,
}

impl EntryPlan {
    /// Its length in bytes; `None` where no memory could hold it.
    pub fn byte_len(&self) -> Option<u64> {
        let shape: Vec<u64> = self.shape.iter().map(|&extent| extent as u64).collect();
        self.dtype.byte_len(&shape)
    }
}

/// The length, the JSON and the padding that come before the data of these tensors, which must then be written in
/// this order, without gaps. The data begin at a multiple of 8 bytes. `None` where the lengths overflow.
pub fn header_bytes(entries: &[EntryPlan], metadata: &BTreeMap<String, String>) -> Option<Vec<u8>> {
    let mut json = String::from("{");
    if !metadata.is_empty() {
        json.push_str("\"__metadata__\":");
        json.push_str(&json!(metadata).to_string());
    }
    let mut start = 0_u64;
    for entry in entries {
        let end = start.checked_add(entry.byte_len()?)?;
        if json.len() > 1 {
            json.push(',');
        }
        let fields = json!({"dtype": entry.dtype.name(), "shape": entry.shape, "data_offsets": [start, end]});
        json.push_str(&json!(entry.name).to_string());
        json.push(':');
        json.push_str(&fields.to_string());
        start = end;
    }
    json.push('}');
    while !json.len().is_multiple_of(8) {
        json.push(' ');
    }
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(json.as_bytes());
    Some(bytes)
}
