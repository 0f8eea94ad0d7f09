//! What defines each method, held against its results; the specification in numpy is compared bit for bit from Python.

use proptest::prelude::*;

use super::householder::{Columns, Reflections, dot};
use super::jacobi::Decomposition;
use super::{Dense, Factors, Method, MethodSettings, Term, combine_module};
use crate::Error;

const MODULE: &str = "model.layers.0.self_attn.q_proj";

fn dense(rows: usize, columns: usize, values: impl Iterator<Item = f32>) -> Dense {
    Dense { rows, columns, values: values.take(rows * columns).collect() }
}

/// Numbers in (−1, 1), another sequence for each seed.
fn numbers(seed: u64) -> impl Iterator<Item = f32> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    std::iter::repeat_with(move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32 - 8_388_608.0) / 8_388_608.0
    })
}

/// An adapter: both matrices, scaling, weight.
type Parts = (Dense, Dense, f64, f64);

fn adapter(out: usize, rank: usize, inputs: usize, seed: u64, factors: (f64, f64)) -> Parts {
    (dense(rank, inputs, numbers(seed)), dense(out, rank, numbers(seed ^ 0x5555)), factors.0, factors.1)
}

fn terms(adapters: &[Parts]) -> Vec<Term<'_>> {
    let numbered = adapters.iter().enumerate();
    numbered
        .map(|(adapter, (lora_a, lora_b, scaling, weight))| Term {
            adapter,
            lora_a,
            lora_b,
            scaling: *scaling,
            weight: *weight,
        })
        .collect()
}

/// `Σ factor · b · a`, row by row.
fn delta(adapters: &[Parts]) -> Vec<f64> {
    let (out, inputs) = (adapters[0].1.rows, adapters[0].0.columns);
    let mut total = vec![0.0; out * inputs];
    for (a, b, scaling, weight) in adapters {
        for row in 0..out {
            for rank in 0..a.rows {
                let left = f64::from(b.values[row * b.columns + rank]) * scaling * weight;
                for column in 0..inputs {
                    total[row * inputs + column] += left * f64::from(a.values[rank * inputs + column]);
                }
            }
        }
    }
    total
}

fn product(factors: &Factors) -> Vec<f64> {
    delta(&[(factors.lora_a.clone(), factors.lora_b.clone(), 1.0, 1.0)])
}

fn norm(values: &[f64]) -> f64 {
    dot(values, values).sqrt()
}

fn distance(left: &[f64], right: &[f64]) -> f64 {
    norm(&left.iter().zip(right).map(|(x, y)| x - y).collect::<Vec<_>>())
}

fn adapters() -> impl Strategy<Value = Vec<Parts>> {
    let one = (1_usize..6, any::<u64>(), -2.0..2.0_f64, -1.5..1.5_f64);
    (1_usize..12, 1_usize..12, prop::collection::vec(one, 1..4)).prop_map(|(out, inputs, list)| {
        list.into_iter()
            .map(|(rank, seed, scaling, weight)| adapter(out, rank, inputs, seed, (scaling, weight)))
            .collect()
    })
}

