//! The place of every delta in a base.

use super::experts;
use super::ledger::{Exchange, Ledger, Untied, Update};
use super::names::Names;
use super::overflow;
use super::{Adapter, BaseIndex, BaseTensor, Layer, LayerKind, Matrix, Place, Replacement, Tensor};
use crate::problem::{Problem, ProblemCode};

/// Families of models whose linear layers store their weights `[in, out]`.
const TRANSPOSED_MODELS: [&str; 5] = ["gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp"];

pub(super) fn resolve(adapter: &Adapter, base: &BaseIndex) -> Ledger {
    let with_flattened = adapter.layers().iter().any(|layer| layer.scope.is_flattened);
    let mut resolver =
        Resolver { adapter, base, names: Names::new(base, with_flattened), ledger: Ledger::default() };
    for (index, layer) in adapter.layers().iter().enumerate() {
        if matches!(layer.kind, LayerKind::Experts { .. }) {
            continue;
        }
        if let Err(problem) = resolver.layer(index, layer) {
            resolver.ledger.problems.push(problem);
        }
    }
    experts::resolve(adapter, base, &resolver.names, &mut resolver.ledger);
    for replacement in adapter.replacements() {
        if let Err(problem) = resolver.replacement(replacement) {
            resolver.ledger.problems.push(problem);
        }
    }
    resolver.untie();
    let mut ledger = resolver.ledger;
    overflow::check(adapter, base, &mut ledger);
    ledger.updates.sort_by(|a, b| (&a.target, a.place.offset).cmp(&(&b.target, b.place.offset)));
    ledger.exchanges.sort_by(|a, b| a.target.cmp(&b.target));
    ledger
}

struct Resolver<'a> {
    adapter: &'a Adapter,
    base: &'a BaseIndex,
    names: Names<'a>,
    ledger: Ledger,
}

