//! Whole adapters, combined: what belongs together, what is refused, experts one by one.
#![allow(clippy::unwrap_used)]

use infer_accel_lora::adapter::{Adapter, Config, Layer, LayerKind, Replacement, Scope, Tensor};
use infer_accel_lora::problem::ProblemCode;
use infer_accel_lora::{Error, Method, combine};

const EXPERTS: usize = 3;
const SIZES: (usize, usize) = (5, 4);

fn numbers(seed: usize, count: usize) -> Vec<f32> {
    (0..count).map(|index| ((index * 37 + seed * 11 + 5) % 23) as f32 / 8.0 - 1.25).collect()
}

fn layer(path: &str, kind: LayerKind, rank: usize, seed: usize) -> Layer {
    let (outputs, inputs) = SIZES;
    let rows = if matches!(kind, LayerKind::Experts { .. }) { rank * EXPERTS } else { rank };
    let tensor =
        |seed, shape: [usize; 2]| Tensor::from_f32(&numbers(seed, shape[0] * shape[1]), &shape).unwrap();
    Layer {
        path: path.to_string(),
        scope: Scope::default(),
        kind,
        lora_a: tensor(seed, [rows, inputs]),
        lora_b: tensor(seed + 100, [outputs, rows]),
        rank,
        alpha: 2.0 * rank as f64,
        scaling: 2.0,
        fan_in_fan_out: false,
        magnitude: None,
        bias_delta: None,
    }
}

fn adapter(layers: &[Layer]) -> Adapter {
    let targets = layers.iter().filter(|layer| matches!(layer.kind, LayerKind::Experts { .. }));
    let target_parameters = targets.map(|layer| format!("{}.gate_up_proj", layer.path)).collect();
    Adapter::from_parts(Config { target_parameters, ..Config::default() }, layers, &[]).unwrap()
}

fn floats(tensor: &Tensor) -> Vec<f64> {
    let chunks = tensor.bytes().chunks_exact(4);
    chunks.map(|bytes| f64::from(f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))).collect()
}

/// `scaling · B · A` of one expert: the slow axis of A's rows, the fast axis of B's columns.
fn delta(layer: &Layer, expert: usize, experts: usize) -> Vec<f64> {
    let (a, b) = (floats(&layer.lora_a), floats(&layer.lora_b));
    let (inputs, outputs) = (layer.in_features(), layer.out_features());
    let mut product = vec![0.0; outputs * inputs];
    for row in 0..outputs {
        for rank in 0..layer.rank {
            let left = b[row * layer.rank * experts + rank * experts + expert] * layer.scaling;
            for column in 0..inputs {
                product[row * inputs + column] += left * a[(expert * layer.rank + rank) * inputs + column];
            }
        }
    }
    product
}

fn run(adapters: &[&Adapter], weights: &[f64], method: &Method) -> Result<Adapter, Error> {
    combine(adapters, weights, method, Some(2), &|| false)
}

#[test]
fn experts_are_combined_one_by_one() {
    let kind = LayerKind::Experts { depth: 0 };
    let (first, second) = (layer("moe", kind, 2, 1), layer("moe", kind, 1, 2));
    let adapters = [adapter(std::slice::from_ref(&first)), adapter(std::slice::from_ref(&second))];
    for method in [Method::Cat, Method::Svd { rank: Some(4) }] {
        let combined = run(&[&adapters[0], &adapters[1]], &[0.5, -1.5], &method).unwrap();
        let [only] = combined.layers() else { panic!("one module") };
        assert_eq!((only.kind, only.scaling), (kind, 1.0));
        for expert in 0..EXPERTS {
            let (one, two) = (delta(&first, expert, EXPERTS), delta(&second, expert, EXPERTS));
            let got = delta(only, expert, EXPERTS);
            for ((got, one), two) in got.iter().zip(one).zip(two) {
                assert!((got - (0.5 * one - 1.5 * two)).abs() < 1e-4, "{method:?}");
            }
        }
    }
}

