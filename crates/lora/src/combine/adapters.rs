//! Whole adapters: which of their parts belong together, and whether they can be combined at all.

use std::collections::BTreeMap;
use std::sync::Mutex;

use infer_accel_tensor::{DType, float, threads};

use super::{Dense, Factors, Method, Term, combine_module};
use crate::Error;
use crate::adapter::{Adapter, Config, Layer, LayerKind, Scope, Tensor};
use crate::problem::{Problem, ProblemCode};

/// Makes one adapter out of several: its matrices are float32 and its scaling is 1.
///
/// A module that only some of the adapters change is combined from those alone. Everything is computed in binary64 in
/// one order and rounded to binary32 once: the result has the same bits on every machine, whatever the number of threads.
///
/// * `adapters` and `weights`: as many of the one as of the other, and at least one.
/// * `num_threads`: the most threads to use; `None` is the default of [`threads::default_threads`].
/// * `stop`: asked now and then; once it answers true, the call ends with [`Error::Interrupted`].
///
/// # Errors
///
/// [`Error::CombineArgument`] for settings, [`Error::Combine`] for adapters that do not go together: every reason at
/// once.
pub fn combine(
    adapters: &[&Adapter],
    weights: &[f64],
    method: &Method,
    num_threads: Option<usize>,
    stop: &dyn Fn() -> bool,
) -> Result<Adapter, Error> {
    check_arguments(adapters, weights, method)?;
    let modules = Modules::of(adapters, weights);
    modules.check(adapters, method)?;
    let results: Vec<Mutex<Option<Result<Layer, Problem>>>> =
        modules.all.iter().map(|_| Mutex::new(None)).collect();
    let threads = threads::resolve(num_threads)?;
    threads::parallel_for_interruptible(threads, modules.all.len(), stop, |index| {
        let layer = modules.all[index].combine(method);
        if let Ok(mut slot) = results[index].lock() {
            *slot = Some(layer);
        }
    })?;
    let (mut layers, mut problems) = (Vec::new(), Vec::new());
    for slot in results {
        match slot.into_inner().ok().flatten() {
            Some(Ok(layer)) => layers.push(layer),
            Some(Err(problem)) => problems.push(problem),
            None => {}
        }
    }
    if !problems.is_empty() {
        return Err(Error::Combine { problems });
    }
    Adapter::from_parts(config_of(adapters, &modules), &layers, &[])
}

/// What the combined adapter says about itself: its base and task where all agree. Ranks and alphas follow from its
/// layers.
fn config_of(adapters: &[&Adapter], modules: &Modules<'_>) -> Config {
    let agreed = |note: fn(&Config) -> &Option<String>| {
        let first = adapters.first().and_then(|adapter| note(adapter.config()).clone());
        first.filter(|text| adapters.iter().all(|adapter| note(adapter.config()).as_ref() == Some(text)))
    };
    let mut targets: Vec<String> =
        adapters.iter().flat_map(|adapter| adapter.config().target_parameters.iter().cloned()).collect();
    targets.sort_unstable();
    targets.dedup();
    Config {
        base_model: agreed(|config| &config.base_model),
        task_type: agreed(|config| &config.task_type),
        fan_in_fan_out: modules
            .all
            .iter()
            .flat_map(|module| &module.parts)
            .any(|(_, _, layer)| layer.fan_in_fan_out),
        target_parameters: targets,
        ..Config::default()
    }
}

fn check_arguments(adapters: &[&Adapter], weights: &[f64], method: &Method) -> Result<(), Error> {
    let mut problems = method.problems();
    if adapters.is_empty() {
        problems.push("no adapter came: pass one or more".to_string());
    }
    if adapters.len() != weights.len() {
        problems.push(format!(
            "{} adapters and {} weights came: pass one weight for each adapter",
            adapters.len(),
            weights.len()
        ));
    }
    for (index, weight) in weights.iter().enumerate() {
        if !weight.is_finite() {
            problems.push(format!("weights[{index}]={weight} came; weights must be finite"));
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(Error::CombineArgument { problems }) }
}

/// What all adapters do to one module.
struct Module<'a> {
    name: String,
    /// Place among the adapters, weight, layer.
    parts: Vec<(usize, f64, &'a Layer)>,
}

struct Modules<'a> {
    all: Vec<Module<'a>>,
}

