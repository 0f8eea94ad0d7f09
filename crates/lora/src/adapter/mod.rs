//! Adapters: read strictly from files of unknown origin, matched with their base, written.
//!
//! [`Adapter::load`] reads a PEFT directory, or one file of kohya's or diffusers' naming, whole and once: what comes
//! back owns its weights, every one of them finite, in pairs that fit each other. [`Adapter::resolve`] finds the
//! place of every delta in a base. [`examine`] reads likewise and tells everything that is wrong instead of refusing.

mod assemble;
mod base;
mod build;
mod config;
mod digest;
mod experts;
mod finite;
mod json;
mod keys;
mod layer;
mod ledger;
mod load;
mod names;
mod overflow;
mod pattern;
mod read;
mod resolve;
mod save;
mod tensor;

use std::path::Path;
use std::sync::{Arc, OnceLock};

use infer_accel_tensor::threads;

pub use base::{BaseIndex, BaseTensor, checkpoint_files, is_plain_name};
pub use config::{BiasMode, Config, MAX_RANK};
pub use digest::Digest;
pub use layer::{Layer, LayerKind, Replacement, Scope};
pub use ledger::{Exchange, Ledger, Untied, Update};
pub use load::{Examination, LoadOptions, examine};
pub use tensor::{Matrix, Place, Tensor};

use crate::Error;

/// An adapter that passed every check that needs no base. Immutable; cloning copies nothing.
#[derive(Clone, Debug)]
pub struct Adapter {
    parts: Arc<Parts>,
}

#[derive(Debug)]
struct Parts {
    config: Config,
    layers: Vec<Layer>,
    replacements: Vec<Replacement>,
    digest: OnceLock<Digest>,
}

impl Adapter {
    fn new(config: Config, mut layers: Vec<Layer>, mut replacements: Vec<Replacement>) -> Self {
        let depth = |layer: &Layer| if let LayerKind::Experts { depth } = layer.kind { depth } else { 0 };
        layers.sort_by(|a, b| (&a.scope, &a.path, depth(a)).cmp(&(&b.scope, &b.path, depth(b))));
        replacements.sort_by(|a, b| (&a.scope, &a.name).cmp(&(&b.scope, &b.name)));
        Self { parts: Arc::new(Parts { config, layers, replacements, digest: OnceLock::new() }) }
    }

    /// Reads an adapter. Everything that is wrong is in the error, not only the first fault.
    pub fn load(path: &Path, options: &LoadOptions) -> Result<Self, Error> {
        let Examination { adapter, problems } = examine(path, options)?;
        match adapter {
            Some(adapter) if problems.is_empty() => Ok(adapter),
            _ => Err(Error::adapter(path, problems)),
        }
    }

    /// An adapter made in memory, under the same checks as one that is read. Ranks and alphas are those of the layers
    /// (those of `config` are replaced); scalings are computed from them, with `config.use_rslora`. Tensors of an
    /// embedding, a convolution or experts are shaped as in a file of PEFT.
    pub fn from_parts(config: Config, layers: &[Layer], replacements: &[Replacement]) -> Result<Self, Error> {
        let mut problems = Vec::new();
        let config = save::with_patterns(config, layers);
        let named = save::named_tensors(layers, replacements);
        for (name, tensor) in &named {
            if tensor.seen().not_finite > 0 {
                problems.push(load::not_finite_problem(name, tensor));
            }
        }
        let assembled = assemble::assemble(named, Some(&config), &mut problems);
        if problems.is_empty() {
            return Ok(Self::new(config, assembled.layers, assembled.replacements));
        }
        Err(Error::adapter(Path::new("an adapter in memory"), problems))
    }

    /// What the configuration says.
    pub fn config(&self) -> &Config {
        &self.parts.config
    }

    /// The low-rank updates, ordered by module.
    pub fn layers(&self) -> &[Layer] {
        &self.parts.layers
    }

    /// The tensors of the base that are replaced as a whole, ordered by name.
    pub fn replacements(&self) -> &[Replacement] {
        &self.parts.replacements
    }

    /// The largest rank of a layer; 0 where there is none.
    pub fn rank(&self) -> usize {
        self.layers().iter().map(|layer| layer.rank).max().unwrap_or(0)
    }

    /// Every tensor.
    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        let of_layers = self.layers().iter().flat_map(|layer| layer.tensors().into_iter().map(|(_, t)| t));
        of_layers.chain(self.replacements().iter().map(|replacement| &replacement.tensor))
    }

    /// Bytes of all tensors.
    pub fn nbytes(&self) -> usize {
        self.tensors().map(|tensor| tensor.bytes().len()).sum()
    }

    /// What the adapter means, in 32 bytes: the same after saving and loading. Computed on the first call, at the
    /// speed of SHA-256.
    pub fn digest(&self) -> Digest {
        *self
            .parts
            .digest
            .get_or_init(|| digest::of(self.layers(), self.replacements(), threads::default_threads()))
    }

    /// Finds the place of every delta in a base; what has none is among the ledger's problems.
    pub fn resolve(&self, base: &BaseIndex) -> Ledger {
        resolve::resolve(self, base)
    }

    /// Writes a PEFT directory at `path`, which must not exist or be empty: complete, or not at all.
    pub fn save(&self, path: &Path) -> Result<(), Error> {
        save::save(self, path)
    }
}