proptest! {
    #[test]
    fn cat_is_the_sum(adapters in adapters()) {
        let result = combine_module(MODULE, &terms(&adapters), &Method::Cat);
        let expected = delta(&adapters);
        prop_assert!(distance(&product(&result), &expected) <= 1e-6 * (1.0 + norm(&expected)));
        prop_assert_eq!(result.lora_a.rows, adapters.iter().map(|(a, ..)| a.rows).sum::<usize>());
    }

    /// Orthonormal rows of A, orthogonal columns of B of falling norms, and the sum itself when nothing is cut: these
    /// three define a singular value decomposition.
    #[test]
    fn svd_is_a_decomposition(adapters in adapters(), rank in 1_usize..16) {
        let full = combine_module(MODULE, &terms(&adapters), &Method::Svd { rank: Some(usize::MAX) });
        let expected = delta(&adapters);
        let size = 1e-6 * (1e-3 + norm(&expected));
        prop_assert!(distance(&product(&full), &expected) <= size);
        let kept = full.lora_a.rows;
        let row = |index: usize| full.lora_a.values[index * full.lora_a.columns..][..full.lora_a.columns].to_vec();
        let column = |index: usize| -> Vec<f64> {
            full.lora_b.values.iter().skip(index).step_by(kept).map(|&value| f64::from(value)).collect()
        };
        for first in 0..kept {
            for second in 0..=first {
                let wide = |index| row(index).into_iter().map(f64::from).collect::<Vec<_>>();
                let inner = dot(&wide(first), &wide(second));
                prop_assert!((inner - f64::from(u8::from(first == second))).abs() <= 1e-5);
                if first != second {
                    prop_assert!(norm(&column(first)) <= norm(&column(second)) + size);
                    let inner = dot(&column(first), &column(second));
                    prop_assert!(inner.abs() <= size * (1.0 + norm(&expected)));
                }
            }
        }
        let cut = combine_module(MODULE, &terms(&adapters), &Method::Svd { rank: Some(rank) });
        let left = rank.min(kept);
        prop_assert_eq!(&cut.lora_a.values[..], &full.lora_a.values[..left * full.lora_a.columns]);
        prop_assert_eq!(cut.lora_b.columns, left);
    }

    #[test]
    fn qr_gives_the_matrix_back(rows in 1_usize..20, count in 1_usize..20, seed in any::<u64>()) {
        let values: Vec<f64> = numbers(seed).take(rows * count).map(f64::from).collect();
        let reflections = Reflections::of(Columns { rows, count, values: values.clone() });
        let mut upper = Columns::zeros(reflections.rank(), count);
        for column in 0..count {
            for row in 0..reflections.rank() {
                upper.column_mut(column)[row] = reflections.upper(row, column);
            }
        }
        prop_assert!(distance(&reflections.expand(&upper).values, &values) <= 1e-13 * norm(&values));
    }

    #[test]
    fn pruning_keeps_the_largest(out in 1_usize..9, rank in 1_usize..5, inputs in 1_usize..9, seed in any::<u64>(), density in 0.01..1.0_f64) {
        let adapters = [adapter(out, rank, inputs, seed, (1.0, 1.0))];
        let result = combine_module(MODULE, &terms(&adapters), &Method::MagnitudePrune { density });
        for (before, after) in [(&adapters[0].0, &result.lora_a), (&adapters[0].1, &result.lora_b)] {
            let kept: Vec<bool> = after.values.iter().map(|&value| value != 0.0).collect();
            prop_assert_eq!(kept.iter().filter(|&&is| is).count(), (density * before.values.len() as f64) as usize);
            let magnitudes = |wanted: bool| {
                let values = before.values.iter().zip(&kept).filter(move |&(_, &is)| is == wanted);
                values.map(|(value, _)| value.abs()).collect::<Vec<_>>()
            };
            let smallest = magnitudes(true).into_iter().fold(f32::INFINITY, f32::min);
            prop_assert!(magnitudes(false).iter().all(|&value| value <= smallest));
        }
    }
}

#[test]
fn equal_adapters_leave_no_second_rank() {
    let one = adapter(9, 1, 7, 3, (0.5, 1.0));
    let result = combine_module(MODULE, &terms(&[one.clone(), one.clone()]), &Method::Svd { rank: Some(2) });
    let second: Vec<f64> =
        result.lora_b.values.iter().skip(1).step_by(2).map(|&value| f64::from(value)).collect();
    assert!(norm(&second) < 1e-14, "{second:?}");
    assert!(distance(&product(&result), &delta(&[one.clone(), one])) < 1e-6);
}

#[test]
fn zeros_have_a_decomposition() {
    let zero = (dense(2, 4, std::iter::repeat(0.0)), dense(3, 2, std::iter::repeat(0.0)), 1.0, 1.0);
    let result = combine_module(MODULE, &terms(&[zero]), &Method::Svd { rank: None });
    assert!(result.lora_b.values.iter().all(|&value| value == 0.0));
    assert!(result.lora_a.values.iter().all(|value| value.is_finite()));
    let empty = Decomposition::of(Columns::zeros(0, 0));
    assert!(empty.scaled_left.values.is_empty() && empty.right.values.is_empty());
}