#[test]
fn modules_of_one_adapter_alone_are_kept() {
    let both = adapter(&[layer("q", LayerKind::Linear, 2, 1), layer("v", LayerKind::Linear, 2, 2)]);
    let one = adapter(&[layer("v", LayerKind::Linear, 1, 3)]);
    let combined = run(&[&both, &one], &[1.0, 1.0], &Method::Cat).unwrap();
    let ranks: Vec<_> = combined.layers().iter().map(|layer| (layer.path.as_str(), layer.rank)).collect();
    assert_eq!(ranks, [("q", 2), ("v", 3)]);
    assert_eq!(delta(&combined.layers()[0], 0, 1), delta(&both.layers()[0], 0, 1));
}

#[test]
fn the_result_does_not_depend_on_threads() {
    let layers: Vec<_> =
        (0..9).map(|index| layer(&format!("layers.{index}.q"), LayerKind::Linear, 3, index)).collect();
    let one = adapter(&layers);
    let digest =
        |threads| combine(&[&one, &one], &[1.0, 0.5], &Method::Svd { rank: None }, threads, &|| false);
    assert_eq!(digest(Some(1)).unwrap().digest(), digest(None).unwrap().digest());
}

#[test]
fn a_call_can_be_stopped() {
    let layers: Vec<_> =
        (0..64).map(|index| layer(&format!("layers.{index}.q"), LayerKind::Linear, 3, index)).collect();
    let one = adapter(&layers);
    let slow = || {
        std::thread::sleep(std::time::Duration::from_millis(60));
        true
    };
    // A call that ends before it is asked for the first time is not stopped.
    match combine(&[&one], &[1.0], &Method::Cat, Some(1), &slow) {
        Ok(_) | Err(Error::Interrupted(_)) => {}
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn every_reason_is_named_at_once() {
    let good = adapter(&[layer("q", LayerKind::Linear, 2, 1), layer("v", LayerKind::Linear, 2, 2)]);
    let dora = Layer {
        magnitude: Some(Tensor::from_f32(&[1.0; 5], &[5]).unwrap()),
        ..layer("q", LayerKind::Linear, 2, 3)
    };
    let wide = Layer {
        lora_a: Tensor::from_f32(&numbers(4, 2 * 6), &[2, 6]).unwrap(),
        ..layer("v", LayerKind::Linear, 2, 4)
    };
    let saved = Replacement {
        name: "lm_head.weight".to_string(),
        scope: Scope::default(),
        tensor: Tensor::from_f32(&numbers(5, 8), &[2, 4]).unwrap(),
    };
    let config = Config { use_dora: true, ..Config::default() };
    let bad = Adapter::from_parts(config, &[dora], &[]).unwrap();
    let config = Config { modules_to_save: vec!["lm_head".to_string()], ..Config::default() };
    let worse = Adapter::from_parts(config, &[wide], &[saved]).unwrap();
    let Err(Error::Combine { problems }) = run(&[&good, &bad, &worse], &[1.0; 3], &Method::Cat) else {
        panic!("refused")
    };
    let found: Vec<_> = problems.iter().map(|problem| (problem.code, problem.tensor.as_str())).collect();
    assert_eq!(
        found,
        [
            (ProblemCode::Unsupported, "q"),
            (ProblemCode::Shape, "v"),
            (ProblemCode::Unsupported, "lm_head.weight")
        ]
    );
    let other = adapter(&[layer("q", LayerKind::Linear, 3, 1)]);
    let Err(Error::Combine { problems }) = run(&[&good, &other], &[1.0, 1.0], &Method::Linear) else {
        panic!("refused")
    };
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].code, ProblemCode::Rank);
}

#[test]
fn wrong_calls_are_refused() {
    let one = adapter(&[layer("q", LayerKind::Linear, 2, 1)]);
    for (adapters, weights, method, count) in [
        (vec![], vec![], Method::Cat, 1),
        (vec![&one], vec![1.0, f64::NAN], Method::Ties { density: 0.0 }, 3),
        (vec![&one, &one], vec![f64::INFINITY, 1.0], Method::Svd { rank: Some(0) }, 2),
    ] {
        let Err(Error::CombineArgument { problems }) = run(&adapters, &weights, &method) else {
            panic!("refused")
        };
        assert_eq!(problems.len(), count, "{problems:?}");
    }
    let overflow = run(&[&one], &[1e300], &Method::Cat);
    assert!(
        matches!(overflow, Err(Error::Combine { problems }) if problems[0].code == ProblemCode::Overflow)
    );
}
