//! The grouped kernels against the specification of a single application, token by token.

use super::*;
use crate::kernels::grouped::run::run;
use crate::kernels::grouped::{GroupedKernels, PackedPair, Part, Segment, tiers};
use std::sync::Arc;

/// The grouped kernels that can run on this machine, and the wide ones in software.
fn all_grouped() -> Vec<&'static GroupedKernels> {
    let mut all: Vec<_> = available().iter().map(|&tier| GroupedKernels::of(tier)).collect();
    all.push(&tiers::WIDE);
    all
}

/// An adapter: a product for some of the slices.
#[derive(Clone, Debug)]
struct Plan {
    slices: Vec<Option<(Stored, Stored, f32)>>,
}

fn plan(widths: &[usize], features: usize, kind: Values, random: &mut Random) -> Plan {
    let dtypes = [DType::F32, DType::F16, DType::BF16];
    let slice = |&width: &usize| {
        let bits = random.next();
        let rank = [1, 2, 3, 5, 8, 16, 17][(bits % 7) as usize];
        let (a_dtype, b_dtype) = (dtypes[(bits >> 8) as usize % 3], dtypes[(bits >> 16) as usize % 3]);
        let (layouts, scaling) = ((bits >> 24) as u16, (bits >> 56) as f32 / 64.0 - 2.0);
        let a = Stored::random(a_dtype, [rank, features], layouts as u8, kind, random);
        let b = Stored::random(b_dtype, [width, rank], (layouts >> 8) as u8, kind, random);
        (!bits.is_multiple_of(5)).then_some((a, b, scaling))
    };
    Plan { slices: widths.iter().map(slice).collect() }
}

/// One row of a matrix, by itself.
fn row_of(matrix: &Stored, row: usize, columns: std::ops::Range<usize>) -> Stored {
    let mut bytes = Vec::new();
    let size = matrix.dtype.size();
    for column in columns.clone() {
        let at = matrix.place(row, column);
        bytes.extend(&matrix.bytes[at..at + size]);
    }
    Stored { bytes, dtype: matrix.dtype, shape: [1, columns.len()], strides: [columns.len() as isize, 1] }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn groups_apply_as_single_tokens_do(
        ids in proptest::collection::vec(0_usize..4, 0..=20),
        features in prop_oneof![0_usize..=70, 760_usize..=800, 1500_usize..=1600],
        widths in proptest::collection::vec(0_usize..=75, 1..=3),
        dtypes in (dtype(), dtype()),
        kinds in (values(), values()),
        layouts in (any::<u8>(), any::<u8>()),
        (threads, seed) in (1_usize..=8, any::<u64>()),
    ) {
        let mut random = Random(seed);
        let outputs: usize = widths.iter().sum();
        let x = Stored::random(dtypes.0, [ids.len(), features], layouts.0, kinds.0, &mut random);
        let out = Stored::random(dtypes.1, [ids.len(), outputs], layouts.1, Values::Wild, &mut random);
        let plans: Vec<Plan> = (0..3).map(|_| plan(&widths, features, kinds.1, &mut random)).collect();
        let packed: Vec<Vec<Part>> = plans.iter().map(|plan| {
            let mut first_column = 0;
            let mut parts = Vec::new();
            for (slice, width) in plan.slices.iter().zip(&widths) {
                if let Some((a, b, scaling)) = slice {
                    let pair = Arc::new(PackedPair::pack(&a.view(), &b.view()).unwrap());
                    prop_assert_eq!(Some(pair.byte_len()), PackedPair::byte_len_of(&a.view(), &b.view()));
                    parts.push(Part { pair, first_column, scaling: *scaling });
                }
                first_column += width;
            }
            Ok(parts)
        }).collect::<Result<_, _>>()?;
        // Id 3 is nobody's. Segments of one adapter need not be adjacent.
        let (mut order, mut segments) = (Vec::new(), Vec::new());
        for (id, parts) in packed.iter().enumerate() {
            let first = order.len();
            order.extend(ids.iter().enumerate().filter(|&(_, &named)| named == id).map(|(token, _)| token));
            segments.push(Segment { parts, tokens: first..order.len() });
        }
        let mut expected = out.clone();
        for (token, &id) in ids.iter().enumerate().filter(|&(_, &id)| id < 3) {
            let mut first = 0;
            for (slice, &width) in plans[id].slices.iter().zip(&widths) {
                if let Some((a, b, scaling)) = slice {
                    let (alone, features) = (row_of(&out, token, first..first + width), row_of(&x, token, 0..features));
                    let applied = specified_apply(&alone, &features, a, b, *scaling);
                    let size = out.dtype.size();
                    for column in 0..width {
                        let (to, from) = (expected.place(token, first + column), applied.place(0, column));
                        expected.bytes[to..to + size].copy_from_slice(&applied.bytes[from..from + size]);
                    }
                }
                first += width;
            }
        }
        for (index, kernels) in all_grouped().into_iter().enumerate() {
            let mut applied = out.clone();
            let read = Matrix::of(&x.view()).unwrap();
            let written = Matrix { base: applied.view_mut().as_mut_ptr(), ..Matrix::of(&out.view()).unwrap() };
            // SAFETY: memory of their own, shapes that fit, tokens named once, kernels that the processor has.
            unsafe { run(kernels, written, read, &order, &segments, threads) };
            prop_assert_eq!(&applied.bytes, &expected.bytes, "kernels {}", index);
        }
    }
}
