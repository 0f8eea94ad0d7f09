//! One layer out of the tensors that belong to it: rank and alpha, kind, magnitude and bias, each held against the others.

use infer_accel_tensor::DType;

use super::Tensor;
use super::assemble::{Named, Parts};
use super::config::{Config, MAX_RANK, Patterns};
use super::layer::{Layer, LayerKind, Scope};
use crate::problem::{Problem, ProblemCode};

pub(super) struct Builder<'a> {
    pub(super) config: Option<&'a Config>,
    pub(super) patterns: &'a Patterns,
}

impl Builder<'_> {
    pub(super) fn layer(
        &self,
        scope: Scope,
        path: String,
        depth: usize,
        mut parts: Parts,
    ) -> Result<Layer, Vec<Problem>> {
        let (a, b, is_embedding) = pair(&path, &mut parts)?;
        let fail = |problem: Problem| vec![problem];
        let parameters = self.config.map_or_else(Vec::new, |config| config.parameters_of(&path));
        let kind = kind_of(&path, &a, &b, is_embedding, depth, &parameters).map_err(fail)?;
        let (rows, columns) =
            (a.1.shape().first().copied().unwrap_or(0), b.1.shape().get(1).copied().unwrap_or(0));
        if rows != columns {
            let message = format!(
                "shape {:?} came, so rank {columns}, but {} has shape {:?}, so rank {rows}; both must be equal",
                b.1.shape(),
                a.0,
                a.1.shape()
            );
            return Err(fail(Problem::new(ProblemCode::Rank, b.0, message)));
        }
        let (rank, alpha) =
            self.rank_and_alpha(&path, &a, kind, &parameters, parts.alpha.as_ref()).map_err(fail)?;
        let scaling = self.config.map_or(alpha / rank as f64, |config| config.scaling(rank, alpha));
        if !(scaling as f32).is_finite() {
            let message = format!(
                "alpha {alpha} at rank {rank} gives a scaling of {scaling}, which float32 cannot hold"
            );
            return Err(fail(Problem::new(ProblemCode::Alpha, path, message)));
        }
        let out = b.1.shape().first().copied().unwrap_or(0);
        let magnitude = self.magnitude(&path, kind, out, parts.magnitude).map_err(fail)?;
        let bias_delta = self.bias_delta(&path, out, parts.bias_delta).map_err(fail)?;
        let fan_in_fan_out = self.config.is_some_and(|config| config.fan_in_fan_out);
        Ok(Layer {
            path,
            scope,
            kind,
            lora_a: a.1,
            lora_b: b.1,
            rank,
            alpha,
            scaling,
            fan_in_fan_out,
            magnitude,
            bias_delta,
        })
    }

    fn rank_and_alpha(
        &self,
        path: &str,
        a: &Named,
        kind: LayerKind,
        parameters: &[&str],
        alpha: Option<&Named>,
    ) -> Result<(usize, f64), Problem> {
        let rows = a.1.shape().first().copied().unwrap_or(0);
        let Some(config) = self.config else {
            check_rank(&a.0, rows)?;
            let alpha = alpha.map_or(Ok(rows as f64), read_alpha)?;
            return Ok((rows, alpha));
        };
        if let Some((name, _)) = alpha {
            let message = "a file of PEFT has its alphas in the configuration, not among the weights";
            return Err(Problem::new(ProblemCode::UnknownTensor, name, message));
        }
        let (rank, alpha) = match kind {
            LayerKind::Experts { .. } => self.of_parameters(path, parameters)?,
            _ => self.patterns.of(config, path)?,
        };
        check_rank(&a.0, rank)?;
        let fits =
            if matches!(kind, LayerKind::Experts { .. }) { rows.is_multiple_of(rank) } else { rows == rank };
        if fits {
            return Ok((rank, alpha));
        }
        let message =
            format!("shape {:?} came, so rank {rows}, but the configuration says rank {rank}", a.1.shape());
        Err(Problem::new(ProblemCode::Rank, &a.0, message))
    }

    /// The rank and alpha of a module's parameters, which all must agree: which parameter a layer means is known only
    /// when the base is.
    fn of_parameters(&self, path: &str, parameters: &[&str]) -> Result<(usize, f64), Problem> {
        let config = self.config.cloned().unwrap_or_default();
        let mut found: Option<(usize, f64)> = None;
        for parameter in parameters {
            let of_this = self.patterns.of(&config, &format!("{path}.{parameter}"))?;
            if found.is_some_and(|other| other != of_this) {
                let message =
                    "its parameters have different ranks or alphas; which layer means which cannot be told";
                return Err(Problem::new(ProblemCode::Ambiguous, path, message));
            }
            found = Some(of_this);
        }
        found.map_or_else(|| self.patterns.of(&config, path), Ok)
    }

    fn magnitude(
        &self,
        path: &str,
        kind: LayerKind,
        out: usize,
        found: Option<Named>,
    ) -> Result<Option<Tensor>, Problem> {
        let is_expected = self.config.is_some_and(|config| config.use_dora);
        match found {
            None if is_expected => {
                let message = "the configuration says use_dora, but this module has no lora_magnitude_vector";
                Err(Problem::new(ProblemCode::Pair, path, message))
            }
            None => Ok(None),
            Some((name, _)) if !is_expected => {
                let message = "this is a magnitude of DoRA, but the configuration does not say use_dora";
                Err(Problem::new(ProblemCode::Config, name, message))
            }
            Some((name, _)) if matches!(kind, LayerKind::Experts { .. }) => {
                Err(Problem::new(ProblemCode::Unsupported, name, "DoRA of experts' parameters is not served"))
            }
            Some((name, tensor)) => tensor.reshaped(&[out]).map(Some).map_err(|_| {
                let message = format!(
                    "shape {:?} came; one number for each of {out} features is needed",
                    tensor.shape()
                );
                Problem::new(ProblemCode::Shape, name, message)
            }),
        }
    }

    fn bias_delta(&self, path: &str, out: usize, found: Option<Named>) -> Result<Option<Tensor>, Problem> {
        let is_expected = self.config.is_some_and(|config| config.lora_bias);
        match found {
            None if is_expected => {
                let message = "the configuration says lora_bias, but this module's lora_B has no bias";
                Err(Problem::new(ProblemCode::Pair, path, message))
            }
            None => Ok(None),
            Some((name, _)) if !is_expected => {
                let message = "this is a bias of lora_B, but the configuration does not say lora_bias";
                Err(Problem::new(ProblemCode::Config, name, message))
            }
            Some((_, tensor)) if tensor.shape() == [out] => Ok(Some(tensor)),
            Some((name, tensor)) => {
                let message = format!("shape {:?} came; [{out}] is needed", tensor.shape());
                Err(Problem::new(ProblemCode::Shape, name, message))
            }
        }
    }
}

