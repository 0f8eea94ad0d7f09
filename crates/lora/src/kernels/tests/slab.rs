//! Sweeps against a scalar specification: several deltas, formats, dither, magnitudes, statistics, residues.

use super::*;
use crate::residue::Exception;
use crate::slab::{Delta, Rounding, SlabOptions};
use crate::statistics::MergeStatistics;
use crate::{AdapterDigest, Residue, ResidueBuilder, merge_slab, merge_with_residue};
use calls::{Parts, merge_parts, undo_parts};
use random::RowKey;

/// The bits of an element, as a number.
fn bits(stored: &Stored, row: usize, column: usize) -> u32 {
    let at = stored.place(row, column);
    stored.bytes[at..at + stored.dtype.size()].iter().rev().fold(0, |bits, &byte| bits << 8 | u32::from(byte))
}

fn copy(from: &Stored, to: &mut Stored) {
    for i in 0..from.shape[0] {
        for j in 0..from.shape[1] {
            let (source, target) = (from.place(i, j), to.place(i, j));
            let size = from.dtype.size();
            to.bytes[target..target + size].copy_from_slice(&from.bytes[source..source + size]);
        }
    }
}

fn specified_sum(a: &Stored, b: &Stored, i: usize, j: usize) -> f32 {
    let mut order: Vec<usize> = (0..a.shape[0]).collect();
    if a.dtype == DType::BF16 && b.dtype == DType::BF16 {
        order.chunks_exact_mut(2).for_each(|pair| pair.swap(0, 1));
    }
    order.iter().fold(0.0, |sum, &k| b.get(i, k).mul_add(a.get(k, j), sum))
}

/// Rounds up or down as the draw says, by the definition: how far the value is between its neighbours.
fn specified_dither(value: f32, dtype: DType, key: RowKey, column: usize) -> f32 {
    let (bits, steps): (u32, fn(u32) -> f32) = match dtype {
        DType::BF16 => (16, |code| f32::from_bits(code << 16)),
        DType::F16 => (13, |code| float::f16_to_f32(code as u16)),
        _ => return value,
    };
    if !value.is_finite() {
        return value;
    }
    let size = value.abs();
    let infinity = if dtype == DType::BF16 { 0x7f80 } else { 0x7c00 };
    // The largest number of the format that is not above.
    let (mut low, mut high) = (0_u32, infinity);
    while high - low > 1 {
        let middle = u32::midpoint(low, high);
        if steps(middle) <= size { low = middle } else { high = middle }
    }
    let below = f64::from(steps(low));
    let above = if high == infinity && dtype == DType::F16 { 65536.0 } else { f64::from(steps(high)) };
    let above = if above.is_finite() { above } else { 2.0_f64.powi(128) };
    let share = (f64::from(size) - below) / (above - below);
    let draw = key.draw(column as u32) >> (32 - bits);
    let up = (share * f64::from(1 << bits)).floor() + f64::from(draw) >= f64::from(1 << bits);
    let rounded = if size >= 65536.0 && dtype == DType::F16 {
        f32::INFINITY
    } else if up {
        above as f32
    } else {
        below as f32
    };
    rounded.copysign(value)
}

struct Case {
    weight: Stored,
    out: Stored,
    factors: Vec<(Stored, Stored, f32)>,
    magnitude: Option<Stored>,
}

