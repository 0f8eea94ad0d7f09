//! The small files of a checkpoint that say what is in the large ones: they change where a merge changes that.

use std::collections::BTreeMap;
use std::path::Path;

use infer_accel_tensor::DType;
use serde_json::Value;

use super::base::Base;
use super::error::CheckpointError;
use crate::adapter::{BaseIndex, BaseTensor};
use crate::safetensors::TensorEntry;

/// The model's configuration.
pub(super) const CONFIG: &str = "config.json";

/// Files whose text changes: their names, the text before and after.
pub(super) type Texts = BTreeMap<String, (Vec<u8>, Vec<u8>)>;

/// What a merge changes beside values.
#[derive(Default)]
pub(super) struct Changes {
    /// Whether any shard holds other formats, shapes or tensors than before.
    pub(super) headers: bool,
    /// Bytes of all tensors.
    pub(super) total_size: u64,
    /// The format of all floating-point tensors, if it changes.
    pub(super) dtype: Option<DType>,
    /// Tensors that were added, and their shards.
    pub(super) added: BTreeMap<String, String>,
}

/// The index of the output: byte for byte that of the base, where nothing in it changes.
pub(super) fn index(base: &Base, changes: &Changes) -> Result<Option<(String, Vec<u8>)>, CheckpointError> {
    let Some((name, text)) = &base.index else { return Ok(None) };
    if !changes.headers {
        return Ok(Some((name.clone(), text.clone())));
    }
    let mut index = parse(&base.directory.join(name), text)?;
    if let Some(map) = index.get_mut("weight_map").and_then(Value::as_object_mut) {
        for (tensor, shard) in &changes.added {
            map.insert(tensor.clone(), Value::from(shard.as_str()));
        }
    }
    if let Some(metadata) = index.get_mut("metadata").and_then(Value::as_object_mut)
        && metadata.contains_key("total_size")
    {
        metadata.insert("total_size".to_owned(), Value::from(changes.total_size));
    }
    Ok(Some((name.clone(), print(&index))))
}

/// Other files that change: their names, the text before and after.
pub(super) fn changed(base: &Base, changes: &Changes) -> Result<Texts, CheckpointError> {
    let mut texts = Texts::new();
    if changes.dtype.is_none() && changes.added.is_empty() {
        return Ok(texts);
    }
    let Some(before) = base.text_of(CONFIG)? else { return Ok(texts) };
    let mut config = parse(&base.directory.join(CONFIG), &before)?;
    adjust(&mut config, changes, true);
    let after = print(&config);
    texts.insert(CONFIG.to_owned(), (before, after));
    Ok(texts)
}

/// What adapters are held against: tensors, and what the configuration says about the model.
pub(super) fn index_of<'a>(
    tensors: impl Iterator<Item = &'a TensorEntry>,
    config: Option<&[u8]>,
) -> BaseIndex {
    let tensors = tensors
        .map(|entry| (entry.name.clone(), BaseTensor { dtype: entry.dtype, shape: entry.shape.clone() }));
    // A configuration that is no JSON is refused where it would have to change.
    let config: Value = config.and_then(|text| serde_json::from_slice(text).ok()).unwrap_or_default();
    let ties = config
        .get("tie_word_embeddings")
        .or_else(|| config.get("text_config").and_then(|part| part.get("tie_word_embeddings")))
        .and_then(Value::as_bool);
    let model_type = config.get("model_type").and_then(Value::as_str).map(str::to_owned);
    BaseIndex::from_tensors(tensors).with_model(model_type, ties.unwrap_or(false))
}

/// Changes a configuration, and those of the parts of a model that it holds.
fn adjust(config: &mut Value, changes: &Changes, is_top: bool) {
    let Some(fields) = config.as_object_mut() else { return };
    if let Some(dtype) = changes.dtype {
        for name in ["dtype", "torch_dtype"] {
            if fields.get(name).is_some_and(Value::is_string) {
                fields.insert(name.to_owned(), Value::from(dtype.name()));
            }
        }
    }
    if !changes.added.is_empty() && (is_top || fields.contains_key("tie_word_embeddings")) {
        fields.insert("tie_word_embeddings".to_owned(), Value::Bool(false));
    }
    for (name, part) in fields.iter_mut() {
        if name.ends_with("_config") {
            adjust(part, changes, false);
        }
    }
}

fn parse(path: &Path, text: &[u8]) -> Result<Value, CheckpointError> {
    serde_json::from_slice(text).map_err(|error| CheckpointError::Base {
        path: path.to_owned(),
        problem: format!("this is no JSON: {error}; fetch it again"),
    })
}

fn print(value: &Value) -> Vec<u8> {
    let mut text = serde_json::to_vec_pretty(value).unwrap_or_default();
    text.push(b'\n');
    text
}