impl<'a> Modules<'a> {
    fn of(adapters: &[&'a Adapter], weights: &[f64]) -> Self {
        let mut by_place: BTreeMap<_, Vec<(usize, f64, &Layer)>> = BTreeMap::new();
        for ((index, adapter), &weight) in adapters.iter().enumerate().zip(weights) {
            for layer in adapter.layers() {
                // Two parameters of one module that has experts differ in nothing else.
                let depth = if let LayerKind::Experts { depth } = layer.kind { depth } else { 0 };
                by_place.entry((&layer.path, depth)).or_default().push((index, weight, layer));
            }
        }
        let modules = by_place.into_iter().map(|((path, depth), parts)| {
            let name = if depth == 0 { path.clone() } else { format!("{path}#{depth}") };
            Module { name, parts }
        });
        Self { all: modules.collect() }
    }

    fn check(&self, adapters: &[&Adapter], method: &Method) -> Result<(), Error> {
        let mut problems: Vec<Problem> = self.all.iter().flat_map(|module| module.problems(method)).collect();
        for (index, adapter) in adapters.iter().enumerate() {
            problems.extend(adapter.replacements().iter().map(|replacement| {
                let message = format!(
                    "adapter {index} replaces this tensor as a whole (modules_to_save or a trained bias), which no method \
                     combines: merge that adapter by itself"
                );
                Problem::new(ProblemCode::Unsupported, &replacement.name, message)
            }));
        }
        if problems.is_empty() { Ok(()) } else { Err(Error::Combine { problems }) }
    }
}

impl Module<'_> {
    fn problems(&self, method: &Method) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut add =
            |code: ProblemCode, message: String| problems.push(Problem::new(code, &self.name, message));
        let Some(&(first_index, _, first)) = self.parts.first() else {
            return problems;
        };
        for &(index, _, layer) in &self.parts {
            if layer.scope != Scope::default() {
                let message = format!(
                    "adapter {index} names its modules as kohya or a pipeline of several models does, which only a base \
                     can resolve: combine adapters of PEFT's naming"
                );
                add(ProblemCode::Unsupported, message);
            }
            if layer.magnitude.is_some() {
                add(
                    ProblemCode::Unsupported,
                    format!(
                        "adapter {index} is DoRA, whose change is no product of two matrices: merge it by itself"
                    ),
                );
            }
            if layer.bias_delta.is_some() {
                add(
                    ProblemCode::Unsupported,
                    format!("adapter {index} changes the bias, too (lora_bias), which no method combines"),
                );
            }
            let sizes = |layer: &Layer| {
                (layer.kind, layer.lora_a.shape().get(1..).map(<[_]>::to_vec), layer.out_features())
            };
            if sizes(layer) != sizes(first) {
                add(
                    ProblemCode::Shape,
                    format!(
                        "adapter {first_index} has lora_A {:?} and lora_B {:?} ({}), adapter {index} {:?} and {:?} ({}): \
                         they were made for different bases",
                        first.lora_a.shape(),
                        first.lora_b.shape(),
                        first.kind.name(),
                        layer.lora_a.shape(),
                        layer.lora_b.shape(),
                        layer.kind.name(),
                    ),
                );
            } else if method.needs_equal_ranks() && layer.rank != first.rank {
                add(
                    ProblemCode::Rank,
                    format!(
                        "adapter {first_index} has rank {}, adapter {index} rank {}: {} needs equal ranks; cat and svd \
                         do not",
                        first.rank,
                        layer.rank,
                        method.name(),
                    ),
                );
            }
        }
        problems
    }

    fn combine(&self, method: &Method) -> Result<Layer, Problem> {
        let fault =
            |error: &dyn std::fmt::Display| Problem::new(ProblemCode::Shape, &self.name, error.to_string());
        let Some(&(_, _, model)) = self.parts.first() else {
            return Err(fault(&"no adapter changes it"));
        };
        let experts = match model.kind {
            LayerKind::Experts { .. } => {
                model.lora_a.shape().first().map_or(1, |&rows| rows / model.rank.max(1))
            }
            _ => 1,
        };
        let whole: Vec<_> =
            self.parts.iter().map(|(_, _, layer)| (numbers(&layer.lora_a), numbers(&layer.lora_b))).collect();
        let mut combined = Vec::with_capacity(experts);
        for expert in 0..experts {
            let parts = self.parts.iter().zip(&whole);
            let matrices: Vec<_> =
                parts.map(|((_, _, layer), (a, b))| matrices_of(layer, (a, b), expert, experts)).collect();
            let terms: Vec<_> = self
                .parts
                .iter()
                .zip(&matrices)
                .map(|(&(adapter, weight, layer), (lora_a, lora_b))| Term {
                    adapter,
                    lora_a,
                    lora_b,
                    scaling: layer.scaling,
                    weight,
                })
                .collect();
            let name = if experts == 1 { self.name.clone() } else { format!("{}[{expert}]", self.name) };
            combined.push(combine_module(&name, &terms, method));
        }
        let Factors { lora_a, lora_b } = joined(&combined);
        if lora_a.values.iter().chain(&lora_b.values).any(|value| !value.is_finite()) {
            let message = "the combined matrices go beyond what float32 can hold: use smaller weights";
            return Err(Problem::new(ProblemCode::Overflow, &self.name, message));
        }
        let rank = lora_a.rows / experts;
        let shaped = |like: &Tensor, matrix: &Dense, axis: usize| {
            let mut shape = like.shape().to_vec();
            if let Some(extent) = shape.get_mut(axis) {
                *extent = rank * experts;
            }
            Tensor::from_f32(&matrix.values, &shape).map_err(|error| fault(&error))
        };
        Ok(Layer {
            lora_a: shaped(&model.lora_a, &lora_a, 0)?,
            lora_b: shaped(&model.lora_b, &lora_b, 1)?,
            rank,
            alpha: rank as f64,
            scaling: 1.0,
            ..model.clone()
        })
    }
}

