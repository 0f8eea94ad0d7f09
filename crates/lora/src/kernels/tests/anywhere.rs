//! Weights whose rows do not begin where a register does.

use super::*;

/// A line of the largest panel: rows that lie a multiple of it apart begin alike.
const LINE: usize = 128;

#[test]
fn weights_that_begin_anywhere_merge_to_the_bit() {
    let mut random = Random(7);
    for (case, dtype) in [DType::F32, DType::F16, DType::BF16].into_iter().cycle().take(24).enumerate() {
        let size = dtype.size();
        let shift = [0, 1, 2, 7, 8, 15, 16, 31][case / 3] * size;
        let (rows, columns, rank) = (13 + 6 * (case % 4), 515 + 32 * (case % 5), 1 + case % 18);
        let stride = (columns * size).next_multiple_of(LINE);
        let kind = if case % 2 == 0 { Values::Plain } else { Values::Wild };
        let weight = Stored::random(dtype, [rows, columns], 0, kind, &mut random);
        let a = Stored::random(dtype, [rank, columns], case as u8, Values::Plain, &mut random);
        let b = Stored::random(dtype, [rows, rank], 0, Values::Plain, &mut random);
        let expected = specified_merge(&weight, &a, &b, 0.5);
        for (index, kernels) in all_kernels().into_iter().enumerate() {
            let mut memory = vec![0xa5_u8; rows * stride + 2 * LINE];
            let start = memory.as_ptr().addr().wrapping_neg() % LINE + shift;
            for (row, bytes) in weight.bytes.chunks(columns * size).enumerate() {
                memory[start + row * stride..][..columns * size].copy_from_slice(bytes);
            }
            let before = memory.clone();
            let target = Matrix {
                base: memory[start..].as_mut_ptr(),
                row_stride: stride as isize,
                ..Matrix::of(&weight.view()).unwrap()
            };
            let (rows_of, columns_of) = (Matrix::of(&b.view()).unwrap(), Matrix::of(&a.view()).unwrap());
            let update = Update { source: target, target, rows: rows_of, columns: columns_of, scaling: 0.5 };
            // SAFETY: memory of their own, shapes that fit, kernels that the processor has.
            unsafe { update.run(kernels, 1 + case % 3) };
            let mut wanted = before;
            for (row, bytes) in expected.bytes.chunks(columns * size).enumerate() {
                wanted[start + row * stride..][..columns * size].copy_from_slice(bytes);
            }
            assert!(memory == wanted, "kernels {index}, {dtype:?}, {shift} bytes off");
        }
    }
}
