//! Every set of kernels against a scalar specification: no bit may differ.

use super::lanes::Lanes;
use super::matrix::Matrix;
use super::pack::{self, ColumnPack, RowPack};
use super::passes::passes;
use super::shrink::{self, ShrinkTile};
use super::storage::{Bf16, F16, F32, Storage, Sums};
use super::tile::{self, ONE_PANELS, Tile, TileSet};
use super::update::Update;
use super::vector::{Fused, Paired};
use super::*;
use infer_accel_tensor::simd::available;
use infer_accel_tensor::{DType, TensorMut, TensorRef, float};
use proptest::prelude::*;

mod anywhere;
mod grouped;
mod slab;

mod wide {
    //! The logic of the AVX-512 tiers over arrays: sixteen lanes, twelve rows, `vdpbf16ps` in software.
    use super::*;

    type Wide = Lanes<16>;

    unsafe fn fused<S: Storage, const COUNT: usize, const PANELS: usize>(tile: &Tile) {
        // SAFETY: as the portable tier.
        unsafe { tile::run::<Wide, Fused, S, 12, COUNT, PANELS>(tile) }
    }

    unsafe fn paired<S: Storage, const COUNT: usize, const PANELS: usize>(tile: &Tile) {
        // SAFETY: as the portable tier.
        unsafe { tile::run::<Wide, Paired, S, 12, COUNT, PANELS>(tile) }
    }

    unsafe fn pack_columns(job: &ColumnPack) {
        // SAFETY: as the portable tier.
        unsafe { pack::columns::<Wide>(job) }
    }

    unsafe fn pack_rows(job: &RowPack) {
        // SAFETY: as the portable tier.
        unsafe { pack_rows::rows::<Wide, 12>(job) }
    }

    unsafe fn shrink<S: Storage>(tile: &ShrinkTile) {
        // SAFETY: as the portable tier.
        unsafe { shrink::run::<Wide, S, 4, 4, 8>(tile) }
    }

    unsafe fn widen<S: Storage>(source: *const u8, target: *mut f32, count: usize) {
        // SAFETY: as the portable tier.
        unsafe { pack::widen::<Wide, S>(source, target, count) }
    }

    const fn fused_tiles<S: Storage>() -> TileSet {
        TileSet {
            full: fused::<S, 12, 1>,
            four: fused::<S, 4, 1>,
            two: fused::<S, 2, 1>,
            one: fused::<S, 1, 1>,
            one_wide: fused::<S, 1, ONE_PANELS>,
        }
    }

    const fn paired_tiles<S: Storage>() -> TileSet {
        TileSet {
            full: paired::<S, 12, 1>,
            four: paired::<S, 4, 1>,
            two: paired::<S, 2, 1>,
            one: paired::<S, 1, 1>,
            one_wide: paired::<S, 1, ONE_PANELS>,
        }
    }

    pub(super) static KERNELS: Kernels = Kernels {
        lanes: 16,
        panel_rows: 12,
        fused: [fused_tiles::<F32>(), fused_tiles::<F16>(), fused_tiles::<Bf16>()],
        paired: Some([paired_tiles::<F32>(), paired_tiles::<F16>(), paired_tiles::<Bf16>()]),
        sums: fused::<Sums, 12, 1>,
        paired_sums: Some(paired::<Sums, 12, 1>),
        passes: passes!(Wide),
        pack_columns,
        pack_rows,
        shrink_tokens: 4,
        shrink: [shrink::<F32>, shrink::<F16>, shrink::<Bf16>],
        widen: [widen::<F32>, widen::<F16>, widen::<Bf16>],
    };
}

/// All kernels that can run on this machine, and the wide ones in software.
fn all_kernels() -> Vec<&'static Kernels> {
    let mut all: Vec<_> = available().iter().map(|&tier| Kernels::of(tier)).collect();
    all.push(&wide::KERNELS);
    all
}

/// Random bits that repeat for a seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }
}

