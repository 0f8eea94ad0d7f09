//! Which tensor of a base a name of an adapter means.

use std::collections::HashMap;

use super::{BaseIndex, Scope};
use crate::problem::{Problem, ProblemCode};

/// Outer modules that one writer names and another leaves out.
const WRAPPERS: [&str; 2] = ["model.", "transformer."];

/// Endings of embeddings whose weight a head may share.
const EMBEDDINGS: [&str; 4] =
    ["embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight"];

/// Ends of the names of heads that may share their weight with the embedding.
const HEADS: [&str; 3] = ["lm_head", "embed_out", "output"];

/// Finds tensors of a base by the names that adapters use.
pub(super) struct Names<'a> {
    base: &'a BaseIndex,
    /// Modules by their names with underscores for dots.
    flattened: HashMap<String, Vec<&'a str>>,
}

impl<'a> Names<'a> {
    /// `with_flattened` says whether any name is flattened, for which an index is made.
    pub(super) fn new(base: &'a BaseIndex, with_flattened: bool) -> Self {
        let mut flattened: HashMap<String, Vec<&str>> = HashMap::new();
        if with_flattened {
            for module in base.names().filter_map(|name| name.strip_suffix(".weight")) {
                flattened.entry(module.replace('.', "_")).or_default().push(module);
            }
        }
        Self { base, flattened }
    }

    /// The name in the base of a module's tensor: the module as it is, or with an outer module that one of both leaves
    /// out. `tensor` may be empty, for a parameter that is named by its path alone.
    pub(super) fn find(&self, path: &str, scope: &Scope, tensor: &str) -> Result<Option<String>, Problem> {
        let dotted = if tensor.is_empty() { String::new() } else { format!(".{tensor}") };
        let candidates = if scope.is_flattened {
            let modules = self.flattened.get(path).map_or([].as_slice(), Vec::as_slice);
            modules.iter().map(|module| format!("{module}{dotted}")).collect()
        } else {
            spellings(path, scope).into_iter().map(|path| format!("{path}{dotted}")).collect::<Vec<_>>()
        };
        if let Some(exact) =
            candidates.first().filter(|name| !scope.is_flattened && self.base.get(name).is_some())
        {
            return Ok(Some(exact.clone()));
        }
        let mut found = candidates.into_iter().filter(|name| self.base.get(name).is_some());
        let (first, second) = (found.next(), found.next());
        if let (Some(first), Some(second)) = (&first, &second) {
            let message = format!("both {first:?} and {second:?} of the base could be meant");
            return Err(Problem::new(ProblemCode::Ambiguous, path, message));
        }
        Ok(first)
    }

    /// The embedding whose weight the head shares; `None` where `path` is no head or the base shares nothing.
    pub(super) fn tied_embedding(&self, path: &str) -> Option<String> {
        let last = path.rsplit('.').next().unwrap_or_default();
        (self.base.ties_embeddings() && HEADS.contains(&last)).then(|| self.embedding()).flatten()
    }

    /// The one tensor of the base that is an embedding of tokens.
    pub(super) fn embedding(&self) -> Option<String> {
        let is_embedding = |name: &&str| {
            EMBEDDINGS.iter().any(|ending| {
                name.strip_suffix(ending).is_some_and(|front| front.is_empty() || front.ends_with('.'))
            })
        };
        let mut names = self.base.names().filter(is_embedding);
        let (first, second) = (names.next(), names.next());
        if second.is_some() { None } else { first.map(str::to_owned) }
    }
}

fn spellings(path: &str, scope: &Scope) -> Vec<String> {
    let mut spellings = vec![path.to_owned()];
    if !scope.component.is_empty() {
        spellings.push(format!("{}.{path}", scope.component));
    }
    for wrapper in WRAPPERS {
        if let Some(inner) = path.strip_prefix(wrapper) {
            spellings.push(inner.to_owned());
        }
        spellings.push(format!("{wrapper}{path}"));
    }
    spellings
}
