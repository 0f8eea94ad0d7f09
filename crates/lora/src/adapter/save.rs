//! An adapter as a PEFT directory: complete under its name, or not there at all.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};

use super::config::Config;
use super::layer::{Layer, LayerKind, Replacement};
use super::{Adapter, Tensor};
use crate::Error;
use crate::problem::{Problem, ProblemCode};
use crate::safetensors::{EntryPlan, StoredType, header_bytes};

/// What every name begins with.
const PREFIX: &str = "base_model.model.";

/// The tensors under the names that PEFT gives them.
pub(super) fn named_tensors(layers: &[Layer], replacements: &[Replacement]) -> Vec<(String, Tensor)> {
    let mut named = Vec::new();
    for layer in layers {
        let depth = if let LayerKind::Experts { depth } = layer.kind { depth } else { 0 };
        let wrappers = ".base_layer".repeat(depth);
        for (ending, tensor) in layer.tensors() {
            named.push((format!("{PREFIX}{}{wrappers}.{ending}", layer.path), tensor.clone()));
        }
    }
    for replacement in replacements {
        named.push((format!("{PREFIX}{}", replacement.name), replacement.tensor.clone()));
    }
    named
}

/// The configuration with which these layers have their ranks and alphas: the commonest stand for all, patterns that
/// each match one module for the others.
pub(super) fn with_patterns(mut config: Config, layers: &[Layer]) -> Config {
    let mut counts: BTreeMap<(usize, u64), usize> = BTreeMap::new();
    for layer in layers {
        *counts.entry((layer.rank, layer.alpha.to_bits())).or_default() += 1;
    }
    if let Some((&(rank, alpha), _)) = counts.iter().max_by_key(|&(_, &count)| count) {
        (config.rank, config.alpha) = (rank, f64::from_bits(alpha));
    }
    config.rank_pattern.clear();
    config.alpha_pattern.clear();
    for layer in layers {
        let parameter = if matches!(layer.kind, LayerKind::Experts { .. }) { r"\.[^.]*" } else { "" };
        let key = format!("^{}{parameter}", escaped(&layer.path));
        if layer.rank != config.rank && !config.rank_pattern.iter().any(|(other, _)| *other == key) {
            config.rank_pattern.push((key.clone(), layer.rank));
        }
        if layer.alpha.to_bits() != config.alpha.to_bits()
            && !config.alpha_pattern.iter().any(|(other, _)| *other == key)
        {
            config.alpha_pattern.push((key, layer.alpha));
        }
    }
    config
}

/// A regular expression, of Python's kind and ours, that matches a module's name alone.
fn escaped(path: &str) -> String {
    let mut pattern = String::new();
    for character in path.chars() {
        if !(character.is_alphanumeric() || character == '_') {
            pattern.push('\\');
        }
        pattern.push(character);
    }
    pattern
}

/// `adapter_config.json` for an adapter.
fn config_json(adapter: &Adapter) -> Value {
    let config = adapter.config();
    let modules: Vec<&str> = adapter
        .layers()
        .iter()
        .filter(|layer| !matches!(layer.kind, LayerKind::Experts { .. }))
        .map(|layer| layer.path.as_str())
        .collect();
    let object = |pairs: Vec<(&String, Value)>| {
        Value::Object(pairs.into_iter().map(|(key, value)| (key.clone(), value)).collect())
    };
    let or_null = |names: &[String]| if names.is_empty() { Value::Null } else { json!(names) };
    json!({
        "peft_type": "LORA",
        "task_type": config.task_type,
        "base_model_name_or_path": config.base_model,
        "inference_mode": true,
        "r": config.rank,
        "lora_alpha": number(config.alpha),
        "lora_dropout": 0.0,
        "use_rslora": config.use_rslora,
        "use_dora": config.use_dora,
        "lora_bias": config.lora_bias,
        "fan_in_fan_out": config.fan_in_fan_out,
        "bias": config.bias.name(),
        "rank_pattern": object(config.rank_pattern.iter().map(|(key, rank)| (key, json!(rank))).collect()),
        "alpha_pattern": object(config.alpha_pattern.iter().map(|(key, alpha)| (key, number(*alpha))).collect()),
        "modules_to_save": or_null(&config.modules_to_save),
        "target_parameters": or_null(&config.target_parameters),
        "target_modules": modules,
        "init_lora_weights": true,
    })
}

/// A whole number without its fraction, as Python writes an `int`.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 9e15 { json!(value as i64) } else { json!(value) }
}

/// Writes the two files into a new directory beside `path`, then gives it that name.
pub(super) fn save(adapter: &Adapter, path: &Path) -> Result<(), Error> {
    let refuse = |code, message: String| Error::adapter(path, vec![Problem::new(code, "", message)]);
    if let Some(layer) = adapter.layers().iter().find(|layer| !layer.scope.component.is_empty()) {
        let message = format!(
            "{:?} belongs to the {} of a pipeline, which a PEFT directory cannot say",
            layer.path, layer.scope.component
        );
        return Err(refuse(ProblemCode::Unsupported, message));
    }
    if path.read_dir().is_ok_and(|mut entries| entries.next().is_some()) {
        let message = "the directory is not empty; nothing is overwritten: pass a new one".to_owned();
        return Err(refuse(ProblemCode::Path, message));
    }
    let beside = beside(path);
    let written = write_into(adapter, &beside).and_then(|()| {
        fs::rename(&beside, path)?;
        sync_directory(
            path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")),
        )
    });
    written.map_err(|error| {
        let _ = fs::remove_dir_all(&beside); // what is left of it bears no name that anybody looks for
        refuse(ProblemCode::Read, format!("it cannot be written: {error}"))
    })
}

fn beside(path: &Path) -> PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let name = path.file_name().map_or_else(|| "adapter".into(), |name| name.to_string_lossy().into_owned());
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    path.with_file_name(format!(".{name}.{}.{count}.partial", std::process::id()))
}

fn write_into(adapter: &Adapter, directory: &Path) -> io::Result<()> {
    let overflow = || io::Error::other("the tensors take more bytes than a file can have");
    let named = named_tensors(adapter.layers(), adapter.replacements());
    let mut plans = Vec::with_capacity(named.len());
    for (name, tensor) in &named {
        let dtype =
            StoredType::of(tensor.dtype()).ok_or_else(|| io::Error::other("a format without a name"))?;
        plans.push(EntryPlan { name: name.clone(), dtype, shape: tensor.shape().to_vec() });
    }
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let header = header_bytes(&plans, &metadata).ok_or_else(overflow)?;
    fs::create_dir(directory)?;
    let mut file = fs::File::create_new(directory.join("adapter_model.safetensors"))?;
    file.write_all(&header)?;
    for (_, tensor) in &named {
        file.write_all(tensor.bytes())?;
    }
    file.sync_all()?;
    let mut file = fs::File::create_new(directory.join("adapter_config.json"))?;
    file.write_all(format!("{:#}\n", config_json(adapter)).as_bytes())?;
    file.sync_all()?;
    sync_directory(directory)
}

/// Makes names durable; file systems that cannot are left as they are.
fn sync_directory(path: &Path) -> io::Result<()> {
    if cfg!(unix) { fs::File::open(path)?.sync_all() } else { Ok(()) }
}