fn check_rank(name: &str, rank: usize) -> Result<(), Problem> {
    if (1..=MAX_RANK).contains(&rank) {
        return Ok(());
    }
    Err(Problem::new(ProblemCode::Rank, name, format!("a rank of {rank} came; 1 to {MAX_RANK} are allowed")))
}

/// The two matrices of a module, and whether they are those of an embedding.
fn pair(path: &str, parts: &mut Parts) -> Result<(Named, Named, bool), Vec<Problem>> {
    let linear = (parts.a.take(), parts.b.take());
    let embedding = (parts.embedding_a.take(), parts.embedding_b.take());
    let lonely = |named: Named, other: &str| {
        let message = format!("its partner, {other}, is missing from the file");
        Problem::new(ProblemCode::Pair, named.0, message)
    };
    match (linear, embedding) {
        ((Some(a), Some(b)), (None, None)) => Ok((a, b, false)),
        ((None, None), (Some(a), Some(b))) => Ok((a, b, true)),
        ((None, None), (None, None)) => {
            let others = [parts.magnitude.take(), parts.bias_delta.take(), parts.alpha.take()];
            Err(others
                .into_iter()
                .flatten()
                .map(|named| lonely(named, "the pair of matrices it belongs to"))
                .collect())
        }
        ((a, b), (c, d)) => {
            let mut problems: Vec<Problem> = Vec::new();
            let mixed = (a.is_some() || b.is_some()) && (c.is_some() || d.is_some());
            if mixed {
                let message = "it has matrices of a linear layer and of an embedding at the same time";
                problems.push(Problem::new(ProblemCode::Ambiguous, path, message));
            }
            let halves = [(a, "lora_B"), (b, "lora_A"), (c, "lora_embedding_B"), (d, "lora_embedding_A")];
            let whole = [
                halves[0].0.is_some() == halves[1].0.is_some(),
                halves[2].0.is_some() == halves[3].0.is_some(),
            ];
            for (position, (half, other)) in halves.into_iter().enumerate() {
                if let (Some(named), false) = (half, whole.get(position / 2).copied().unwrap_or(true)) {
                    problems.push(lonely(named, other));
                }
            }
            Err(problems)
        }
    }
}

