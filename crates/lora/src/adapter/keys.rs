//! Names of tensors: what each family of writers means by them.
//!
//! | writer | names |
//! |---|---|
//! | PEFT, unsloth | `base_model.model.` module `.lora_A[.adapter].weight`, `.lora_embedding_A[.adapter]`, `.lora_magnitude_vector[.adapter][.weight]` |
//! | kohya | `lora_unet_` module with underscores `.lora_down.weight`, `.lora_up.weight`, `.alpha` |
//! | diffusers | `unet.` module `.lora_A.weight`; older `.lora.down.weight`, `.lora_linear_layer.down.weight`, `.processor.to_q_lora.down.weight` |

use super::Scope;

/// What a tensor is within its module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// `lora_A` or the like.
    A,
    /// `lora_B` or the like.
    B,
    /// `lora_embedding_A`.
    EmbeddingA,
    /// `lora_embedding_B`.
    EmbeddingB,
    /// `lora_magnitude_vector`.
    Magnitude,
    /// The bias of `lora_B`.
    BiasDelta,
    /// A scalar that the scaling is made from.
    Alpha,
    /// A tensor of the base, by its own name: the module's path and this.
    Full(String),
    /// Something that exists and is not served; the text says what.
    Refused(&'static str),
}

/// A name, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Key {
    /// The module in the base.
    pub(super) path: String,
    pub(super) scope: Scope,
    pub(super) role: Role,
    /// How many wrappers lie around the parameter that is meant; 0 but for experts.
    pub(super) depth: usize,
    /// The name of the adapter, where the file's names hold one.
    pub(super) adapter: Option<String>,
}

/// Names of the parts of a pipeline.
const COMPONENTS: [&str; 6] =
    ["unet", "text_encoder", "text_encoder_2", "text_encoder_3", "transformer", "prior"];

/// kohya's prefixes, and the part of a pipeline that each means.
const FLATTENED: [(&str, &str); 8] = [
    ("lora_unet_", "unet"),
    ("lora_te1_", "text_encoder"),
    ("lora_te2_", "text_encoder_2"),
    ("lora_te3_", "text_encoder_3"),
    ("lora_te_", "text_encoder"),
    ("lora_transformer_", "transformer"),
    ("lora_prior_unet_", "prior"),
    ("lora_prior_te_", "text_encoder"),
];

/// Endings of other methods.
const OTHERS: [(&str, &str); 10] = [
    ("lora_mid", "a convolution in three factors (LoCon with CP decomposition)"),
    ("dora_scale", "DoRA as LyCORIS writes it"),
    ("hada_w1_a", "LoHa"),
    ("hada_w1_b", "LoHa"),
    ("hada_w2_a", "LoHa"),
    ("hada_w2_b", "LoHa"),
    ("lokr_w1", "LoKr"),
    ("lokr_w2", "LoKr"),
    ("oft_blocks", "OFT"),
    ("token_adapter", "single trained rows of an embedding"),
];

/// Understands a name. `has_config` says whether the file comes with PEFT's configuration; without one it is a file of
/// kohya's or diffusers' naming.
pub(super) fn parse(name: &str, has_config: bool) -> Key {
    let segments: Vec<&str> = name.split('.').collect();
    let (front, role, adapter) = split(&segments);
    let (path, scope, depth) = place(front, has_config);
    Key { path, scope, role, depth, adapter }
}

/// The module's segments, the role of the rest, and the name of the adapter within the rest.
fn split<'a>(segments: &'a [&'a str]) -> (Vec<&'a str>, Role, Option<String>) {
    let named = |name: &&str| Some((*name).to_owned());
    for (position, &segment) in segments.iter().enumerate().rev() {
        let front = segments.get(..position).unwrap_or_default().to_vec();
        let rest = segments.get(position + 1..).unwrap_or_default();
        let (role, adapter) = match (segment, rest) {
            ("lora_A" | "lora_down", ["weight"]) | ("lora" | "lora_linear_layer", ["down", "weight"]) => {
                (Role::A, None)
            }
            ("lora_A", [adapter, "weight"]) => (Role::A, named(adapter)),
            ("lora_B" | "lora_up", ["weight"]) | ("lora" | "lora_linear_layer", ["up", "weight"]) => {
                (Role::B, None)
            }
            ("lora_B", ["bias"]) => (Role::BiasDelta, None),
            ("lora_B", [adapter, "weight"]) => (Role::B, named(adapter)),
            ("lora_B", [adapter, "bias"]) => (Role::BiasDelta, named(adapter)),
            ("lora_embedding_A", []) => (Role::EmbeddingA, None),
            ("lora_embedding_A", [adapter]) => (Role::EmbeddingA, named(adapter)),
            ("lora_embedding_B", []) => (Role::EmbeddingB, None),
            ("lora_embedding_B", [adapter]) => (Role::EmbeddingB, named(adapter)),
            ("lora_magnitude_vector", [] | ["weight"]) => (Role::Magnitude, None),
            ("lora_magnitude_vector", [adapter] | [adapter, "weight"]) => (Role::Magnitude, named(adapter)),
            ("alpha", []) if position > 0 => (Role::Alpha, None),
            ("modules_to_save", [parameter]) => (Role::Full((*parameter).to_owned()), None),
            ("modules_to_save", [adapter, parameters @ ..]) if !parameters.is_empty() => {
                (Role::Full(parameters.join(".")), named(adapter))
            }
            (_, [direction @ ("down" | "up"), "weight"]) if segment.ends_with("_lora") => {
                let role = if *direction == "down" { Role::A } else { Role::B };
                return (old_processor(front, segment), role, None);
            }
            _ => {
                let Some((_, what)) = OTHERS.iter().find(|(ending, _)| segment == *ending) else { continue };
                (Role::Refused(what), None)
            }
        };
        return (front, role, adapter);
    }
    let (last, front) = segments.split_last().map_or(("", [].as_slice()), |(last, front)| (*last, front));
    (front.to_vec(), Role::Full(last.to_owned()), None)
}

