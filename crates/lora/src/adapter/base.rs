//! What a base checkpoint holds, by its headers alone.

use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::json::Node;
use crate::Error;
use crate::problem::{Problem, ProblemCode};
use crate::safetensors::{File, Limits, OpenOptions, StoredType, open_plain};

/// The format and shape of a tensor of the base.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseTensor {
    /// Its number format.
    pub dtype: StoredType,
    /// Entries of each axis.
    pub shape: Vec<usize>,
}

/// The tensors of a base by name, and what its configuration says about them.
#[derive(Clone, Debug, Default)]
pub struct BaseIndex {
    tensors: HashMap<String, BaseTensor>,
    model_type: Option<String>,
    ties_embeddings: bool,
}

const MAX_JSON: u64 = 256 << 20;

impl BaseIndex {
    /// An index of tensors that are known otherwise.
    pub fn from_tensors(tensors: impl IntoIterator<Item = (String, BaseTensor)>) -> Self {
        Self { tensors: tensors.into_iter().collect(), ..Self::default() }
    }

    /// Says what the base's `config.json` says: its `model_type`, and whether the head shares the embedding's weight.
    #[must_use]
    pub fn with_model(mut self, model_type: Option<String>, ties_embeddings: bool) -> Self {
        (self.model_type, self.ties_embeddings) = (model_type, ties_embeddings);
        self
    }

    /// Reads the headers of a checkpoint: a directory with `model.safetensors`, or with an index of shards; the
    /// directory of a part of a diffusers pipeline; or one safetensors file.
    pub fn open(path: &Path, follow_symlinks: bool) -> Result<Self, Error> {
        Self::open_or_problem(path, follow_symlinks).map_err(|problem| Error::file(path, problem))
    }

    fn open_or_problem(path: &Path, follow_symlinks: bool) -> Result<Self, Problem> {
        let options = OpenOptions { follow_symlinks, limits: Limits::CHECKPOINT };
        let mut index = Self::default();
        if path.is_dir() {
            for file in shards(path, follow_symlinks)? {
                index.add(&file, &options)?;
            }
            index.read_config(&path.join("config.json"), follow_symlinks)?;
        } else {
            index.add(path, &options)?;
        }
        Ok(index)
    }

    fn add(&mut self, path: &Path, options: &OpenOptions) -> Result<(), Problem> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let file = File::open_or_problem(path, options).map_err(|mut problem| {
            problem.message = format!("{name}: {}", problem.message);
            problem
        })?;
        for entry in file.header().entries() {
            let tensor = BaseTensor { dtype: entry.dtype, shape: entry.shape.clone() };
            if self.tensors.insert(entry.name.clone(), tensor).is_some() {
                let message = format!("{name}: another file of the checkpoint has this tensor too");
                return Err(Problem::new(ProblemCode::Duplicate, &entry.name, message));
            }
        }
        Ok(())
    }

    fn read_config(&mut self, path: &Path, follow_symlinks: bool) -> Result<(), Problem> {
        if path.symlink_metadata().is_err() {
            return Ok(());
        }
        let Node::Object(fields) = read_json(path, follow_symlinks)? else { return Ok(()) };
        // A model of several modalities has the language model's settings in an object of their own.
        let of = |name: &str| fields.iter().find(|(key, _)| key == name).map(|(_, value)| value);
        if let Some(Node::Text(model_type)) = of("model_type") {
            self.model_type = Some(model_type.clone());
        }
        let inner = of("text_config").and_then(|node| match node {
            Node::Object(fields) => {
                fields.iter().find(|(key, _)| key == "tie_word_embeddings").map(|(_, v)| v)
            }
            _ => None,
        });
        self.ties_embeddings = matches!(of("tie_word_embeddings").or(inner), Some(Node::Bool(true)));
        Ok(())
    }

    /// A tensor by its name.
    pub fn get(&self, name: &str) -> Option<&BaseTensor> {
        self.tensors.get(name)
    }

    /// Names of all tensors, in no order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether there is no tensor.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// `model_type` of the configuration.
    pub fn model_type(&self) -> Option<&str> {
        self.model_type.as_deref()
    }

    /// Whether the head shares the embedding's weight.
    pub fn ties_embeddings(&self) -> bool {
        self.ties_embeddings
    }
}

/// The safetensors files of a checkpoint: those of a directory, or the one file itself.
pub fn checkpoint_files(path: &Path, follow_symlinks: bool) -> Result<Vec<PathBuf>, Error> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    shards(path, follow_symlinks).map_err(|problem| Error::file(path, problem))
}

/// The safetensors files of a directory: what its index names, or the one that stands alone.
fn shards(directory: &Path, follow_symlinks: bool) -> Result<Vec<PathBuf>, Problem> {
    for stem in ["model", "diffusion_pytorch_model"] {
        let index = directory.join(format!("{stem}.safetensors.index.json"));
        if index.symlink_metadata().is_ok() {
            return named_by(&index, directory, follow_symlinks);
        }
        let single = directory.join(format!("{stem}.safetensors"));
        if single.symlink_metadata().is_ok() {
            return Ok(vec![single]);
        }
    }
    let message = "the directory has neither model.safetensors nor model.safetensors.index.json";
    Err(Problem::new(ProblemCode::Read, "", message))
}

fn named_by(index: &Path, directory: &Path, follow_symlinks: bool) -> Result<Vec<PathBuf>, Problem> {
    let refuse = |message: String| Problem::new(ProblemCode::Config, "weight_map", message);
    let Node::Object(fields) = read_json(index, follow_symlinks)? else {
        return Err(refuse("the index is no object".to_owned()));
    };
    let map = fields.into_iter().find(|(key, _)| key == "weight_map").map(|(_, value)| value);
    let Some(Node::Object(map)) = map else {
        return Err(refuse("the index has no weight_map".to_owned()));
    };
    let mut names: Vec<String> = Vec::new();
    for (tensor, file) in map {
        let Node::Text(file) = file else {
            return Err(refuse(format!("{} came for {tensor:?}; a file's name is needed", file.shown())));
        };
        if !is_plain_name(&file) {
            let message =
                format!("the index names {file:?}, which is no plain name of a file of this directory");
            return Err(Problem::new(ProblemCode::Path, tensor, message));
        }
        names.push(file);
    }
    names.sort_unstable();
    names.dedup();
    Ok(names.into_iter().map(|name| directory.join(name)).collect())
}

/// Whether a name can only mean a file of the directory it stands in.
pub fn is_plain_name(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\', '\0', ':'])
}

fn read_json(path: &Path, follow_symlinks: bool) -> Result<Node, Problem> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let (file, length) = open_plain(path, follow_symlinks)?;
    if length > MAX_JSON {
        let message = format!("{length} bytes came; at most {MAX_JSON} are allowed");
        return Err(Problem::new(ProblemCode::Size, name, message));
    }
    let mut text = Vec::new();
    file.take(MAX_JSON)
        .read_to_end(&mut text)
        .map_err(|error| Problem::new(ProblemCode::Read, &name, format!("it cannot be read: {error}")))?;
    Node::parse(&text).map_err(|error| {
        Problem::new(ProblemCode::Config, name, format!("it is no JSON that can be read: {error}"))
    })
}
