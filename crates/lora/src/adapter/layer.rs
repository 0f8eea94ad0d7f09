//! What an adapter does to one module of its base.

use super::Tensor;

/// How a layer's two matrices meet the weight of their module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LayerKind {
    /// `weight[out, in] += scaling · lora_B[out, rank] @ lora_A[rank, in]`; the weight may be stored transposed.
    Linear,
    /// `weight[rows, dim] += scaling · (lora_B[dim, rank] @ lora_A[rank, rows])ᵀ`.
    Embedding,
    /// `weight[out, in, …] += scaling · lora_B[out, rank, 1, …] @ lora_A[rank, in, …]`, the kernel flattened.
    Convolution,
    /// A parameter of many experts, `[experts, …]`: `lora_A[experts · rank, in]`, `lora_B[out, rank · experts]`, in
    /// which the expert is the slow axis of the first and the fast axis of the second.
    Experts {
        /// Which parameter of the module: 0 is the outermost wrapper, the parameter that was declared last.
        depth: usize,
    },
}

impl LayerKind {
    /// A name for people: `linear`, `embedding`, `convolution`, `experts`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Linear => "linear",
            Self::Embedding => "embedding",
            Self::Convolution => "convolution",
            Self::Experts { .. } => "experts",
        }
    }
}

/// Which part of a pipeline of several models a module belongs to, and how its name is written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Scope {
    /// `unet`, `text_encoder`, `text_encoder_2`, `transformer`, …; empty for an ordinary model.
    pub component: String,
    /// Whether the dots of the module's name were replaced by underscores (kohya), so that only the base can tell
    /// where they stood.
    pub is_flattened: bool,
}

/// A low-rank update of one module.
#[derive(Clone, Debug)]
pub struct Layer {
    /// The module in the base, such as `model.layers.0.self_attn.q_proj`.
    pub path: String,
    /// Where that name belongs.
    pub scope: Scope,
    /// How the matrices meet the weight.
    pub kind: LayerKind,
    /// `[rank, in]`, or as the kind says.
    pub lora_a: Tensor,
    /// `[out, rank]`, or as the kind says.
    pub lora_b: Tensor,
    /// The rank; for experts the rank of each.
    pub rank: usize,
    /// What the scaling is made from.
    pub alpha: f64,
    /// `alpha / rank`, or `alpha / √rank`: what the product is multiplied by.
    pub scaling: f64,
    /// Whether the configuration says that the weight is stored `[in, out]`. The base's shape has the last word.
    pub fan_in_fan_out: bool,
    /// `DoRA`: the length that each row of the merged weight gets, `[out]` (`[1, out, 1, …]` of a convolution).
    pub magnitude: Option<Tensor>,
    /// `lora_bias`: `bias += scaling · this`, `[out]`.
    pub bias_delta: Option<Tensor>,
}

impl Layer {
    /// Features that go in: rows of an embedding, input channels times kernel of a convolution.
    pub fn in_features(&self) -> usize {
        self.lora_a.shape().iter().skip(1).product()
    }

    /// Features that come out.
    pub fn out_features(&self) -> usize {
        self.lora_b.shape().first().copied().unwrap_or(0)
    }

    /// The tensors with the endings of their PEFT names.
    pub(crate) fn tensors(&self) -> Vec<(&'static str, &Tensor)> {
        let (a, b) = match self.kind {
            LayerKind::Embedding => ("lora_embedding_A", "lora_embedding_B"),
            _ => ("lora_A.weight", "lora_B.weight"),
        };
        let mut tensors = vec![(a, &self.lora_a), (b, &self.lora_b)];
        tensors.extend(self.bias_delta.iter().map(|bias| ("lora_B.bias", bias)));
        tensors.extend(self.magnitude.iter().map(|magnitude| ("lora_magnitude_vector", magnitude)));
        tensors
    }
}

/// A tensor of the base that is replaced as a whole: `modules_to_save`, trained biases, saved embeddings.
#[derive(Clone, Debug)]
pub struct Replacement {
    /// The tensor in the base, such as `lm_head.weight`.
    pub name: String,
    /// Where that name belongs.
    pub scope: Scope,
    /// What takes its place.
    pub tensor: Tensor,
}
