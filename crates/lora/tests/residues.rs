//! Undoing refuses what was not merged, and a thousand merges leave no trace.
#![allow(clippy::unwrap_used)]

use infer_accel_lora::{
    AdapterDigest, Delta, Error, Residue, ResidueBuilder, SlabOptions, merge_slab, merge_with_residue,
    unmerge_weights,
};
use infer_accel_tensor::{DType, TensorMut, TensorRef, float};

const SHAPE: [usize; 2] = [37, 301];
const RANK: usize = 5;

/// Numbers about zero that repeat for a seed.
fn numbers(count: usize, seed: u32, scale: f32) -> Vec<f32> {
    let mut state = seed;
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            ((state >> 8) as f32 / (1 << 23) as f32 - 1.0) * scale
        })
        .collect()
}

struct Adapter {
    a: Vec<f32>,
    b: Vec<f32>,
}

impl Adapter {
    fn new(seed: u32) -> Self {
        Self { a: numbers(RANK * SHAPE[1], seed, 0.1), b: numbers(SHAPE[0] * RANK, seed + 1, 0.05) }
    }

    fn delta(&self) -> Delta<'_> {
        Delta {
            lora_a: TensorRef::from_slice(&self.a, &[RANK, SHAPE[1]]).unwrap(),
            lora_b: TensorRef::from_slice(&self.b, &[SHAPE[0], RANK]).unwrap(),
            scaling: 2.0,
        }
    }
}

fn weight() -> Vec<half::bf16> {
    let values = numbers(SHAPE[0] * SHAPE[1], 5, 0.1);
    let mut weight: Vec<half::bf16> =
        values.iter().map(|&value| half::bf16::from_bits(float::f32_to_bf16(value))).collect();
    // What addition does not give back by itself.
    for (at, bits) in [(0, 0x8000), (9, 0x7fc1), (300, 0xff81), (301, 0x7f80), (5000, 0x0001), (5001, 0xff7f)]
    {
        weight[at] = half::bf16::from_bits(bits);
    }
    weight
}

fn bits(weight: &[half::bf16]) -> Vec<u16> {
    weight.iter().map(|value| value.to_bits()).collect()
}

fn view(weight: &mut [half::bf16]) -> TensorMut<'_> {
    TensorMut::from_slice(weight, &SHAPE).unwrap()
}

fn merged(weight: &mut [half::bf16], adapter: &Adapter) -> Residue {
    merge_with_residue(&mut view(weight), None, &[adapter.delta()], &SlabOptions::default()).unwrap().1
}

#[test]
fn a_thousand_cycles_end_in_the_same_bits() {
    let adapters = [Adapter::new(1), Adapter::new(3)];
    let mut weight = weight();
    let before = bits(&weight);
    for cycle in 0..1000 {
        let adapter = &adapters[cycle % 2];
        let residue = merged(&mut weight, adapter);
        assert_ne!(bits(&weight), before);
        unmerge_weights(&mut view(&mut weight), None, &[adapter.delta()], &residue, None).unwrap();
        assert_eq!(bits(&weight), before, "cycle {cycle}");
    }
}

#[test]
fn what_was_not_merged_is_refused_and_nothing_is_written() {
    let (adapter, other) = (Adapter::new(1), Adapter::new(3));
    let mut weight = weight();
    let residue = merged(&mut weight, &adapter);
    let before = bits(&weight);
    let delta = adapter.delta();
    let undo = |weight: &mut Vec<half::bf16>, deltas: &[Delta<'_>], residue: &Residue| {
        unmerge_weights(&mut view(weight), None, deltas, residue, None)
    };
    for deltas in [
        vec![],
        vec![other.delta()],
        vec![delta, delta],
        vec![Delta { scaling: 2.5, ..delta }],
        vec![Delta { lora_a: other.delta().lora_a, ..delta }],
    ] {
        let error = undo(&mut weight, &deltas, &residue).unwrap_err();
        assert_eq!(error.code(), "residue.adapter");
        assert_eq!(bits(&weight), before);
    }
    for at in [0, 300, 301, SHAPE[0] * SHAPE[1] - 1] {
        let mut changed = weight.clone();
        changed[at] = half::bf16::from_bits(changed[at].to_bits() ^ 1);
        let found = bits(&changed);
        assert_eq!(undo(&mut changed, &[delta], &residue).unwrap_err().code(), "residue.weight");
        assert_eq!(bits(&changed), found);
    }
    let mut swapped = weight.clone();
    swapped.swap(1000, 1001);
    assert_eq!(undo(&mut swapped, &[delta], &residue).unwrap_err().code(), "residue.weight");
    let mut bytes = residue.to_bytes();
    bytes[8] += 1;
    assert!(matches!(Residue::from_bytes(&bytes), Err(Error::ResidueFormat { .. })));
    let mut wide = vec![0.0_f32; SHAPE[0] * SHAPE[1]];
    let mut target = TensorMut::from_slice(&mut wide, &SHAPE).unwrap();
    let error = unmerge_weights(&mut target, None, &[delta], &residue, None).unwrap_err();
    assert_eq!(error.code(), "residue.dtype");
    assert!(undo(&mut weight, &[delta], &residue).is_ok());
}

