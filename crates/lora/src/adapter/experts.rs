//! Updates of experts' parameters: which parameter each layer means, and where each expert lies in it.
//!
//! PEFT wraps a module once for each of its parameters, in the order in which they were declared, and names the wrappers
//! by their nesting only. So the shapes tell which wrapper belongs to which parameter; where they fit several, the
//! usual order of declaration does.

use infer_accel_tensor::TensorError;

use super::ledger::{Ledger, Update};
use super::names::Names;
use super::{Adapter, BaseIndex, BaseTensor, Layer, LayerKind, Matrix, Place, Scope};
use crate::problem::{Problem, ProblemCode};

/// Families whose experts' parameters are `[experts, in, out]`; the others' are `[experts, out, in]`.
const TRANSPOSED_MODELS: [&str; 4] = ["gpt_oss", "aria", "aria_text", "openai_privacy_filter"];

/// The order in which models declare parameters of their experts.
const DECLARED: [&str; 8] = ["gate_up_proj", "gate_proj", "up_proj", "down_proj", "w13", "w1", "w3", "w2"];

/// Parameters that models hold in one tensor and checkpoints in one for each expert: the parts of each, by their rows.
const SPLIT: [(&str, &[&str]); 4] = [
    ("gate_up_proj", &["gate_proj", "up_proj"]),
    ("gate_up_proj", &["w1", "w3"]),
    ("down_proj", &["down_proj"]),
    ("down_proj", &["w2"]),
];

/// More parameters of one module than any model has; their orders are tried one by one.
const MAX_PARAMETERS: usize = 4;

pub(super) fn resolve(adapter: &Adapter, base: &BaseIndex, names: &Names<'_>, ledger: &mut Ledger) {
    let finder = Finder { adapter, base, names };
    let is_experts = |layer: &Layer| matches!(layer.kind, LayerKind::Experts { .. });
    let layers = adapter.layers();
    let mut index = 0;
    while let Some(first) = layers.get(index) {
        // Layers are sorted: those of one module lie together, the outermost first.
        let same = |layer: &&Layer| layer.path == first.path && layer.scope == first.scope;
        let count = layers.get(index..).unwrap_or_default().iter().take_while(same).count();
        if is_experts(first) {
            match finder.module(index, index + count) {
                Ok(mut updates) => ledger.updates.append(&mut updates),
                Err(problem) => ledger.problems.push(problem),
            }
        }
        index += count;
    }
}

struct Finder<'a> {
    adapter: &'a Adapter,
    base: &'a BaseIndex,
    names: &'a Names<'a>,
}

/// Tensors of the base that together are one parameter: where each expert's `[out, in]` lies, from which row on.
struct Parameter {
    pieces: Vec<PieceOf>,
}

struct PieceOf {
    tensor: String,
    expert: usize,
    first_row: usize,
    place: Place,
}