fn kind_of(
    path: &str,
    a: &Named,
    b: &Named,
    is_embedding: bool,
    depth: usize,
    parameters: &[&str],
) -> Result<LayerKind, Problem> {
    let (of_a, of_b) = (a.1.shape(), b.1.shape());
    let shape_problem = |named: &Named, rule: &str| {
        Problem::new(ProblemCode::Shape, &named.0, format!("shape {:?} came; {rule}", named.1.shape()))
    };
    if !(2..=5).contains(&of_a.len()) {
        return Err(shape_problem(a, "two dimensions are needed, or three to five of a convolution"));
    }
    if of_a.len() != of_b.len() {
        return Err(shape_problem(
            b,
            &format!("as many dimensions are needed as {} has, {}", a.0, of_a.len()),
        ));
    }
    if !parameters.is_empty() && of_a.len() == 2 && !is_embedding {
        return Ok(LayerKind::Experts { depth });
    }
    if depth > 0 {
        let message =
            format!("it is a wrapped parameter of {path:?}, but target_parameters names none of that module");
        return Err(Problem::new(ProblemCode::Config, &a.0, message));
    }
    if of_a.len() == 2 {
        return Ok(if is_embedding { LayerKind::Embedding } else { LayerKind::Linear });
    }
    if is_embedding || of_b.iter().skip(2).any(|&extent| extent != 1) {
        return Err(shape_problem(b, "the second factor of a convolution has a kernel of ones"));
    }
    Ok(LayerKind::Convolution)
}

/// The one number of an alpha's tensor.
fn read_alpha((name, tensor): &Named) -> Result<f64, Problem> {
    let bytes = tensor.bytes();
    let value = match (tensor.dtype(), tensor.len()) {
        (DType::F32, 1) => bytes.first_chunk().map(|&bytes| f64::from(f32::from_le_bytes(bytes))),
        (DType::F16, 1) => bytes.first_chunk().map(|&bytes| half::f16::from_le_bytes(bytes).to_f64()),
        (DType::BF16, 1) => bytes.first_chunk().map(|&bytes| half::bf16::from_le_bytes(bytes).to_f64()),
        (DType::F64, 1) => bytes.first_chunk().map(|&bytes| f64::from_le_bytes(bytes)),
        (DType::I64, 1) => bytes.first_chunk().map(|&bytes| i64::from_le_bytes(bytes) as f64),
        (DType::I32, 1) => bytes.first_chunk().map(|&bytes| f64::from(i32::from_le_bytes(bytes))),
        _ => None,
    };
    match value {
        Some(value) if value.is_finite() => Ok(value),
        Some(value) => Err(Problem::new(
            ProblemCode::Alpha,
            name,
            format!("an alpha of {value} came; it must be finite"),
        )),
        None => {
            let message = format!("shape {:?} came; an alpha is one number", tensor.shape());
            Err(Problem::new(ProblemCode::Shape, name, message))
        }
    }
}
