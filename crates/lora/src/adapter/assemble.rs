//! From named tensors to layers: pairs are found, and everything about them that needs no base is checked.

use std::collections::BTreeMap;

use infer_accel_tensor::DType;

use super::build::Builder;
use super::config::{Config, Patterns};
use super::keys::{self, Key, Role};
use super::layer::{Layer, Replacement, Scope};
use super::{BiasMode, Tensor};
use crate::problem::{Problem, ProblemCode};

/// A tensor with the name that its file gives it.
pub(super) type Named = (String, Tensor);

/// The largest extent of an axis: thirty times the largest vocabulary.
const MAX_EXTENT: usize = 1 << 23;

/// What a file holds for one module.
#[derive(Default)]
pub(super) struct Parts {
    pub(super) a: Option<Named>,
    pub(super) b: Option<Named>,
    pub(super) embedding_a: Option<Named>,
    pub(super) embedding_b: Option<Named>,
    pub(super) magnitude: Option<Named>,
    pub(super) bias_delta: Option<Named>,
    pub(super) alpha: Option<Named>,
}

/// What the tensors of a file amount to.
#[derive(Default)]
pub(super) struct Assembled {
    pub(super) layers: Vec<Layer>,
    pub(super) replacements: Vec<Replacement>,
}

/// Builds layers from tensors. `config` is that of PEFT, or `None` for a file of kohya's or diffusers' naming. Every
/// fault is added to `problems`; a layer that has one is left out.
pub(super) fn assemble(
    tensors: Vec<Named>,
    config: Option<&Config>,
    problems: &mut Vec<Problem>,
) -> Assembled {
    let mut assembled = Assembled::default();
    let mut modules: BTreeMap<(Scope, String, usize), Parts> = BTreeMap::new();
    let mut adapters: Vec<String> = Vec::new();
    for (name, tensor) in tensors {
        let key = keys::parse(&name, config.is_some());
        if let Some(adapter) = key.adapter.as_ref().filter(|adapter| !adapters.contains(adapter)) {
            adapters.push(adapter.clone());
        }
        if let Err(problem) = check_tensor(&name, &tensor, &key.role) {
            problems.push(problem);
        }
        sort_in((name, tensor), key, config, &mut modules, &mut assembled, problems);
    }
    if adapters.len() > 1 {
        let message =
            format!("the names hold several adapters, {}; one is allowed in a file", adapters.join(", "));
        problems.push(Problem::new(ProblemCode::Ambiguous, "", message));
    }
    let defaults = Config::default();
    let patterns = Patterns::new(config.unwrap_or(&defaults), problems);
    let builder = Builder { config, patterns: &patterns };
    for ((scope, path, depth), parts) in modules {
        match builder.layer(scope, path, depth, parts) {
            Ok(layer) => assembled.layers.push(layer),
            Err(mut found) => problems.append(&mut found),
        }
    }
    assembled
}

fn check_tensor(name: &str, tensor: &Tensor, role: &Role) -> Result<(), Problem> {
    let is_served = matches!(tensor.dtype(), DType::F32 | DType::F16 | DType::BF16);
    let is_number = matches!(tensor.dtype(), DType::F64 | DType::I64 | DType::I32);
    let is_allowed = is_served || (*role == Role::Alpha && is_number);
    if !is_allowed {
        let message =
            format!("weights of {} came; float32, float16 and bfloat16 are allowed", tensor.dtype());
        return Err(Problem::new(ProblemCode::DType, name, message));
    }
    if let Some(extent) = tensor.shape().iter().find(|&&extent| extent > MAX_EXTENT) {
        let message = format!("shape {:?} came; {extent} is above the limit of {MAX_EXTENT}", tensor.shape());
        return Err(Problem::new(ProblemCode::Size, name, message));
    }
    if tensor.is_empty() {
        let message =
            format!("shape {:?} came, which holds nothing: the weights were not gathered", tensor.shape());
        return Err(Problem::new(ProblemCode::Shape, name, message));
    }
    Ok(())
}

fn sort_in(
    named: Named,
    key: Key,
    config: Option<&Config>,
    modules: &mut BTreeMap<(Scope, String, usize), Parts>,
    assembled: &mut Assembled,
    problems: &mut Vec<Problem>,
) {
    let name = named.0.clone();
    match &key.role {
        Role::Refused(what) => {
            problems.push(Problem::new(
                ProblemCode::Unsupported,
                name,
                format!("this is {what}, which is not served"),
            ));
            return;
        }
        Role::Full(ending) => {
            if let Some(problem) = refuse_full(&name, &key.path, ending, config) {
                problems.push(problem);
                return;
            }
            let target = if key.path.is_empty() { ending.clone() } else { format!("{}.{ending}", key.path) };
            if assembled.replacements.iter().any(|other| other.name == target && other.scope == key.scope) {
                problems.push(twice(&name, &target));
                return;
            }
            assembled.replacements.push(Replacement { name: target, scope: key.scope, tensor: named.1 });
            return;
        }
        _ => {}
    }
    let place = (key.scope, key.path, key.depth);
    let path = place.1.clone();
    let parts = modules.entry(place).or_default();
    let slot = match key.role {
        Role::A => &mut parts.a,
        Role::B => &mut parts.b,
        Role::EmbeddingA => &mut parts.embedding_a,
        Role::EmbeddingB => &mut parts.embedding_b,
        Role::Magnitude => &mut parts.magnitude,
        Role::BiasDelta => &mut parts.bias_delta,
        Role::Alpha | Role::Full(_) | Role::Refused(_) => &mut parts.alpha,
    };
    if slot.is_some() {
        problems.push(twice(&name, &path));
    } else {
        *slot = Some(named);
    }
}

fn twice(name: &str, path: &str) -> Problem {
    let message = format!("another tensor of the file means the same part of {path:?}");
    Problem::new(ProblemCode::Duplicate, name, message)
}

/// Why a tensor that replaces one of the base must not: nothing in the configuration announces it.
fn refuse_full(name: &str, path: &str, ending: &str, config: Option<&Config>) -> Option<Problem> {
    const EMBEDDINGS: [&str; 2] = ["embed_tokens", "lm_head"]; // which PEFT saves unasked after they were resized
    let is_announced = config.is_some_and(|config| {
        let last = path.rsplit('.').next().unwrap_or_default();
        (ending == "bias" && config.bias != BiasMode::None)
            || config.saves(path)
            || (EMBEDDINGS.contains(&last) && ending == "weight")
    });
    if is_announced {
        return None;
    }
    let message = "no rule knows this name: it is no part of a LoRA layer, and neither modules_to_save nor bias announces it";
    Some(Problem::new(ProblemCode::UnknownTensor, name, message))
}