impl Finder<'_> {
    /// All updates of one module, whose layers are those from `start` to `end`.
    fn module(&self, start: usize, end: usize) -> Result<Vec<Update>, Problem> {
        let layers = self.adapter.layers().get(start..end).unwrap_or_default();
        let Some(first) = layers.first() else { return Ok(Vec::new()) };
        let parameters = self.adapter.config().parameters_of(&first.path);
        if parameters.len() != layers.len() || layers.len() > MAX_PARAMETERS {
            let message = format!(
                "it has updates of {} parameters, but target_parameters names {} of this module: {}",
                layers.len(),
                parameters.len(),
                parameters.join(", ")
            );
            return Err(Problem::new(ProblemCode::Config, &first.path, message));
        }
        let mut updates = Vec::new();
        for (offset, parameter) in self.assign(layers, &parameters)?.into_iter().enumerate() {
            if let Some(layer) = layers.get(offset) {
                updates.append(&mut updates_of(start + offset, layer, parameter)?);
            }
        }
        Ok(updates)
    }

    /// Which parameter each layer means: the first order that fits, of all orders, beginning with the usual one.
    fn assign(&self, layers: &[Layer], parameters: &[&str]) -> Result<Vec<Parameter>, Problem> {
        let mut declared: Vec<&str> = parameters.to_vec();
        let rank_of = |name: &&str| DECLARED.iter().position(|known| known == name).unwrap_or(DECLARED.len());
        declared.sort_by_key(rank_of);
        declared.reverse(); // the outermost wrapper, which comes first here, was declared last
        let mut fault = None;
        for order in orders(&declared) {
            let found: Result<Vec<Parameter>, Problem> =
                layers.iter().zip(order).map(|(layer, name)| self.parameter(layer, name)).collect();
            match found {
                Ok(found) => return Ok(found),
                Err(problem) => fault = fault.or(Some(problem)),
            }
        }
        Err(fault.unwrap_or_else(|| Problem::new(ProblemCode::Ambiguous, "", "no parameter is named")))
    }

    /// The parameter of a name, if the layer's matrices fit it.
    fn parameter(&self, layer: &Layer, name: &str) -> Result<Parameter, Problem> {
        if let Some(tensor) = self.names.find(&layer.path, &layer.scope, name)? {
            let Some(weight) = self.base.get(&tensor) else { return Ok(Parameter { pieces: Vec::new() }) };
            return self.whole(layer, &tensor, weight);
        }
        for (whole, parts) in SPLIT {
            let found = if whole == name { self.split(layer, parts)? } else { None };
            if let Some(found) = found {
                return Ok(found);
            }
        }
        let message = format!("the base has no parameter {:?}", format!("{}.{name}", layer.path));
        Err(Problem::new(ProblemCode::UnknownModule, &layer.path, message))
    }

    /// A parameter that is one tensor of the base.
    fn whole(&self, layer: &Layer, tensor: &str, weight: &BaseTensor) -> Result<Parameter, Problem> {
        let (out, features, experts) = extents(layer);
        let refuse = || super::resolve::misfit(layer, weight);
        let (first, second) = match *weight.shape.as_slice() {
            [first, second] if experts == 1 => (first, second),
            [count, first, second] if experts == count => (first, second),
            _ => return Err(refuse()),
        };
        let (is_straight, is_turned) =
            ((first, second) == (out, features), (first, second) == (features, out));
        let is_three = weight.shape.len() == 3;
        let turn = match (is_straight, is_turned && is_three) {
            (true, false) => false,
            (false, true) => true,
            (true, true) => {
                let Some(model) = self.base.model_type() else {
                    let message = "its experts' weights are square: only the base's model_type could tell how they \
                                   are stored";
                    return Err(Problem::new(ProblemCode::Ambiguous, &layer.path, message));
                };
                TRANSPOSED_MODELS.contains(&model)
            }
            (false, false) => return Err(refuse()),
        };
        let of_expert = |expert: usize| {
            let stored = Place { offset: expert * first * second, ..Place::rows_of(first, second) };
            let place = if turn { stored.transposed() } else { stored };
            PieceOf { tensor: tensor.to_owned(), expert, first_row: 0, place }
        };
        Ok(Parameter { pieces: (0..experts).map(of_expert).collect() })
    }

    /// A parameter that the base holds in one tensor for each expert and part; `None` where it holds no such tensors.
    fn split(&self, layer: &Layer, parts: &[&str]) -> Result<Option<Parameter>, Problem> {
        let (out, features, experts) = extents(layer);
        let mut pieces = Vec::new();
        for expert in 0..experts {
            let mut first_row = 0;
            for part in parts {
                let Some(tensor) = self.expert_weight(&layer.path, &layer.scope, expert, part)? else {
                    return Ok(None);
                };
                let Some(weight) = self.base.get(&tensor) else { return Ok(None) };
                match *weight.shape.as_slice() {
                    [rows, columns] if columns == features => {
                        pieces.push(PieceOf {
                            tensor,
                            expert,
                            first_row,
                            place: Place::rows_of(rows, columns),
                        });
                        first_row += rows;
                    }
                    _ => return Err(super::resolve::misfit(layer, weight)),
                }
            }
            if first_row != out {
                let message =
                    format!("its expert {expert} has {first_row} rows in the base, the update {out}");
                return Err(Problem::new(ProblemCode::Shape, &layer.path, message));
            }
        }
        Ok(Some(Parameter { pieces }))
    }

    fn expert_weight(
        &self,
        path: &str,
        scope: &Scope,
        expert: usize,
        part: &str,
    ) -> Result<Option<String>, Problem> {
        for path in [path.to_owned(), path.replace(".mlp.experts", ".block_sparse_moe.experts")] {
            let found = self.names.find(&format!("{path}.{expert}.{part}"), scope, "weight")?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }
}

/// One update for each piece of a parameter.
fn updates_of(index: usize, layer: &Layer, parameter: Parameter) -> Result<Vec<Update>, Problem> {
    let (_, features, experts) = extents(layer);
    let rank = layer.rank;
    let broken = |error: TensorError| Problem::new(ProblemCode::Shape, &layer.path, error.to_string());
    let update = |piece: PieceOf| {
        let PieceOf { tensor, expert, first_row, place } = piece;
        let of_a = Place { offset: expert * rank * features, ..Place::rows_of(rank, features) };
        let of_b = Place {
            offset: first_row * rank * experts + expert,
            shape: [place.shape[0], rank],
            strides: [(rank * experts) as isize, experts as isize],
        };
        Ok(Update {
            source: tensor.clone(),
            target: tensor,
            layer: index,
            place,
            a: Matrix::new(layer.lora_a.clone(), of_a).map_err(broken)?,
            b: Matrix::new(layer.lora_b.clone(), of_b).map_err(broken)?,
            scaling: layer.scaling,
            magnitude: None,
        })
    };
    parameter.pieces.into_iter().map(update).collect()
}

/// Features out and in of one expert, and the number of experts.
fn extents(layer: &Layer) -> (usize, usize, usize) {
    let rows = layer.lora_a.shape().first().copied().unwrap_or(0);
    (layer.out_features(), layer.in_features(), rows / layer.rank.max(1))
}

/// All orders of a few names, beginning with the given one.
fn orders<'a>(names: &[&'a str]) -> Vec<Vec<&'a str>> {
    if names.is_empty() {
        return vec![Vec::new()];
    }
    let mut all = Vec::new();
    for (position, &name) in names.iter().enumerate() {
        let rest: Vec<&str> =
            names.iter().enumerate().filter(|&(p, _)| p != position).map(|(_, &n)| n).collect();
        for mut order in orders(&rest) {
            order.insert(0, name);
            all.push(order);
        }
    }
    all
}
