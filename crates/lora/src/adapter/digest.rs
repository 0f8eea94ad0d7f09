//! What an adapter means, in 32 bytes.
//!
//! The digest covers what an adapter does, not how its file is laid out: each layer's place, kind, rank, scaling and
//! matrices, each replaced tensor. Saved and loaded again, under another name or by another writer, it is the same.

use std::fmt;
use std::fmt::Write as _;

use infer_accel_tensor::threads;
use sha2::{Digest as _, Sha256};
use std::sync::Mutex;

use super::{Layer, LayerKind, Replacement, Scope, Tensor};

/// A SHA-256. Its text is hexadecimal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Digest(pub [u8; 32]);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The digest of an adapter: the hash of a text that names each part in order, with the hash of each tensor's bytes.
pub(super) fn of(layers: &[Layer], replacements: &[Replacement], num_threads: usize) -> Digest {
    let mut tensors: Vec<&Tensor> = Vec::new();
    let mut lines = vec!["infer-accel adapter 1".to_owned()];
    for layer in layers {
        let experts = if let LayerKind::Experts { depth } = layer.kind { depth } else { 0 };
        let mut line = String::new();
        // Writing to a text cannot fail.
        let _ = write!(
            line,
            "layer {:?} {} {} {} {} {:016x} {}",
            layer.path,
            scope_text(&layer.scope),
            layer.kind.name(),
            experts,
            layer.rank,
            layer.scaling.to_bits(),
            layer.fan_in_fan_out
        );
        lines.push(line);
        for (ending, tensor) in layer.tensors() {
            lines.push(format!("tensor {ending} {} {:?}", tensor.dtype(), tensor.shape()));
            tensors.push(tensor);
        }
    }
    for replacement in replacements {
        lines.push(format!("replacement {:?} {}", replacement.name, scope_text(&replacement.scope)));
        lines.push(format!("tensor {} {:?}", replacement.tensor.dtype(), replacement.tensor.shape()));
        tensors.push(&replacement.tensor);
    }
    let hashes: Vec<Mutex<[u8; 32]>> = tensors.iter().map(|_| Mutex::new([0; 32])).collect();
    threads::parallel_for(num_threads, tensors.len(), |index| {
        if let (Some(tensor), Some(Ok(mut hash))) = (tensors.get(index), hashes.get(index).map(Mutex::lock)) {
            *hash = Sha256::digest(tensor.bytes()).into();
        }
    });
    let mut whole = Sha256::new();
    whole.update(lines.join("\n").as_bytes());
    for hash in hashes {
        whole.update(hash.into_inner().unwrap_or_default());
    }
    Digest(whole.finalize().into())
}

fn scope_text(scope: &Scope) -> String {
    format!("{:?} {}", scope.component, scope.is_flattened)
}