impl Resolver<'_> {
    fn layer(&mut self, index: usize, layer: &Layer) -> Result<(), Problem> {
        let (target, source) = self.weight(layer)?;
        let Some(weight) = self.base.get(&source) else { return Ok(()) };
        let place = match layer.kind {
            LayerKind::Embedding => embedding_place(layer, weight)?,
            _ => self.linear_place(layer, weight)?,
        };
        let [out, features] = place.shape;
        let broken = |error: infer_accel_tensor::TensorError| {
            Problem::new(ProblemCode::Shape, &layer.path, error.to_string())
        };
        let a = Matrix::new(layer.lora_a.clone(), Place::rows_of(layer.rank, features)).map_err(broken)?;
        let b = Matrix::new(layer.lora_b.clone(), Place::rows_of(out, layer.rank)).map_err(broken)?;
        let magnitude = layer.magnitude.clone();
        self.ledger.updates.push(Update {
            target,
            source,
            layer: index,
            place,
            a,
            b,
            scaling: layer.scaling,
            magnitude,
        });
        match &layer.bias_delta {
            Some(bias) => self.bias(index, layer, bias),
            None => Ok(()),
        }
    }

    /// The tensor that a layer changes, and the one of the base that it starts from.
    fn weight(&self, layer: &Layer) -> Result<(String, String), Problem> {
        if let Some(name) = self.names.find(&layer.path, &layer.scope, "weight")? {
            return Ok((name.clone(), name));
        }
        if let Some(embedding) = self.names.tied_embedding(&layer.path) {
            return Ok((format!("{}.weight", layer.path), embedding));
        }
        let message = format!(
            "the base has no module of this name, so that nothing has a weight {:?}",
            format!("{}.weight", layer.path)
        );
        Err(Problem::new(ProblemCode::UnknownModule, &layer.path, message))
    }

    /// Where `[out, in]` lies in a linear or convolutional weight.
    fn linear_place(&self, layer: &Layer, weight: &BaseTensor) -> Result<Place, Problem> {
        let (out, features) = (layer.out_features(), layer.in_features());
        let [rows, rest @ ..] = weight.shape.as_slice() else { return Err(misfit(layer, weight)) };
        let columns: usize = rest.iter().product();
        let kernel = layer.lora_a.shape().get(2..).unwrap_or_default();
        let of_weight = rest.get(1..).unwrap_or_default();
        let is_pointwise = |kernel: &[usize]| kernel.iter().all(|&extent| extent == 1);
        // A kernel of ones may be left out on either side; any other must be the same.
        if rest.is_empty() || (kernel != of_weight && !(is_pointwise(kernel) && is_pointwise(of_weight))) {
            return Err(misfit(layer, weight));
        }
        let is_straight = (*rows, columns) == (out, features);
        let is_turned = rest.len() == 1 && (*rows, columns) == (features, out);
        let may_be_turned =
            self.base.model_type().map_or(layer.fan_in_fan_out, |model| TRANSPOSED_MODELS.contains(&model));
        match (is_straight, is_turned) {
            (true, true) if may_be_turned && !layer.path.ends_with("lm_head") => {
                Ok(Place::rows_of(*rows, columns).transposed())
            }
            (true, _) => Ok(Place::rows_of(*rows, columns)),
            (false, true) if may_be_turned || layer.fan_in_fan_out => {
                Ok(Place::rows_of(*rows, columns).transposed())
            }
            _ => Err(misfit(layer, weight)),
        }
    }

    /// `lora_bias`: a product of rank 1 with a column of one.
    fn bias(&mut self, index: usize, layer: &Layer, bias: &Tensor) -> Result<(), Problem> {
        let Some(target) = self.names.find(&layer.path, &layer.scope, "bias")? else {
            let message = "lora_bias changes the bias of this module, but in the base it has none";
            return Err(Problem::new(ProblemCode::UnknownModule, &layer.path, message));
        };
        let out = bias.len();
        if self.base.get(&target).is_none_or(|tensor| tensor.shape != [out]) {
            let message = format!("its bias has {out} elements, {target:?} of the base another shape");
            return Err(Problem::new(ProblemCode::Shape, &layer.path, message));
        }
        let broken = |error: infer_accel_tensor::TensorError| {
            Problem::new(ProblemCode::Shape, &layer.path, error.to_string())
        };
        let one = Tensor::from_f32(&[1.0], &[1, 1]).map_err(broken)?;
        let a = Matrix::new(one, Place::rows_of(1, 1)).map_err(broken)?;
        let b = Matrix::new(bias.clone(), Place::rows_of(out, 1)).map_err(broken)?;
        let (source, place) = (target.clone(), Place::rows_of(out, 1));
        self.ledger.updates.push(Update {
            target,
            source,
            layer: index,
            place,
            a,
            b,
            scaling: layer.scaling,
            magnitude: None,
        });
        Ok(())
    }

    fn replacement(&mut self, replacement: &Replacement) -> Result<(), Problem> {
        let Replacement { name, scope, tensor } = replacement;
        let (path, ending) = name.rsplit_once('.').unwrap_or(("", name));
        let found = if path.is_empty() {
            self.base.get(name).map(|_| name.clone())
        } else {
            self.names.find(path, scope, ending)?
        };
        let (target, source) = match found {
            Some(found) => (found.clone(), found),
            None => match self.names.tied_embedding(path) {
                Some(embedding) if ending == "weight" => (name.clone(), embedding),
                _ => {
                    let message = "the base has no tensor of this name that could be replaced";
                    return Err(Problem::new(ProblemCode::UnknownModule, name, message));
                }
            },
        };
        match self.base.get(&source) {
            Some(base) if base.shape != tensor.shape() => {
                let message = format!(
                    "shape {:?} came, {source:?} of the base has {:?}; a resized vocabulary needs a resized base",
                    tensor.shape(),
                    base.shape
                );
                Err(Problem::new(ProblemCode::Shape, name, message))
            }
            _ => {
                self.ledger.exchanges.push(Exchange { target, tensor: tensor.clone() });
                Ok(())
            }
        }
    }

    /// Whether the head no longer shares the embedding's weight.
    fn untie(&mut self) {
        if !self.base.ties_embeddings() {
            return;
        }
        let Some(embedding) = self.names.embedding() else { return };
        let head = self.head();
        let of = |name: &str| {
            let is_updated = self.ledger.updates.iter().any(|update| update.target == name);
            (is_updated, self.ledger.exchanges.iter().find(|exchange| exchange.target == name))
        };
        let is_apart = match (of(&embedding), of(&head)) {
            ((false, None), (false, None)) => false,
            // Both are replaced by the same weights: they may go on sharing them.
            ((false, Some(left)), (false, Some(right))) => left.tensor.bytes() != right.tensor.bytes(),
            _ => true,
        };
        if is_apart {
            self.ledger.untied = Some(Untied { embedding, head });
        } else if self.base.get(&head).is_none() {
            self.ledger.exchanges.retain(|exchange| exchange.target != head);
        }
    }

    /// The name of the head's weight: as the base or the adapter has it.
    fn head(&self) -> String {
        let heads = ["lm_head.weight", "embed_out.weight", "output.weight"];
        let in_adapter = |name: &&&str| {
            let module = name.trim_end_matches(".weight");
            self.adapter.layers().iter().any(|layer| layer.path == module)
                || self.adapter.replacements().iter().any(|replacement| replacement.name == **name)
        };
        let found =
            heads.iter().find(in_adapter).or_else(|| heads.iter().find(|name| self.base.get(name).is_some()));
        (*found.unwrap_or(&heads[0])).to_owned()
    }
}

fn embedding_place(layer: &Layer, weight: &BaseTensor) -> Result<Place, Problem> {
    let (dimension, rows) = (layer.out_features(), layer.in_features());
    if weight.shape == [rows, dimension] {
        return Ok(Place::rows_of(rows, dimension).transposed());
    }
    Err(misfit(layer, weight))
}

/// The fault of matrices that do not fit the weight they mean.
pub(super) fn misfit(layer: &Layer, weight: &BaseTensor) -> Problem {
    let message = format!(
        "a {} update of {:?} and {:?} came, but the weight of the base has shape {:?}",
        layer.kind.name(),
        layer.lora_a.shape(),
        layer.lora_b.shape(),
        weight.shape
    );
    Problem::new(ProblemCode::Shape, &layer.path, message)
}
