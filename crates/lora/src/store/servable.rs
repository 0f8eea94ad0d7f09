//! Which adapters can be applied beside their base instead of being merged.

use super::LayerSource;
use crate::adapter::{Adapter, LayerKind};
use crate::{Error, ServingError};

/// The layers of an adapter as the store takes them.
///
/// # Errors
///
/// [`ServingError::NotServable`], with everything that a product beside a linear layer cannot do.
pub(super) fn layers<'a>(name: &str, adapter: &'a Adapter) -> Result<Vec<LayerSource<'a>>, Error> {
    let mut reasons = Vec::new();
    let mut sources = Vec::new();
    for layer in adapter.layers() {
        let reason = match layer.kind {
            LayerKind::Linear if layer.magnitude.is_some() => "rescales the weight (DoRA)".to_string(),
            LayerKind::Linear if layer.bias_delta.is_some() => "changes the bias (lora_bias)".to_string(),
            LayerKind::Linear if layer.scope.is_flattened => "has a flattened name".to_string(),
            LayerKind::Linear => {
                sources.push(LayerSource {
                    name: layer.path.clone(),
                    lora_a: layer.lora_a.view()?,
                    lora_b: layer.lora_b.view()?,
                    scaling: layer.scaling,
                });
                continue;
            }
            other => format!("is no linear layer but {}", other.name()),
        };
        reasons.push(format!("{} {reason}", layer.path));
    }
    reasons
        .extend(adapter.replacements().iter().map(|replacement| format!("{} is replaced", replacement.name)));
    if reasons.is_empty() {
        return Ok(sources);
    }
    Err(ServingError::NotServable { name: name.to_string(), reasons }.into())
}
