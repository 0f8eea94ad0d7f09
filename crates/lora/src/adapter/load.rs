//! From a path to an adapter.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use infer_accel_tensor::threads;

use super::assemble::{Assembled, assemble};
use super::config::Config;
use super::json::Node;
use super::{Adapter, Tensor, finite, read};
use crate::Error;
use crate::problem::{Problem, ProblemCode};
use crate::safetensors::{File, Limits, OpenOptions, open_plain};

/// How an adapter is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadOptions {
    /// Whether a symbolic link in the place of a file is followed, as caches of downloaded models need it.
    pub follow_symlinks: bool,
    /// The most threads to use; `None` is the default of the library.
    pub num_threads: Option<usize>,
    /// The most tensors that a file may hold.
    pub max_tensors: usize,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { follow_symlinks: false, num_threads: None, max_tensors: Limits::ADAPTER.tensors }
    }
}

/// What was found at a path: all that is wrong, and the layers that are right.
#[derive(Clone, Debug)]
pub struct Examination {
    /// The layers without a fault; `None` where not even the names of the tensors could be read.
    pub adapter: Option<Adapter>,
    /// Everything that is wrong. An adapter is fit for use only if there is nothing.
    pub problems: Vec<Problem>,
}

/// A configuration is some kilobytes long; with a pattern for each of a thousand modules, some hundred.
const MAX_CONFIG: u64 = 16 << 20;

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
/// The one file of diffusers' directories.
const SINGLE: &str = "pytorch_lora_weights.safetensors";
/// Files of weights that can run code when they are read.
const PICKLES: [&str; 3] = ["adapter_model.bin", "adapter_model.pt", "pytorch_lora_weights.bin"];

/// Reads what lies at a path, a directory or one file, and tells everything that is wrong with it.
pub fn examine(path: &Path, options: &LoadOptions) -> Result<Examination, Error> {
    let num_threads = threads::resolve(options.num_threads)?;
    let mut problems = Vec::new();
    let adapter = read_from(path, options, num_threads, &mut problems).unwrap_or_else(|problem| {
        problems.push(problem);
        None
    });
    if problems.is_empty() && adapter.as_ref().is_some_and(|adapter| adapter.tensors().next().is_none()) {
        problems.push(Problem::new(ProblemCode::Empty, "", "the file holds no tensor"));
    }
    Ok(Examination { adapter, problems })
}

fn read_from(
    path: &Path,
    options: &LoadOptions,
    num_threads: usize,
    problems: &mut Vec<Problem>,
) -> Result<Option<Adapter>, Problem> {
    let (weights, config) = find(path)?;
    let config = match config {
        Some(path) => Some(read_config(&path, options, problems)?),
        None => None,
    };
    let limits = Limits { tensors: options.max_tensors, ..Limits::ADAPTER };
    let file =
        File::open_or_problem(&weights, &OpenOptions { follow_symlinks: options.follow_symlinks, limits })?;
    if config.is_none() && file.header().entries().iter().any(|entry| entry.name.starts_with("base_model.")) {
        let message = format!(
            "the names are PEFT's, whose alpha stands in {CONFIG}: pass the directory that holds both files"
        );
        return Err(Problem::new(ProblemCode::Config, CONFIG, message));
    }
    if config.is_none() {
        check_metadata(&file, problems);
    }
    let tensors = read_tensors(&file, num_threads, problems)?;
    let Assembled { layers, replacements } = assemble(tensors, config.as_ref(), problems);
    Ok(Some(Adapter::new(config.unwrap_or_default(), layers, replacements)))
}

/// Newer files of diffusers note a configuration for each part of the pipeline in their header. Without it the scaling
/// is 1, or what tensors named `alpha` say; a note that says otherwise is refused, never overlooked.
fn check_metadata(file: &File, problems: &mut Vec<Problem>) {
    const NOTE: &str = "lora_adapter_metadata";
    let Some((_, text)) = file.header().metadata().iter().find(|(key, _)| key == NOTE) else { return };
    let Ok(Node::Object(fields)) = Node::parse(text.as_bytes()) else {
        problems.push(Problem::new(ProblemCode::Config, NOTE, "it is no JSON object that can be read"));
        return;
    };
    for (name, node) in &fields {
        let (component, field) = name.rsplit_once('.').unwrap_or(("", name));
        let rank = format!("{component}{}r", if component.is_empty() { "" } else { "." });
        let changes_scaling = match field {
            "lora_alpha" => fields.iter().find(|(key, _)| *key == rank).is_none_or(|(_, rank)| rank != node),
            "rank_pattern" | "alpha_pattern" | "use_rslora" | "use_dora" | "lora_bias" => node.is_truthy(),
            _ => false,
        };
        if changes_scaling {
            let message = format!(
                "{name} is {}, which changes the scaling; of a file without {CONFIG} that is not served: save it as a \
                 PEFT directory",
                node.shown()
            );
            problems.push(Problem::new(ProblemCode::Unsupported, NOTE, message));
        }
    }
}