/// What the elements of a matrix look like.
#[derive(Clone, Copy, Debug)]
enum Values {
    /// About one.
    Plain,
    /// Near the square root of the smallest numbers, so that products are subnormal or vanish.
    Tiny,
    /// Any bits: subnormal, infinite, not a number, negative zero, huge.
    Wild,
}

fn values() -> impl Strategy<Value = Values> {
    prop_oneof![3 => Just(Values::Plain), 1 => Just(Values::Tiny), 1 => Just(Values::Wild)]
}

/// Tails of every length, and widths that fill several panels.
fn sides() -> impl Strategy<Value = usize> {
    prop_oneof![3 => 0_usize..=70, 1 => 120_usize..=150]
}

fn dtype() -> impl Strategy<Value = DType> {
    prop_oneof![Just(DType::F32), Just(DType::F16), Just(DType::BF16)]
}

fn narrow(value: f32, dtype: DType) -> Vec<u8> {
    match dtype {
        DType::F32 => value.to_le_bytes().to_vec(),
        DType::F16 => float::f32_to_f16(value).to_le_bytes().to_vec(),
        _ => float::f32_to_bf16(value).to_le_bytes().to_vec(),
    }
}

/// A matrix in memory of its own, with gaps and any order of its dimensions.
#[derive(Clone, Debug)]
struct Stored {
    bytes: Vec<u8>,
    dtype: DType,
    shape: [usize; 2],
    strides: [isize; 2],
}

impl Stored {
    fn random(dtype: DType, shape: [usize; 2], layout: u8, values: Values, random: &mut Random) -> Self {
        let (rows, columns) = (shape[0].max(1) as isize, shape[1].max(1) as isize);
        let strides = match layout % 5 {
            0 => [columns, 1],
            1 => [columns + 3, 1],
            2 => [1, rows + 1],
            3 => [columns * 2 + 1, 2],
            _ => [-(columns + 1), 1],
        };
        let span = (rows - 1) * strides[0].abs() + (columns - 1) * strides[1].abs() + 1;
        let size = dtype.size();
        let mut bytes = Vec::with_capacity(span as usize * size);
        for _ in 0..span {
            let bits = random.next();
            let unit = ((bits >> 40) as f32 / (1 << 23) as f32) - 1.0;
            match values {
                Values::Plain => bytes.extend(narrow(unit, dtype)),
                Values::Tiny if bits.is_multiple_of(8) => bytes.extend(narrow(0.0 * unit, dtype)),
                Values::Tiny => {
                    let shift = (bits % 80) as i32;
                    let scale = if dtype == DType::F16 { -10 - shift % 16 } else { -30 - shift };
                    bytes.extend(narrow(unit * 2.0_f32.powi(scale), dtype));
                }
                Values::Wild if !bits.is_multiple_of(4) => bytes.extend(narrow(unit * 4.0, dtype)),
                Values::Wild => bytes.extend(&random.next().to_le_bytes()[..size]),
            }
        }
        Self { bytes, dtype, shape, strides }
    }

    fn first(&self) -> usize {
        if self.strides[0] < 0 && self.shape[0] > 0 && self.shape[1] > 0 {
            (self.shape[0] - 1) * self.strides[0].unsigned_abs() * self.dtype.size()
        } else {
            0
        }
    }

    fn view(&self) -> TensorRef<'_> {
        let first = self.bytes[self.first()..].as_ptr();
        // SAFETY: the strides stay within the bytes, which the view borrows.
        unsafe { TensorRef::from_raw(first, self.dtype, &self.shape, &self.strides) }.unwrap()
    }

    fn view_mut(&mut self) -> TensorMut<'_> {
        let first = self.first();
        // SAFETY: the strides stay within the bytes, which the view borrows.
        unsafe {
            TensorMut::from_raw(self.bytes[first..].as_mut_ptr(), self.dtype, &self.shape, &self.strides)
        }
        .unwrap()
    }

    fn place(&self, row: usize, column: usize) -> usize {
        let offset = row as isize * self.strides[0] + column as isize * self.strides[1];
        (self.first() as isize + offset * self.dtype.size() as isize) as usize
    }

    fn get(&self, row: usize, column: usize) -> f32 {
        let at = self.place(row, column);
        let half = || u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]]);
        match self.dtype {
            DType::F32 => f32::from_le_bytes(self.bytes[at..at + 4].try_into().unwrap()),
            DType::F16 => float::f16_to_f32(half()),
            _ => float::bf16_to_f32(half()),
        }
    }

    fn set(&mut self, row: usize, column: usize, value: f32) {
        let value = if value.is_nan() { CANONICAL_NAN } else { value };
        let (at, bytes) = (self.place(row, column), narrow(value, self.dtype));
        self.bytes[at..at + bytes.len()].copy_from_slice(&bytes);
    }
}