/// The two matrices of one expert (of the only one, in an ordinary layer), out of those of the whole layer.
///
/// The expert is the slow axis of `lora_a`'s rows and the fast axis of `lora_b`'s columns.
fn matrices_of(layer: &Layer, (a, b): (&[f32], &[f32]), expert: usize, experts: usize) -> (Dense, Dense) {
    let (rank, inputs, outputs) = (layer.rank, layer.in_features(), layer.out_features());
    let a = a.iter().skip(expert * rank * inputs).take(rank * inputs).copied().collect();
    let b = b.iter().skip(expert).step_by(experts).copied().collect();
    (Dense { rows: rank, columns: inputs, values: a }, Dense { rows: outputs, columns: rank, values: b })
}

/// All experts in one pair of matrices again.
fn joined(experts: &[Factors]) -> Factors {
    if let [only] = experts {
        return only.clone();
    }
    let (rows, columns) = experts.first().map_or((0, 0), |first| (first.lora_b.rows, first.lora_b.columns));
    let a: Vec<f32> = experts.iter().flat_map(|expert| expert.lora_a.values.iter().copied()).collect();
    let mut b = vec![0.0; rows * columns * experts.len()];
    for (index, expert) in experts.iter().enumerate() {
        for (target, &value) in b.iter_mut().skip(index).step_by(experts.len()).zip(&expert.lora_b.values) {
            *target = value;
        }
    }
    Factors {
        lora_a: Dense {
            rows: columns * experts.len(),
            columns: experts.first().map_or(0, |first| first.lora_a.columns),
            values: a,
        },
        lora_b: Dense { rows, columns: columns * experts.len(), values: b },
    }
}

/// The elements of a tensor, widened to float32. Adapters hold nothing but the three formats.
fn numbers(tensor: &Tensor) -> Vec<f32> {
    let widened = |widen: fn(u16) -> f32| {
        tensor.bytes().as_chunks::<2>().0.iter().map(|&bytes| widen(u16::from_le_bytes(bytes))).collect()
    };
    match tensor.dtype() {
        DType::F16 => widened(float::f16_to_f32),
        DType::BF16 => widened(float::bf16_to_f32),
        _ => tensor.bytes().as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect(),
    }
}