/// The file of weights, and the configuration if there is one.
fn find(path: &Path) -> Result<(PathBuf, Option<PathBuf>), Problem> {
    let exists = |name: &str| path.join(name).symlink_metadata().is_ok();
    let is_directory = path.metadata().is_ok_and(|metadata| metadata.is_dir());
    if !is_directory {
        let ending = path.extension().and_then(std::ffi::OsStr::to_str).unwrap_or_default();
        if matches!(ending, "bin" | "pt" | "pth" | "ckpt" | "pkl") {
            return Err(pickle(&path.to_string_lossy()));
        }
        return Ok((path.to_owned(), None));
    }
    if exists(WEIGHTS) {
        return Ok((path.join(WEIGHTS), Some(path.join(CONFIG))));
    }
    if exists(SINGLE) {
        return Ok((path.join(SINGLE), None));
    }
    if let Some(name) = PICKLES.iter().find(|name| exists(name)) {
        return Err(pickle(name));
    }
    let message = format!("the directory has neither {WEIGHTS} nor {SINGLE}");
    Err(Problem::new(ProblemCode::Read, WEIGHTS, message))
}

fn pickle(name: &str) -> Problem {
    let message = "this is a pickle, which can run any code when it is read; save the adapter as safetensors";
    Problem::new(ProblemCode::Pickle, name, message)
}

fn read_config(path: &Path, options: &LoadOptions, problems: &mut Vec<Problem>) -> Result<Config, Problem> {
    let (file, length) = open_plain(path, options.follow_symlinks)?;
    let mut text = Vec::new();
    let read = file.take(MAX_CONFIG + 1).read_to_end(&mut text);
    if let Err(error) = read {
        return Err(Problem::new(ProblemCode::Read, CONFIG, format!("it cannot be read: {error}")));
    }
    if text.len() as u64 > MAX_CONFIG {
        let message = format!("{length} bytes came; at most {MAX_CONFIG} are allowed");
        return Err(Problem::new(ProblemCode::Size, CONFIG, message));
    }
    Ok(Config::parse(&text, problems))
}

fn read_tensors(
    file: &File,
    num_threads: usize,
    problems: &mut Vec<Problem>,
) -> Result<Vec<(String, Tensor)>, Problem> {
    let data = read::read_all(file, num_threads)?;
    let mut tensors = Vec::with_capacity(file.header().entries().len());
    for (entry, &seen) in file.header().entries().iter().zip(&data.seen) {
        let Some(dtype) = entry.dtype.dtype() else {
            let message =
                format!("weights of {} came; float32, float16 and bfloat16 are allowed", entry.dtype);
            problems.push(Problem::new(ProblemCode::DType, &entry.name, message));
            continue;
        };
        let start = (entry.range.start - file.header().data_start()) as usize;
        let tensor = Tensor::from_buffer(Arc::clone(&data.memory), start, dtype, &entry.shape)
            .map_err(|error| Problem::new(ProblemCode::Offsets, &entry.name, error.to_string()))?
            .with_seen(seen);
        // An alpha that is not finite is named as such when it is read.
        if seen.not_finite > 0 && entry.name.rsplit('.').next() != Some("alpha") {
            problems.push(not_finite_problem(&entry.name, &tensor));
        }
        tensors.push((entry.name.clone(), tensor));
    }
    Ok(tensors)
}

pub(super) fn not_finite_problem(name: &str, tensor: &Tensor) -> Problem {
    let count = tensor.seen().not_finite;
    let mut index = finite::first_not_finite(tensor.bytes(), tensor.dtype()).unwrap_or(0);
    let mut place: Vec<usize> = tensor
        .shape()
        .iter()
        .rev()
        .map(|&extent| {
            let along = index % extent.max(1);
            index /= extent.max(1);
            along
        })
        .collect();
    place.reverse();
    let message = format!("{count} of {} elements are NaN or infinite, the first at {place:?}", tensor.len());
    Problem::new(ProblemCode::NotFinite, name, message)
}