fn specified_merge(weight: &Stored, a: &Stored, b: &Stored, scaling: f32) -> Stored {
    let mut merged = weight.clone();
    let rank = a.shape[0];
    let mut order: Vec<usize> = (0..rank).collect();
    if a.dtype == DType::BF16 && b.dtype == DType::BF16 {
        order.chunks_exact_mut(2).for_each(|pair| pair.swap(0, 1));
    }
    for i in 0..weight.shape[0] {
        for j in 0..weight.shape[1] {
            if rank > 0 {
                let sum = order.iter().fold(0.0, |sum, &k| b.get(i, k).mul_add(a.get(k, j), sum));
                merged.set(i, j, scaling.mul_add(sum, weight.get(i, j)));
            }
        }
    }
    merged
}

fn specified_apply(out: &Stored, x: &Stored, a: &Stored, b: &Stored, scaling: f32) -> Stored {
    let mut applied = out.clone();
    let ([tokens, features], rank) = (x.shape, a.shape[0]);
    for t in 0..tokens {
        let hidden: Vec<f32> = (0..rank)
            .map(|k| {
                let mut part = [0.0_f32; 16];
                for j in 0..features {
                    part[j % 16] = a.get(k, j).mul_add(x.get(t, j), part[j % 16]);
                }
                for half in [8, 4, 2, 1] {
                    for i in 0..half {
                        part[i] += part[i + half];
                    }
                }
                part[0]
            })
            .collect();
        for o in 0..b.shape[0] {
            if rank > 0 && features > 0 {
                let sum = (0..rank).fold(0.0, |sum, k| hidden[k].mul_add(b.get(o, k), sum));
                applied.set(t, o, scaling.mul_add(sum, out.get(t, o)));
            }
        }
    }
    applied
}