#[test]
fn a_matrix_of_another_dtype_or_shape_is_another_adapter() {
    let values = [half::bf16::from_f32(1.0); 4];
    let tensor = |shape: &[usize]| TensorRef::from_slice(&values, shape).unwrap();
    let ones = [1.0_f32; 4];
    let digest = |lora_a, lora_b| AdapterDigest::of(&[Delta { lora_a, lora_b, scaling: 1.0 }]).unwrap();
    let wide = TensorRef::from_slice(&ones, &[1, 4]).unwrap();
    let all = [
        digest(tensor(&[1, 4]), tensor(&[4, 1])),
        digest(tensor(&[4, 1]), tensor(&[1, 4])),
        digest(tensor(&[2, 2]), tensor(&[2, 2])),
        digest(wide, tensor(&[4, 1])),
    ];
    for (index, digest) in all.iter().enumerate() {
        assert!(!all[..index].contains(digest), "{index}");
    }
}

#[test]
fn slabs_come_in_order() {
    let adapter = Adapter::new(1);
    let mut weight = weight();
    let digest = AdapterDigest::of(&[adapter.delta()]).unwrap();
    let options = SlabOptions { residue: true, ..SlabOptions::default() };
    let slab =
        merge_slab(&mut view(&mut weight), None, &[adapter.delta()], &options).unwrap().residue.unwrap();
    let builder = |shape| ResidueBuilder::new(shape, DType::BF16, DType::BF16, digest);
    assert_eq!(builder(SHAPE).finish().unwrap_err().code(), "residue.slab");
    assert_eq!(builder([SHAPE[0] - 1, SHAPE[1]]).push(&slab).unwrap_err().code(), "residue.slab");
    assert_eq!(builder([SHAPE[0], SHAPE[1] + 1]).push(&slab).unwrap_err().code(), "residue.slab");
    let mut other = ResidueBuilder::new(SHAPE, DType::F32, DType::BF16, digest);
    assert_eq!(other.push(&slab).unwrap_err().code(), "residue.slab");
    let mut twice = builder([2 * SHAPE[0], SHAPE[1]]);
    twice.push(&slab).unwrap();
    assert_eq!(twice.push(&slab).unwrap_err().code(), "residue.slab");
    let residue = merged(&mut weight, &adapter);
    assert_eq!(residue.undo().finish().unwrap_err().code(), "residue.shape");
}

#[test]
fn a_magnitude_has_no_residue_and_must_fit() {
    let adapter = Adapter::new(1);
    let mut weight = weight();
    let before = bits(&weight);
    let sizes = vec![1.0_f32; SHAPE[0]];
    let magnitude = TensorRef::from_slice(&sizes, &[SHAPE[0]]).unwrap();
    let mut merge = |magnitude, residue| {
        let options = SlabOptions { magnitude: Some(magnitude), residue, ..SlabOptions::default() };
        merge_slab(&mut view(&mut weight), None, &[adapter.delta()], &options)
            .map(|_| ())
            .map_err(|error| error.code())
    };
    assert_eq!(merge(magnitude, true), Err("residue.magnitude"));
    assert_eq!(
        merge(TensorRef::from_slice(&sizes[1..], &[SHAPE[0] - 1]).unwrap(), false),
        Err("shape.mismatch")
    );
    assert_eq!(merge(TensorRef::from_slice(&sizes, &[1, SHAPE[0]]).unwrap(), false), Err("shape.mismatch"));
    let codes = vec![1_u8; SHAPE[0]];
    assert_eq!(merge(TensorRef::from_slice(&codes, &[SHAPE[0]]).unwrap(), false), Err("dtype.unsupported"));
    assert_eq!(bits(&weight), before);
}

/// The share of exceptions on weights and deltas of the usual sizes, and what they take.
#[test]
fn residues_are_small() {
    let adapter = Adapter { a: numbers(RANK * SHAPE[1], 1, 0.02), b: numbers(SHAPE[0] * RANK, 2, 0.002) };
    let mut weight: Vec<half::bf16> =
        numbers(SHAPE[0] * SHAPE[1], 3, 0.05).into_iter().map(half::bf16::from_f32).collect();
    let residue = merged(&mut weight, &adapter);
    assert!(residue.exceptions() > 0);
    assert!(residue.nbytes() * 100 < 3 * weight.len() * 2, "{} bytes", residue.nbytes());
}
