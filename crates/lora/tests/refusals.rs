//! What the public functions refuse, and that nothing is written then.
#![allow(clippy::unwrap_used)]

use infer_accel_lora::{Error, Options, apply_adapter, merge_weights, merge_weights_into};
use infer_accel_tensor::{Element, ErrorKind, TensorMut, TensorRef};

fn read<'a, T: Element>(data: &'a [T], shape: &[usize]) -> TensorRef<'a> {
    TensorRef::from_slice(data, shape).unwrap()
}

fn write<'a, T: Element>(data: &'a mut [T], shape: &[usize]) -> TensorMut<'a> {
    TensorMut::from_slice(data, shape).unwrap()
}

/// A merge of ones into a `[2, 3]` weight of ones with an adapter of these shapes.
fn merge(a: [usize; 2], b: [usize; 2], options: &Options) -> (Result<(), Error>, [f32; 6]) {
    let mut weight = [1.0_f32; 6];
    let (a_data, b_data) = (vec![1.0_f32; a[0] * a[1]], vec![1.0_f32; b[0] * b[1]]);
    let result =
        merge_weights(&mut write(&mut weight, &[2, 3]), &read(&a_data, &a), &read(&b_data, &b), options);
    (result, weight)
}

#[test]
fn shapes_that_do_not_fit() {
    for (a, b) in [([1, 3], [2, 2]), ([1, 4], [2, 1]), ([1, 3], [3, 1])] {
        let (result, weight) = merge(a, b, &Options::default());
        let error = result.unwrap_err();
        assert_eq!((error.kind(), error.code()), (ErrorKind::Shape, "shape.mismatch"), "{error}");
        assert!(error.to_string().contains("must have the same"), "{error}");
        assert_eq!(weight.map(f32::to_bits), [1.0_f32.to_bits(); 6]);
    }
    assert!(merge([1, 3], [2, 1], &Options::default()).0.is_ok());
}

#[test]
fn scalings_and_thread_counts() {
    for scaling in [f64::NAN, f64::INFINITY, -1e39] {
        let (result, weight) = merge([1, 3], [2, 1], &Options { scaling, ..Options::default() });
        assert_eq!(result.unwrap_err().code(), "argument.scaling");
        assert_eq!(weight.map(f32::to_bits), [1.0_f32.to_bits(); 6]);
    }
    let none = Options { num_threads: Some(0), ..Options::default() };
    assert_eq!(merge([1, 3], [2, 1], &none).0.unwrap_err().kind(), ErrorKind::Argument);
}

#[test]
fn formats_and_dimensions() {
    let options = Options::default();
    let (a, b) = ([1.0_f32; 3], [1.0_f32; 2]);
    let mut whole = [1_i32; 6];
    let error =
        merge_weights(&mut write(&mut whole, &[2, 3]), &read(&a, &[1, 3]), &read(&b, &[2, 1]), &options)
            .unwrap_err();
    assert_eq!((error.kind(), error.code()), (ErrorKind::DType, "dtype.unsupported"));
    let mut flat = [1.0_f32; 6];
    let error = merge_weights(&mut write(&mut flat, &[6]), &read(&a, &[1, 3]), &read(&b, &[2, 1]), &options)
        .unwrap_err();
    assert_eq!(error.code(), "shape.matrix");
    let mut out = [half::f16::ONE; 6];
    let error = merge_weights_into(
        &mut write(&mut out, &[2, 3]),
        &read(&[1.0_f32; 6], &[2, 3]),
        &read(&a, &[1, 3]),
        &read(&b, &[2, 1]),
        &options,
    )
    .unwrap_err();
    assert_eq!(error.code(), "dtype.mismatch");
}

#[test]
fn an_application_that_does_not_fit() {
    let options = Options::default();
    let (x, a, b) = ([1.0_f32; 6], [1.0_f32; 3], [1.0_f32; 4]);
    let mut out = [1.0_f32; 8];
    let mut apply = |x_shape: &[usize], out_shape: &[usize], b_shape: &[usize]| {
        apply_adapter(
            &mut write(&mut out, out_shape),
            &read(&x, x_shape),
            &read(&a, &[1, 3]),
            &read(&b, b_shape),
            &options,
        )
    };
    assert!(apply(&[2, 3], &[2, 4], &[4, 1]).is_ok());
    for (x, out, b) in [
        ([3, 2], [2, 4], [4, 1]), // in_features
        ([2, 3], [4, 2], [4, 1]), // tokens, out_features
        ([2, 3], [2, 4], [2, 2]), // rank
    ] {
        assert_eq!(apply(&x, &out, &b).unwrap_err().code(), "shape.mismatch");
    }
}