#[test]
fn signs_are_elected_place_by_place() {
    let adapter =
        |a: [f32; 4], weight: f64| (dense(1, 4, a.into_iter()), dense(1, 1, [1.0].into_iter()), 1.0, weight);
    let adapters = [adapter([3.0, -1.0, 2.0, 0.0], 1.0), adapter([-1.0, -1.0, 2.0, 0.0], 4.0)];
    let result = combine_module(MODULE, &terms(&adapters), &Method::Ties { density: 1.0 });
    // 3 outvotes −1; −1 and −2·1 agree and are averaged, as 2 and 2·2; zero has no sign.
    assert_eq!(result.lora_a.values, [3.0, -1.5, 3.0, 0.0]);
    let result = combine_module(MODULE, &terms(&adapters), &Method::Linear);
    assert_eq!(result.lora_a.values, [1.0, -3.0, 6.0, 0.0]);
}

#[test]
fn a_negative_weight_turns_one_matrix() {
    let adapters = [adapter(3, 2, 4, 1, (2.0, -2.0))];
    let result = combine_module(MODULE, &terms(&adapters), &Method::Linear);
    let expected = delta(&adapters);
    assert!(distance(&product(&result), &expected) <= 1e-6 * norm(&expected));
}

#[test]
fn random_choices_follow_seed_module_matrix_and_adapter() {
    let one = adapter(8, 8, 64, 9, (1.0, 1.0));
    let kept = |module: &str, seed: u64, place: usize| {
        let term = Term { adapter: place, lora_a: &one.0, lora_b: &one.1, scaling: 1.0, weight: 1.0 };
        combine_module(module, &[term], &Method::DareLinear { density: 0.5, seed }).lora_a.values
    };
    let first = kept("one", 7, 0);
    assert_eq!(first, kept("one", 7, 0));
    for other in [kept("two", 7, 0), kept("one", 8, 0), kept("one", 7, 1)] {
        assert_ne!(first, other);
    }
    let share = first.iter().filter(|&&value| value != 0.0).count() as f64 / first.len() as f64;
    assert!((share - 0.5).abs() < 0.1, "{share}");
    for (value, before) in first.iter().zip(&one.0.values) {
        assert!(*value == 0.0 || *value == 2.0 * before);
    }
}

#[test]
fn settings_belong_to_methods() {
    let all = MethodSettings { density: Some(0.5), rank: Some(4), seed: Some(1) };
    for name in Method::NAMES {
        let takes_density = !["linear", "cat", "svd"].contains(&name);
        let settings = MethodSettings {
            density: all.density.filter(|_| takes_density),
            rank: all.rank.filter(|_| name == "svd"),
            seed: all.seed.filter(|_| name.starts_with("dare")),
        };
        assert_eq!(Method::from_name(name, &settings).map(|method| method.name()), Ok(name));
        let Err(Error::CombineArgument { problems }) = Method::from_name(name, &all) else {
            panic!("{name}")
        };
        let taken = [settings.density.is_some(), settings.rank.is_some(), settings.seed.is_some()];
        let not_taken = taken.iter().filter(|&&is| !is).count();
        assert_eq!(problems.len(), not_taken, "{name}: {problems:?}");
    }
    for density in [0.0, -0.1, 1.01, f64::NAN, f64::INFINITY] {
        let settings = MethodSettings { density: Some(density), seed: None, rank: Some(3) };
        let Err(Error::CombineArgument { problems }) = Method::from_name("dare_ties", &settings) else {
            panic!()
        };
        assert_eq!(problems.len(), 3, "{problems:?}");
    }
    assert!(
        Method::from_name("svd", &MethodSettings { rank: Some(0), ..MethodSettings::default() }).is_err()
    );
    assert!(Method::from_name("sum", &MethodSettings::default()).is_err());
}