impl Case {
    fn deltas(&self) -> Vec<Delta<'_>> {
        self.factors
            .iter()
            .map(|(a, b, scaling)| Delta { lora_a: a.view(), lora_b: b.view(), scaling: f64::from(*scaling) })
            .collect()
    }

    fn values(&self, i: usize) -> Vec<f32> {
        (0..self.weight.shape[1])
            .map(|j| {
                let add = |value: f32, (a, b, scaling): &(Stored, Stored, f32)| {
                    if a.shape[0] == 0 { value } else { scaling.mul_add(specified_sum(a, b, i, j), value) }
                };
                self.factors.iter().fold(self.weight.get(i, j), add)
            })
            .collect()
    }

    /// Whether bits stay as they are, NaN included.
    fn keeps_bits(&self) -> bool {
        let nothing = self.factors.iter().all(|(a, _, _)| a.shape[0] == 0) && self.magnitude.is_none();
        nothing && self.weight.dtype == self.out.dtype
    }

    fn specified(&self, first_row: usize, rounding: Rounding) -> Stored {
        let mut out = self.out.clone();
        if self.keeps_bits() {
            copy(&self.weight, &mut out);
            return out;
        }
        for i in 0..self.weight.shape[0] {
            let mut values = self.values(i);
            if let Some(magnitude) = &self.magnitude {
                let mut part = [0.0_f32; 16];
                for (j, &value) in values.iter().enumerate() {
                    part[j % 16] = value.mul_add(value, part[j % 16]);
                }
                for half in [8, 4, 2, 1] {
                    (0..half).for_each(|i| part[i] += part[i + half]);
                }
                let factor = magnitude.get(i, 0) / part[0].sqrt();
                for value in &mut values {
                    *value *= factor;
                }
            }
            for (j, &value) in values.iter().enumerate() {
                let value = match rounding {
                    Rounding::Stochastic { seed } => {
                        let key = RowKey::new(seed, (first_row + i) as u64);
                        specified_dither(value, out.dtype, key, j)
                    }
                    Rounding::Nearest => value,
                };
                out.set(i, j, value);
            }
        }
        out
    }

    /// What rounding the merged weight minus the deltas misses.
    fn specified_exceptions(&self, merged: &Stored, first_row: usize) -> Vec<Exception> {
        let [rows, columns] = self.weight.shape;
        let mut restored = self.weight.clone();
        let mut exceptions = Vec::new();
        if self.keeps_bits() {
            return exceptions;
        }
        for i in 0..rows {
            for j in 0..columns {
                let take = |value: f32, (a, b, scaling): &(Stored, Stored, f32)| {
                    if a.shape[0] == 0 { value } else { (-scaling).mul_add(specified_sum(a, b, i, j), value) }
                };
                restored.set(i, j, self.factors.iter().rev().fold(merged.get(i, j), take));
                let (wanted, got) = (bits(&self.weight, i, j), bits(&restored, i, j));
                if wanted != got {
                    let mask = if self.weight.dtype == DType::F32 { u32::MAX } else { 0xffff };
                    let index = ((first_row + i) * columns + j) as u64;
                    exceptions.push(Exception { index, difference: wanted.wrapping_sub(got) & mask });
                }
            }
        }
        exceptions
    }
}

fn case(
    [rows, columns]: [usize; 2],
    ranks: &[usize],
    dtypes: (DType, DType, DType),
    kinds: (Values, Values),
    layouts: (u8, u8, u8),
    seed: u64,
) -> Case {
    let mut random = Random(seed);
    let weight = Stored::random(dtypes.0, [rows, columns], layouts.0, kinds.0, &mut random);
    let out = Stored::random(dtypes.1, [rows, columns], layouts.1, Values::Plain, &mut random);
    let factors = ranks
        .iter()
        .map(|&rank| {
            let a = Stored::random(dtypes.2, [rank, columns], layouts.2, kinds.1, &mut random);
            let b = Stored::random(dtypes.2, [rows, rank], layouts.2 / 5, kinds.1, &mut random);
            (a, b, [0.5_f32, -0.01, 3.0][rank % 3])
        })
        .collect();
    Case { weight, out, factors, magnitude: None }
}

fn statistics_of(case: &Case, merged: &Stored) -> MergeStatistics {
    let [rows, columns] = case.weight.shape;
    let mut all = MergeStatistics { elements: (rows * columns) as u64, ..Default::default() };
    for i in 0..rows {
        for j in 0..columns {
            let add = |delta: f32, (a, b, scaling): &(Stored, Stored, f32)| {
                if a.shape[0] == 0 { delta } else { scaling.mul_add(specified_sum(a, b, i, j), delta) }
            };
            let delta = f64::from(case.factors.iter().fold(0.0, add));
            let (before, after) = (case.weight.get(i, j), merged.get(i, j));
            all.changed += u64::from(before.to_bits() != after.to_bits());
            all.delta_squares += delta * delta;
            all.kept += f64::from(after - before) * delta;
            all.largest_delta = all.largest_delta.max(delta.abs());
        }
    }
    all
}

