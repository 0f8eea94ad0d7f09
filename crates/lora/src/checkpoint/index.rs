//! What a checkpoint says about itself: its index, and whether that and the shards agree.

use std::collections::{BTreeMap, HashMap};
use std::path::{Component, Path};

use serde::Deserialize;

use super::base::{Shard, refuse};
use super::error::CheckpointError;

/// The end of the name of an index.
const INDEX_ENDING: &str = ".safetensors.index.json";

/// The index that says which tensor is in which shard; `None` where there is none.
pub(super) fn find_index(directory: &Path, names: &[String]) -> Result<Option<String>, CheckpointError> {
    let found: Vec<&String> = names.iter().filter(|name| name.ends_with(INDEX_ENDING)).collect();
    let usual = format!("model{INDEX_ENDING}");
    match found.as_slice() {
        [] => Ok(None),
        [only] => Ok(Some((*only).clone())),
        several if several.iter().any(|name| **name == usual) => Ok(Some(usual)),
        several => Err(refuse(
            directory,
            format!("it has several indexes ({several:?}) and none is model{INDEX_ENDING}; leave one"),
        )),
    }
}

/// The only shard of a checkpoint without an index.
pub(super) fn find_single(directory: &Path, names: &[String]) -> Result<String, CheckpointError> {
    const USUAL: &str = "model.safetensors";
    let found: Vec<&String> = names
        .iter()
        .filter(|name| name.ends_with(".safetensors") && *name != "adapter_model.safetensors")
        .collect();
    match found.as_slice() {
        [only] => Ok((*only).clone()),
        several if several.iter().any(|name| *name == USUAL) => Ok(USUAL.to_owned()),
        [] => Err(refuse(
            directory,
            "it holds no *.safetensors; name the directory of a checkpoint, and convert other formats first",
        )),
        several => Err(refuse(
            directory,
            format!(
                "it holds {} *.safetensors but no index ({INDEX_ENDING}) that says what belongs together",
                several.len()
            ),
        )),
    }
}

/// Tensor names and the shards that hold them.
pub(super) fn parse_index(path: &Path, text: &[u8]) -> Result<BTreeMap<String, String>, CheckpointError> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: Pairs,
    }
    let index: Index = serde_json::from_slice(text)
        .map_err(|error| refuse(path, format!("this is no index: {error}; fetch it again")))?;
    let mut map = BTreeMap::new();
    for (tensor, shard) in index.weight_map.0 {
        let mut parts = Path::new(&shard).components();
        let is_plain = matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None));
        if !is_plain || shard.contains(['/', '\\', '\0']) {
            let problem = format!(
                "it says that {tensor:?} lies in {shard:?}; only names of files beside it are allowed"
            );
            return Err(refuse(path, problem));
        }
        if map.insert(tensor.clone(), shard).is_some() {
            return Err(refuse(path, format!("it names the tensor {tensor:?} twice; fetch it again")));
        }
    }
    if map.is_empty() {
        return Err(refuse(path, "it names no tensors; fetch it again"));
    }
    Ok(map)
}

/// A JSON object with its repetitions.
struct Pairs(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Pairs;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object of tensor names and file names")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(Visitor)
    }
}

/// Refuses tensors that lie in two shards, or elsewhere than the index says.
pub(super) fn require_consistent(
    directory: &Path,
    shards: &[Shard],
    map: Option<&BTreeMap<String, String>>,
) -> Result<(), CheckpointError> {
    let mut places: HashMap<&str, &str> = HashMap::new();
    for shard in shards {
        for tensor in &shard.tensors {
            if let Some(other) = places.insert(&tensor.name, &shard.name) {
                let problem = format!(
                    "the tensor {:?} lies in {other} and in {}; which counts?",
                    tensor.name, shard.name
                );
                return Err(refuse(directory, problem));
            }
        }
    }
    for (tensor, shard) in map.into_iter().flatten() {
        match places.get(tensor.as_str()) {
            Some(found) if found == shard => {}
            Some(found) => {
                let problem =
                    format!("the index says that {tensor:?} lies in {shard}, but it lies in {found}");
                return Err(refuse(directory, problem));
            }
            None => {
                let problem = format!(
                    "the index says that {tensor:?} lies in {shard}, but it does not; fetch it again"
                );
                return Err(refuse(directory, problem));
            }
        }
    }
    Ok(())
}