/// `attn.processor.to_q_lora` is `attn.to_q`; `to_out` is a list whose first entry is meant.
fn old_processor<'a>(mut front: Vec<&'a str>, segment: &'a str) -> Vec<&'a str> {
    if front.last() == Some(&"processor") {
        front.pop();
    }
    let module = segment.strip_suffix("_lora").unwrap_or(segment);
    front.push(module);
    if module == "to_out" {
        front.push("0");
    }
    front
}

/// The path of a module in the base, where it belongs, and the number of wrappers.
fn place(mut front: Vec<&str>, has_config: bool) -> (String, Scope, usize) {
    let depth = front.iter().rev().take_while(|&&segment| segment == "base_layer").count();
    front.truncate(front.len() - depth);
    front.retain(|&segment| segment != "_orig_mod"); // a compiled model's wrapper
    if let Some(rest) = front.strip_prefix(&["base_model", "model"]) {
        return (rest.join("."), Scope::default(), depth);
    }
    if has_config {
        return (front.join("."), Scope::default(), depth);
    }
    if let [flat] = front.as_slice() {
        for (prefix, component) in FLATTENED {
            if let Some(path) = flat.strip_prefix(prefix) {
                return (
                    path.to_owned(),
                    Scope { component: component.to_owned(), is_flattened: true },
                    depth,
                );
            }
        }
    }
    if let [component, rest @ ..] = front.as_slice()
        && COMPONENTS.contains(component)
        && !rest.is_empty()
    {
        let scope = Scope { component: (*component).to_owned(), is_flattened: false };
        return (rest.join("."), scope, depth);
    }
    (front.join("."), Scope::default(), depth)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, has_config: bool) -> (String, Role, String, usize, Option<String>) {
        let key = parse(name, has_config);
        (key.path, key.role, key.scope.component, key.depth, key.adapter)
    }

    #[test]
    fn peft_names() {
        let module = "model.layers.0.self_attn.q_proj";
        for (ending, role, adapter) in [
            ("lora_A.weight", Role::A, None),
            ("lora_B.default.weight", Role::B, Some("default")),
            ("lora_B.bias", Role::BiasDelta, None),
            ("lora_embedding_A", Role::EmbeddingA, None),
            ("lora_embedding_B.mine", Role::EmbeddingB, Some("mine")),
            ("lora_magnitude_vector", Role::Magnitude, None),
            ("lora_magnitude_vector.weight", Role::Magnitude, None),
            ("lora_magnitude_vector.default.weight", Role::Magnitude, Some("default")),
            ("weight", Role::Full("weight".to_owned()), None),
            ("base_layer.bias", Role::Full("bias".to_owned()), None),
            ("modules_to_save.default.weight", Role::Full("weight".to_owned()), Some("default")),
        ] {
            let depth = usize::from(ending.starts_with("base_layer"));
            let expected = (module.to_owned(), role, String::new(), depth, adapter.map(str::to_owned));
            assert_eq!(read(&format!("base_model.model.{module}.{ending}"), true), expected, "{ending}");
        }
        let nested = read("base_model.model.mlp.experts.base_layer.lora_A.weight", true);
        assert_eq!((nested.0.as_str(), nested.3), ("mlp.experts", 1));
        assert_eq!(read("base_model.model._orig_mod.a.lora_A.weight", true).0, "a");
    }

    #[test]
    fn names_of_other_writers() {
        let kohya = parse("lora_unet_mid_block_proj_in.lora_down.weight", false);
        assert_eq!((kohya.path.as_str(), kohya.role), ("mid_block_proj_in", Role::A));
        assert_eq!(kohya.scope, Scope { component: "unet".to_owned(), is_flattened: true });
        assert_eq!(parse("lora_te2_text_model_x.alpha", false).scope.component, "text_encoder_2");
        for (name, path, role) in [
            ("unet.a.attn1.to_q.lora_A.weight", "a.attn1.to_q", Role::A),
            ("unet.a.attn1.to_q.lora.up.weight", "a.attn1.to_q", Role::B),
            ("unet.a.attn1.processor.to_q_lora.down.weight", "a.attn1.to_q", Role::A),
            ("unet.a.attn1.processor.to_out_lora.up.weight", "a.attn1.to_out.0", Role::B),
            ("text_encoder.b.q_proj.lora_linear_layer.down.weight", "b.q_proj", Role::A),
        ] {
            let key = parse(name, false);
            assert_eq!((key.path.as_str(), key.role), (path, role), "{name}");
            assert!(!key.scope.component.is_empty() && !key.scope.is_flattened);
        }
        assert!(matches!(parse("lora_unet_x.lora_mid.weight", false).role, Role::Refused(_)));
        assert!(matches!(parse("x.hada_w1_a", false).role, Role::Refused(_)));
    }

    #[test]
    fn odd_names_are_full_tensors() {
        for name in ["", ".", "weight", "alpha", "lora_A.weight.more", "a..b", "lora_A", "base_layer"] {
            let key = parse(name, true);
            assert!(matches!(key.role, Role::Full(_)), "{name:?} {key:?}");
        }
    }
}