fn formats() -> impl Strategy<Value = (DType, DType, DType)> {
    (dtype(), dtype(), dtype())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 250, ..ProptestConfig::default() })]

    #[test]
    fn sweeps_merge_and_undo_to_the_bit(
        (rows, columns, ranks) in (0_usize..=30, prop_oneof![0_usize..=70, 240_usize..=600], prop::collection::vec(0_usize..=9, 0..4)),
        dtypes in formats(),
        kinds in (values(), values()),
        layouts in (any::<u8>(), any::<u8>(), any::<u8>()),
        rounding in prop_oneof![Just(Rounding::Nearest), any::<u64>().prop_map(|seed| Rounding::Stochastic { seed })],
        first_row in prop_oneof![Just(0_usize), 0_usize..100_000],
        (threads, seed) in (1_usize..=4, any::<u64>()),
    ) {
        let case = case([rows, columns], &ranks, dtypes, kinds, layouts, seed);
        let scalings: Vec<f32> = case.factors.iter().map(|factors| factors.2).collect();
        let options = SlabOptions { first_row, rounding, statistics: true, residue: true, ..SlabOptions::default() };
        let expected = case.specified(first_row, rounding);
        let exceptions = case.specified_exceptions(&expected, first_row);
        let mut digests = Vec::new();
        for (index, kernels) in all_kernels().into_iter().enumerate() {
            let mut merged = case.out.clone();
            let parts = Parts::new(&mut merged.view_mut(), Some(&case.weight.view()), &case.deltas(), &scalings);
            // SAFETY: memory of their own, shapes that fit, kernels that the processor has.
            let outcome = unsafe { merge_parts(kernels, &parts, &options, threads) };
            prop_assert_eq!(&merged.bytes, &expected.bytes, "kernels {}", index);
            prop_assert_eq!(&outcome.exceptions, &exceptions, "kernels {}", index);
            digests.push(outcome.digest);
            let mut back = case.weight.clone();
            back.bytes.iter_mut().for_each(|byte| *byte ^= 0x55);
            let parts = Parts::new(&mut back.view_mut(), Some(&merged.view()), &case.deltas(), &scalings);
            // SAFETY: as above.
            let digest = unsafe { undo_parts(kernels, &parts, first_row, &exceptions, threads) };
            prop_assert_eq!(digest, outcome.digest);
            for i in 0..rows {
                for j in 0..columns {
                    prop_assert_eq!(bits(&back, i, j), bits(&case.weight, i, j), "kernels {} at {},{}", index, i, j);
                }
            }
            let wanted = statistics_of(&case, &merged);
            let got = outcome.statistics;
            prop_assert_eq!((got.elements, got.changed), (wanted.elements, wanted.changed));
            if matches!(kinds, (Values::Plain, Values::Plain)) {
                let near = |got: f64, wanted: f64, size: f64| (got - wanted).abs() <= 1e-4 * size;
                prop_assert!(near(got.delta_squares, wanted.delta_squares, wanted.delta_squares));
                prop_assert!(near(got.kept, wanted.kept, wanted.delta_squares.max(wanted.kept.abs()) + 1e-9));
                prop_assert!(near(got.largest_delta, wanted.largest_delta, wanted.largest_delta));
            }
        }
        digests.dedup();
        prop_assert!(digests.len() <= 1);
    }

    #[test]
    fn magnitudes_scale_rows_to_the_bit(
        (rows, columns, ranks) in (1_usize..=30, prop_oneof![1_usize..=70, 240_usize..=600], prop::collection::vec(1_usize..=9, 1..3)),
        dtypes in formats(),
        layouts in (any::<u8>(), any::<u8>(), any::<u8>()),
        (threads, seed) in (1_usize..=4, any::<u64>()),
    ) {
        let mut case = case([rows, columns], &ranks, dtypes, (Values::Plain, Values::Plain), layouts, seed);
        case.magnitude = Some(Stored::random(dtypes.2, [rows, 1], layouts.0, Values::Plain, &mut Random(seed)));
        let scalings: Vec<f32> = case.factors.iter().map(|factors| factors.2).collect();
        let expected = case.specified(0, Rounding::Nearest);
        for (index, kernels) in all_kernels().into_iter().enumerate() {
            let mut merged = case.out.clone();
            let magnitude = case.magnitude.as_ref().map(Stored::view);
            let options = SlabOptions { magnitude, ..SlabOptions::default() };
            let parts = Parts::new(&mut merged.view_mut(), Some(&case.weight.view()), &case.deltas(), &scalings);
            // SAFETY: memory of their own, shapes that fit, kernels that the processor has.
            unsafe { merge_parts(kernels, &parts, &options, threads) };
            prop_assert_eq!(&merged.bytes, &expected.bytes, "kernels {}", index);
        }
    }

    /// However a weight is cut into slabs, and however many threads there are: one merge, one residue, one way back.
    #[test]
    fn slabs_are_seamless(
        (rows, columns, ranks) in (1_usize..=40, 1_usize..=300, prop::collection::vec(0_usize..=9, 0..3)),
        dtypes in formats(),
        kinds in (values(), values()),
        rounding in prop_oneof![Just(Rounding::Nearest), any::<u64>().prop_map(|seed| Rounding::Stochastic { seed })],
        cuts in prop::collection::vec(0_usize..=40, 0..4),
        (threads, seed) in (1_usize..=4, any::<u64>()),
    ) {
        let case = case([rows, columns], &ranks, dtypes, kinds, (0, 0, 0), seed);
        let deltas = case.deltas();
        let whole = SlabOptions { rounding, num_threads: Some(threads), ..SlabOptions::default() };
        let mut expected = case.out.clone();
        let (_, residue) = merge_with_residue(&mut expected.view_mut(), Some(&case.weight.view()), &deltas, &whole).unwrap();
        let stored = residue.to_bytes();
        prop_assert_eq!(&Residue::from_bytes(&stored).unwrap(), &residue);
        prop_assert_eq!(stored.len(), residue.nbytes());

        let mut edges: Vec<usize> = cuts.into_iter().map(|cut| cut.min(rows)).chain([0, rows]).collect();
        edges.sort_unstable();
        let mut merged = case.out.clone();
        let digest = AdapterDigest::of(&deltas).unwrap();
        let mut builder = ResidueBuilder::new([rows, columns], dtypes.0, dtypes.1, digest);
        let mut back = case.weight.clone();
        let mut undo = residue.undo();
        for edge in edges.windows(2) {
            let some = |stored: &Stored| {
                let first = stored.bytes.as_ptr().wrapping_add(stored.place(edge[0].min(rows - 1), 0));
                (first, [edge[1] - edge[0], stored.shape[1]])
            };
            let read = |stored: &Stored| {
                let (first, shape) = some(stored);
                // SAFETY: rows that exist, of memory that outlives the loop.
                unsafe { TensorRef::from_raw(first, stored.dtype, &shape, &stored.strides) }.unwrap()
            };
            let write = |stored: &mut Stored| {
                let (first, shape) = some(stored);
                // SAFETY: as above; nobody else looks at these rows meanwhile.
                unsafe { TensorMut::from_raw(first.cast_mut(), stored.dtype, &shape, &stored.strides) }.unwrap()
            };
            let parts: Vec<Stored> = case.factors.iter().map(|(_, b, _)| b.clone()).collect();
            let slab: Vec<Delta<'_>> = deltas
                .iter()
                .zip(&parts)
                .map(|(delta, b)| {
                    let strides = if b.shape[1] == 0 { [1, 1] } else { b.strides };
                    let first = b.bytes.as_ptr().wrapping_add(if b.bytes.is_empty() || b.shape[1] == 0 { 0 } else { b.place(edge[0].min(rows - 1), 0) });
                    // SAFETY: as above.
                    let lora_b = unsafe { TensorRef::from_raw(first, b.dtype, &[edge[1] - edge[0], b.shape[1]], &strides) }.unwrap();
                    Delta { lora_b, ..*delta }
                })
                .collect();
            let options = SlabOptions { first_row: edge[0], residue: true, ..whole };
            let report = merge_slab(&mut write(&mut merged), Some(&read(&case.weight)), &slab, &options).unwrap();
            builder.push(&report.residue.unwrap()).unwrap();
            undo.unmerge_slab(&mut write(&mut back), Some(&read(&merged)), &slab, Some(threads)).unwrap();
        }
        prop_assert_eq!(&merged.bytes, &expected.bytes);
        prop_assert_eq!(&builder.finish().unwrap(), &residue);
        undo.finish().unwrap();
        prop_assert_eq!(&back.bytes, &case.weight.bytes);
    }
}

/// What is added by chance comes out right on average, and draws of rows and columns are independent.
#[test]
fn dither_is_fair() {
    let mut counts = [0_u32; 256];
    let (mut pairs, total) = ([0_u32; 4], 1 << 20);
    for row in 0..1024 {
        let (key, next) = (RowKey::new(7, row), RowKey::new(7, row + 1));
        for column in 0..1024 {
            let draw = key.draw(column);
            counts[(draw >> 24) as usize] += 1;
            let high = |draw: u32| (draw >> 31) as usize;
            pairs[high(draw) * 2 + high(next.draw(column))] += 1;
        }
    }
    let chi: f64 = counts.iter().map(|&count| (f64::from(count) - 4096.0).powi(2) / 4096.0).sum();
    assert!(chi < 400.0, "{chi}"); // 255 degrees of freedom: 400 is beyond one in ten million
    for pair in pairs {
        assert!(
            (f64::from(pair) - f64::from(total) / 4.0).abs() < 5.0 * (f64::from(total) * 3.0 / 16.0).sqrt()
        );
    }
}
