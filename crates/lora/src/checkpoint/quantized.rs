//! Which tensors of a checkpoint hold codes, and where their scales are.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use serde_json::Value;

use super::base::Base;
use super::blocks::blocks;
use super::codes::CodeWork;
use super::error::CheckpointError;
use super::prepare::Deltas;
use super::texts::CONFIG;
use crate::quantized::{BLOCK, QuantizedError, Scheme};
use crate::safetensors::{StoredType, TensorEntry};

/// What the name of a scale ends with, behind that of its weight.
const SCALES: [&str; 2] = ["_scale_inv", "_scale"];

/// Tensors beside a weight that change what its codes mean: endings of names, the weight's own and its module's.
const BESIDE_WEIGHT: [&str; 6] =
    ["_zero_point", "_scale_2", "_global_scale", "_g_idx", "_shape", "_scale_and_zero"];
const BESIDE_MODULE: [&str; 4] = ["SCB", "g_idx", "qzeros", "zeros"];

/// Methods of a configuration that store codes which are multiplied by their scale.
const METHODS: [&str; 3] = ["fp8", "fbgemm_fp8", "compressed-tensors"];

/// Quantized tensors that deltas are added to.
#[derive(Default)]
pub(super) struct QuantizedTensors {
    pub(super) by_codes: HashMap<String, Arc<CodeWork>>,
    pub(super) by_scales: HashMap<String, Arc<CodeWork>>,
}

/// Whether a format is one whose elements are codes.
fn is_coded(dtype: StoredType) -> bool {
    matches!(dtype, StoredType::F8E4M3 | StoredType::F8E5M2 | StoredType::I8)
}

/// Finds the scales of all quantized tensors that `deltas` reach; refuses those of a scheme that is not known.
pub(super) fn quantized_tensors(base: &Base, deltas: &Deltas) -> Result<QuantizedTensors, CheckpointError> {
    let mut found = QuantizedTensors::default();
    let entries = base.shards.iter().enumerate();
    let entries = entries.flat_map(|(source, shard)| shard.tensors.iter().map(move |entry| (source, entry)));
    let all: HashMap<&str, (usize, &TensorEntry)> =
        entries.map(|(source, entry)| (entry.name.as_str(), (source, entry))).collect();
    let mut reached: Vec<_> = deltas.updates.keys().filter_map(|name| all.get(name.as_str())).collect();
    reached.retain(|(_, entry)| is_coded(entry.dtype));
    if reached.is_empty() {
        return Ok(found);
    }
    let config = Configuration::of(base)?;
    for &(source, entry) in reached {
        let refuse = |problem: String| CheckpointError::Tensor {
            name: entry.name.clone(),
            source: Box::new(QuantizedError::Scheme { stored: entry.dtype.name(), problem }.into()),
        };
        config.check().map_err(refuse)?;
        let (scale_source, scale) = scale_of(&all, entry).map_err(refuse)?;
        let scheme = scheme_of(entry, scale, &config).map_err(refuse)?;
        let updates = deltas.updates.get(&entry.name).map_or(&[][..], Vec::as_slice);
        let parts = match <[_; 1]>::try_from(blocks(entry, updates)?) {
            Ok([block]) if block.magnitude.is_some() => {
                return Err(refuse("DoRA is not merged into quantized weights".to_owned()));
            }
            Ok([block]) if [block.rows, block.columns] == scheme.shape => block.parts,
            _ => return Err(refuse("the deltas reach a part of it only".to_owned())),
        };
        if deltas.untied.contains_key(&entry.name) {
            return Err(refuse(
                "the head shares this embedding, and would have to be taken from it".to_owned(),
            ));
        }
        let (Some(dtype), Some(scale_dtype)) = (entry.dtype.dtype(), scale.dtype.dtype()) else {
            return Err(refuse(format!("its scales are stored as {}", scale.dtype)));
        };
        let work = Arc::new(CodeWork {
            name: entry.name.clone(),
            codes: (source, entry.range.start),
            scales: (scale_source, scale.range.start),
            dtype,
            scale_dtype,
            scheme,
            parts,
            task_rows: CodeWork::rows_of_task(&scheme),
            whole: Mutex::new(None),
        });
        found.by_scales.insert(scale.name.clone(), Arc::clone(&work));
        found.by_codes.insert(entry.name.clone(), work);
    }
    Ok(found)
}