fn update(target: &mut Stored, source: Option<&Stored>, a: &Stored, b: &Stored, scaling: f32) -> Update {
    let written = Matrix::of(&target.view()).unwrap();
    let written = Matrix { base: target.view_mut().as_mut_ptr(), ..written };
    let read = source.map_or(written, |source| Matrix::of(&source.view()).unwrap());
    let (rows, columns) = (Matrix::of(&b.view()).unwrap(), Matrix::of(&a.view()).unwrap());
    Update { source: read, target: written, rows, columns, scaling }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn merges_to_the_bit(
        (rows, columns, rank) in (0_usize..=70, sides(), prop_oneof![0_usize..=9, 10_usize..=40]),
        dtypes in (dtype(), dtype(), dtype()),
        kinds in (values(), values(), values()),
        layouts in (any::<u8>(), any::<u8>(), any::<u8>(), any::<u8>()),
        scaling in prop_oneof![Just(1.0_f32), Just(-0.5), -4.0_f32..4.0, Just(1e-40)],
        (apart, threads, seed) in (any::<bool>(), 1_usize..=8, any::<u64>()),
    ) {
        let mut random = Random(seed);
        let weight = Stored::random(dtypes.0, [rows, columns], layouts.0, kinds.0, &mut random);
        let a = Stored::random(dtypes.1, [rank, columns], layouts.1, kinds.1, &mut random);
        let b = Stored::random(dtypes.2, [rows, rank], layouts.2, kinds.2, &mut random);
        let expected = specified_merge(&weight, &a, &b, scaling);
        for (index, kernels) in all_kernels().into_iter().enumerate() {
            let merged = if apart {
                let mut out = Stored::random(dtypes.0, [rows, columns], layouts.3, Values::Plain, &mut random);
                // SAFETY: memory of their own, shapes that fit, kernels that the processor has.
                unsafe { update(&mut out, Some(&weight), &a, &b, scaling).run(kernels, threads) };
                out
            } else {
                let mut merged = weight.clone();
                // SAFETY: as above.
                unsafe { update(&mut merged, None, &a, &b, scaling).run(kernels, threads) };
                // The gaps between rows belong to somebody else.
                prop_assert_eq!(&merged.bytes, &expected.bytes, "kernels {}", index);
                merged
            };
            for i in 0..rows {
                for j in 0..columns {
                    let (got, wanted) = (merged.get(i, j), expected.get(i, j));
                    prop_assert_eq!(got.to_bits(), wanted.to_bits(), "kernels {} at {},{}: {} {}", index, i, j, got, wanted);
                }
            }
        }
    }

    #[test]
    fn applies_to_the_bit(
        (tokens, features, rank, outputs) in (0_usize..=11, prop_oneof![0_usize..=70, 1000_usize..=1100], 0_usize..=20, sides()),
        dtypes in (dtype(), dtype(), dtype(), dtype()),
        kinds in (values(), values(), values()),
        layouts in (any::<u8>(), any::<u8>(), any::<u8>(), any::<u8>()),
        scaling in -4.0_f32..4.0,
        (threads, seed) in (1_usize..=8, any::<u64>()),
    ) {
        let mut random = Random(seed);
        let x = Stored::random(dtypes.0, [tokens, features], layouts.0, kinds.0, &mut random);
        let a = Stored::random(dtypes.1, [rank, features], layouts.1, kinds.1, &mut random);
        let b = Stored::random(dtypes.2, [outputs, rank], layouts.2, kinds.2, &mut random);
        let out = Stored::random(dtypes.3, [tokens, outputs], layouts.3, kinds.0, &mut random);
        let expected = specified_apply(&out, &x, &a, &b, scaling);
        for (index, kernels) in all_kernels().into_iter().enumerate() {
            let mut applied = out.clone();
            let parts = [Matrix::of(&x.view()), Matrix::of(&a.view()), Matrix::of(&b.view())].map(Option::unwrap);
            let written = Matrix { base: applied.view_mut().as_mut_ptr(), ..Matrix::of(&out.view()).unwrap() };
            // SAFETY: memory of their own, shapes that fit, kernels that the processor has.
            unsafe { super::apply::run(kernels, written, parts, scaling, threads) };
            for t in 0..tokens {
                for o in 0..outputs {
                    let (got, wanted) = (applied.get(t, o), expected.get(t, o));
                    prop_assert_eq!(got.to_bits(), wanted.to_bits(), "kernels {} at {},{}: {} {}", index, t, o, got, wanted);
                }
            }
        }
    }
}

/// The rule that lets `vdpbf16ps` in must not let in what it would get wrong, nor keep out what real adapters hold.
#[test]
fn pairs_are_let_in_where_they_are_exact() {
    let admits = |a: f32, b: f32| {
        let stored = |value: f32| Stored {
            bytes: [narrow(1.0, DType::BF16), narrow(value, DType::BF16), narrow(-0.0, DType::BF16)].concat(),
            dtype: DType::BF16,
            shape: [1, 3],
            strides: [3, 1],
        };
        let (a, b) = (stored(a), stored(b));
        let [a, b] = [&a, &b].map(|stored| Matrix::of(&stored.view()).unwrap());
        // SAFETY: both matrices are whole and of bfloat16.
        unsafe { exponents::pairs_are_exact(&a, &b) }
    };
    assert!(admits(1e-6, -1e-9));
    assert!(admits(2.0_f32.powi(-56), 2.0_f32.powi(-56)));
    assert!(!admits(2.0_f32.powi(-56), 2.0_f32.powi(-57)));
    assert!(!admits(1e-40, 1.0));
    assert!(!admits(1.0, -1e-40));
    assert!(admits(0.0, f32::MAX));
}