/// The scales of a weight: the only tensor that can be them.
fn scale_of<'a>(
    all: &HashMap<&str, (usize, &'a TensorEntry)>,
    entry: &TensorEntry,
) -> Result<(usize, &'a TensorEntry), String> {
    let beside = BESIDE_WEIGHT.iter().map(|ending| format!("{}{ending}", entry.name));
    let module = entry.name.strip_suffix("weight").unwrap_or_default();
    let other = beside
        .chain(BESIDE_MODULE.iter().map(|ending| format!("{module}{ending}")))
        .find(|name| all.contains_key(name.as_str()));
    if let Some(other) = other {
        return Err(format!("{other:?} beside it says that its codes mean something else"));
    }
    let names = SCALES.map(|ending| format!("{}{ending}", entry.name));
    let found: Vec<_> = names.iter().filter_map(|name| all.get(name.as_str()).copied()).collect();
    match *found.as_slice() {
        [only] => Ok(only),
        [] => Err(format!("there is neither {:?} nor {:?}", names[0], names[1])),
        _ => Err(format!("there are both {:?} and {:?}", names[0], names[1])),
    }
}

fn scheme_of(entry: &TensorEntry, scale: &TensorEntry, config: &Configuration) -> Result<Scheme, String> {
    let &[rows, columns] = entry.shape.as_slice() else {
        return Err(format!("its shape is {:?}; matrices are served", entry.shape));
    };
    let (Some(dtype), Some(scale_dtype)) = (entry.dtype.dtype(), scale.dtype.dtype()) else {
        return Err(format!("its scales are stored as {}", scale.dtype));
    };
    let scheme = Scheme::from_formats((dtype, [rows, columns]), (scale_dtype, &scale.shape), None)
        .map_err(|error| error.to_string())?;
    if scheme.block == [BLOCK, BLOCK] && config.block.is_some_and(|block| block != [BLOCK, BLOCK]) {
        return Err(format!("its blocks are {:?} by the configuration; 128 by 128 are served", config.block));
    }
    Ok(scheme)
}

/// What the model's configuration says about its quantization.
struct Configuration {
    method: Option<String>,
    block: Option<[usize; 2]>,
    /// Whether activations or weights are rotated, so that deltas would have to be.
    is_rotated: bool,
}

impl Configuration {
    fn of(base: &Base) -> Result<Self, CheckpointError> {
        let text = base.text_of(CONFIG)?;
        // A configuration that is no JSON is refused where it would have to change.
        let config: Value = text.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        let part = ["quantization_config", "compression_config"].iter().find_map(|name| config.get(name));
        let nested = config.get("text_config").and_then(|text| text.get("quantization_config"));
        let Some(part) = part.or(nested) else {
            return Ok(Self { method: None, block: None, is_rotated: false });
        };
        let sides = part.get("weight_block_size").and_then(Value::as_array);
        let side = |index: usize| {
            sides.and_then(|sides| sides.get(index)).and_then(Value::as_u64).map(|side| side as usize)
        };
        Ok(Self {
            method: part.get("quant_method").and_then(Value::as_str).map(str::to_owned),
            block: side(0).zip(side(1)).map(|(down, across)| [down, across]),
            is_rotated: part
                .get("transform_config")
                .and_then(Value::as_object)
                .is_some_and(|fields| !fields.is_empty()),
        })
    }

    fn check(&self) -> Result<(), String> {
        if self.is_rotated {
            return Err("the configuration says that weights are transformed (transform_config)".to_owned());
        }
        match self.method.as_deref() {
            Some(method) if !METHODS.contains(&method) => Err(format!(
                "the configuration's quant_method is {method:?}; known are {}",
                METHODS.join(", ")
            )),
            _ => Ok(()),
        }
    }
}

/// Refuses a change of format where tensors are quantized: what is left of them would not fit the configuration.
pub(super) fn require_plain(base: &Base) -> Result<(), CheckpointError> {
    let mut entries = base.shards.iter().flat_map(|shard| &shard.tensors);
    let is_small = |dtype| {
        matches!(dtype, StoredType::F8E4M3 | StoredType::F8E5M2 | StoredType::F8E8M0 | StoredType::F4)
    };
    if let Some(entry) = entries.find(|entry| is_small(entry.dtype)) {
        return Err(CheckpointError::Argument(format!(
            "dtype= came, but {} is stored as {}: quantized checkpoints keep their formats; leave dtype out",
            entry.name, entry.dtype
        )));
    }
    Ok(())
}
