use super::*;
use infer_accel_tensor::{DType, Layout};
use proptest::prelude::*;

/// A tensor inside a byte vector: where its first element lies, and its layout.
#[derive(Clone, Debug)]
struct Placed {
    bytes: Vec<u8>,
    start: usize,
    layout: Layout,
    dtype: DType,
}

impl Placed {
    /// A tensor of this shape whose axes lie in memory in the given order (outermost first), some of them
    /// backwards, with `gap` unused elements behind each axis.
    fn new(dtype: DType, shape: &[usize], order: &[usize], backwards: &[bool], gap: usize, seed: u8) -> Self {
        let mut strides = vec![0_isize; shape.len()];
        let mut reach = 1;
        for &axis in order.iter().rev() {
            strides[axis] = reach;
            reach = reach * shape[axis].max(1) as isize + gap as isize;
        }
        let mut first = 0;
        for axis in 0..shape.len() {
            if backwards[axis] {
                first += strides[axis] * (shape[axis].max(1) as isize - 1);
                strides[axis] = -strides[axis];
            }
        }
        let layout = Layout::new(shape, &strides, dtype.size()).unwrap();
        // An odd byte in front, so that nothing is aligned.
        let len = 1 + reach as usize * dtype.size();
        let bytes = (0..len).map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed)).collect();
        Self { bytes, start: 1 + first as usize * dtype.size(), layout, dtype }
    }

    #[allow(unsafe_code)]
    fn view(&self) -> TensorRef<'_> {
        let ptr = self.bytes[self.start.min(self.bytes.len())..].as_ptr();
        // SAFETY: `new` made the vector as long as the layout reaches.
        unsafe { TensorRef::from_raw(ptr, self.dtype, self.layout.shape(), self.layout.strides()) }.unwrap()
    }

    #[allow(unsafe_code)]
    fn view_mut(&mut self) -> TensorMut<'_> {
        let start = self.start.min(self.bytes.len());
        // From the whole vector, because a view may reach below its first element.
        let ptr = self.bytes.as_mut_ptr().wrapping_add(start);
        // SAFETY: as above, and the vector is borrowed for as long as the view lives.
        unsafe { TensorMut::from_raw(ptr, self.dtype, self.layout.shape(), self.layout.strides()) }.unwrap()
    }

    /// Where the element at `index` begins among the bytes.
    fn at(&self, index: &[usize]) -> usize {
        let steps = index.iter().zip(self.layout.strides()).map(|(&i, &stride)| i as isize * stride);
        self.start.wrapping_add_signed(steps.sum::<isize>() * self.dtype.size() as isize)
    }
}

/// The specification: element by element, from a copy of the source.
fn naive_copy(source: &Placed, target: &mut Placed, mapping: &[[i64; 2]], axis: usize) {
    let (shape, size) = (source.layout.shape().to_vec(), source.dtype.size());
    let points: usize = shape.iter().enumerate().filter(|&(i, _)| i != axis).map(|(_, n)| n).product();
    for &[from, to] in mapping {
        for mut point in 0..points {
            let mut index = vec![0; shape.len()];
            for other in (0..shape.len()).rev().filter(|&other| other != axis) {
                index[other] = point % shape[other];
                point /= shape[other];
            }
            index[axis] = from as usize;
            let element = source.at(&index);
            index[axis] = to as usize;
            let place = target.at(&index);
            target.bytes[place..place + size].copy_from_slice(&source.bytes[element..element + size]);
        }
    }
}

fn dtype() -> impl Strategy<Value = DType> {
    prop_oneof![Just(DType::U8), Just(DType::BF16), Just(DType::F32), Just(DType::I64), Just(DType::F8E4M3)]
}

#[derive(Clone, Debug)]
struct Case {
    dtype: DType,
    axis: usize,
    sources: Vec<Placed>,
    targets: Vec<Placed>,
    mapping: Vec<[i64; 2]>,
    threads: usize,
}

fn case() -> impl Strategy<Value = Case> {
    let page = proptest::collection::vec(prop_oneof![4 => 1_usize..6, 1 => Just(0), 1 => Just(40)], 0..4);
    (dtype(), page, 1_usize..9, 1_usize..9, 1_usize..4, any::<u64>(), 1_usize..4).prop_perturb(
        |(dtype, page, source_pages, target_pages, layers, _, threads), mut rng| {
            use proptest::prelude::RngExt as _;
            let axis = rng.random_range(0..=page.len());
            let mut placed = |pages: usize, seed: u8| {
                let mut shape = page.clone();
                shape.insert(axis, pages);
                let mut order: Vec<usize> = (0..shape.len()).collect();
                if rng.random() {
                    for i in (1..order.len()).rev() {
                        order.swap(i, rng.random_range(0..=i));
                    }
                }
                let backwards: Vec<bool> = shape.iter().map(|_| rng.random_range(0..5) == 0).collect();
                let gap = rng.random_range(0..3_usize).saturating_sub(1);
                Placed::new(dtype, &shape, &order, &backwards, gap, seed)
            };
            let sources = (0..layers).map(|_| placed(source_pages, 3)).collect();
            let targets = (0..layers).map(|_| placed(target_pages, 77)).collect();
            let mut free: Vec<i64> = (0..target_pages as i64).collect();
            let mut mapping = Vec::new();
            while !free.is_empty() && rng.random_range(0..6) != 0 {
                let to = free.swap_remove(rng.random_range(0..free.len()));
                mapping.push([rng.random_range(0..source_pages as i64), to]);
            }
            if rng.random() {
                mapping.sort_unstable();
            }
            Case { dtype, axis, sources, targets, mapping, threads }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]
    #[test]
    fn equals_the_naive_copy(case in case()) {
        for &tier in simd::available() {
            let mut expected = case.targets.clone();
            for (source, target) in case.sources.iter().zip(&mut expected) {
                naive_copy(source, target, &case.mapping, case.axis);
            }
            let mut targets = case.targets.clone();
            let sources: Vec<_> = case.sources.iter().map(Placed::view).collect();
            let mut views: Vec<_> = targets.iter_mut().map(Placed::view_mut).collect();
            let options =
                CopyOptions { axis: case.axis, num_threads: Some(case.threads), ..CopyOptions::default() };
            copy_pages_with(tier, &sources, &mut views, &case.mapping, &options).unwrap();
            for (target, expected) in targets.iter().zip(&expected) {
                prop_assert!(target.bytes == expected.bytes, "{tier:?} {:?}", case.dtype);
            }
        }
    }

    /// Source and target lie in one vector at any distance: either the bytes are as if the source had been
    /// copied first, or the call is refused and nothing has moved; and it is refused only if they meet.
    #[test]
    fn sources_are_a_snapshot(
        shift in 0_usize..64,
        page in 1_usize..9,
        reversed in any::<bool>(),
        mapping in proptest::collection::btree_map(0_i64..8, 0_i64..8, 0..6),
    ) {
        let mapping: Vec<[i64; 2]> = mapping.into_iter().map(|(to, from)| [from, to]).collect();
        let before: Vec<u8> = (0..160).collect();
        let mut bytes = before.clone();
        let stride = if reversed { -(page as isize) } else { page as isize };
        let first = if reversed { 7 * page } else { 0 };
        let place = |base: usize, id: i64| base + first.wrapping_add_signed(stride * id as isize);
        let base = bytes.as_mut_ptr();
        #[allow(unsafe_code)]
        // SAFETY: eight pages of at most eight bytes from at most byte 63 on lie within 160 bytes.
        let (source, target) = unsafe {
            (
                TensorRef::from_raw(base.add(first), DType::U8, &[8, page], &[stride, 1]).unwrap(),
                TensorMut::from_raw(base.add(shift + first), DType::U8, &[8, page], &[stride, 1]).unwrap(),
            )
        };
        let done = copy_pages(&[source], &mut [target], &mapping, &CopyOptions::default());
        let written = |byte: usize| mapping.iter().any(|row| (place(shift, row[1])..).take(page).any(|b| b == byte));
        let meets = mapping.iter().any(|row| (place(0, row[0])..).take(page).any(written));
        prop_assert_eq!(done.is_err(), meets, "{:?}", done);
        let mut expected = before.clone();
        if !meets {
            for row in &mapping {
                let from = place(0, row[0]);
                let to = place(shift, row[1]);
                expected[to..to + page].copy_from_slice(&before[from..from + page]);
            }
        }
        prop_assert_eq!(bytes, expected);
    }
}

#[test]
fn long_copies_stream_and_pages_are_cut() {
    // 24 MiB in one page, and in many: above the streaming limit, with a length that no vector divides.
    let bytes: Vec<u8> = (0..24_usize << 20).map(|i| (i ^ (i >> 11)) as u8).collect();
    for pages in [1, 3, 1024] {
        let page = bytes.len() / pages - 5;
        for &tier in simd::available() {
            let mut target = vec![0_u8; pages * page];
            let mapping: Vec<[i64; 2]> = (0..pages as i64).map(|i| [pages as i64 - 1 - i, i]).collect();
            let source = TensorRef::from_slice(&bytes[3..3 + pages * page], &[pages, page]).unwrap();
            let view = TensorMut::from_slice(&mut target, &[pages, page]).unwrap();
            let options = CopyOptions { num_threads: Some(2), ..CopyOptions::default() };
            copy_pages_with(tier, &[source], &mut [view], &mapping, &options).unwrap();
            for (i, chunk) in target.chunks_exact(page).enumerate() {
                let from = 3 + (pages - 1 - i) * page;
                assert!(chunk == &bytes[from..from + page], "{tier:?}, page {i} of {pages}");
            }
        }
    }
}

#[test]
fn bad_calls_are_named_and_write_nothing() {
    let source = [1_u8; 12];
    let mut target = [0_u8; 12];
    let mut code = |mapping: &[[i64; 2]], shape: &[usize], axis| {
        let view = TensorMut::from_slice(&mut target, shape).unwrap();
        let source = TensorRef::from_slice(&source, &[4, 3]).unwrap();
        let options = CopyOptions { axis, ..CopyOptions::default() };
        let error = copy_pages(&[source], &mut [view], mapping, &options).unwrap_err();
        assert!(!error.to_string().is_empty());
        error.code()
    };
    for bad in [[4, 0], [-1, 0], [0, 4], [0, -1], [i64::MAX, 0], [0, i64::MIN]] {
        assert_eq!(code(&[[0, 1], bad], &[4, 3], 0), "id.page", "{bad:?}");
    }
    assert_eq!(code(&[[0, 1], [2, 1]], &[4, 3], 0), "id.repeated_target");
    assert_eq!(code(&[[0, 1]], &[3, 4], 0), "shape.pages");
    assert_eq!(code(&[[0, 1]], &[12], 0), "shape.pages");
    assert_eq!(code(&[[0, 1]], &[4, 3], 2), "argument.axis");
    assert_eq!(code(&[[0, 1]], &[12], 1), "argument.axis");
    assert_eq!(target, [0; 12]);

    let words = [1_u16; 12];
    let source = TensorRef::from_slice(&words, &[4, 3]).unwrap();
    let view = TensorMut::from_slice(&mut target, &[4, 3]).unwrap();
    let options = CopyOptions::default();
    assert_eq!(copy_pages(&[source], &mut [view], &[], &options).unwrap_err().code(), "dtype.pages");
    assert_eq!(copy_pages(&[source], &mut [], &[], &options).unwrap_err().code(), "shape.layers");
    let zero = CopyOptions { num_threads: Some(0), ..options };
    assert_eq!(copy_pages(&[], &mut [], &[], &zero).unwrap_err().code(), "argument.num_threads");
    assert_eq!(copy_pages(&[], &mut [], &[], &options), Ok(()));
    assert_eq!(copy_pages(&[], &mut [], &[[0, 0]], &options).unwrap_err().code(), "id.page");
}

#[test]
fn packed_pages_are_gathered_and_scattered() {
    let pages: Vec<u16> = (0..12).collect();
    let mut packed = [0_u16; 6];
    let source = TensorRef::from_slice(&pages, &[4, 3]).unwrap();
    let options = CopyOptions::default();
    let view = TensorMut::from_slice(&mut packed, &[2, 3]).unwrap();
    gather_pages(&[source], &[3, 1], &mut [view], &options).unwrap();
    assert_eq!(packed, [9, 10, 11, 3, 4, 5]);
    let view = TensorMut::from_slice(&mut packed, &[2, 3]).unwrap();
    let short = gather_pages(&[source], &[3], &mut [view], &options);
    assert_eq!(short.unwrap_err().code(), "shape.packed_pages");

    let mut target = [0_u16; 9];
    let source = TensorRef::from_slice(&packed, &[2, 3]).unwrap();
    let view = TensorMut::from_slice(&mut target, &[3, 3]).unwrap();
    scatter_pages(&[source], &mut [view], &[2, 0], &options).unwrap();
    assert_eq!(target, [3, 4, 5, 0, 0, 0, 9, 10, 11]);
    let view = TensorMut::from_slice(&mut target, &[3, 3]).unwrap();
    let twice = scatter_pages(&[source], &mut [view], &[2, 2], &options);
    assert_eq!(twice.unwrap_err().code(), "id.repeated_target");
    let view = TensorMut::from_slice(&mut target, &[3, 3]).unwrap();
    let long = scatter_pages(&[source], &mut [view], &[2, 0, 1], &options);
    assert_eq!(long.unwrap_err().code(), "shape.packed_pages");
}

#[test]
fn a_page_is_not_both_read_and_written() {
    let mut bytes: Vec<u8> = (0..12).collect();
    let mut within = |mapping: &[[i64; 2]]| {
        let base = bytes.as_mut_ptr();
        #[allow(unsafe_code)]
        // SAFETY: both views lie within the vector.
        let (source, target) = unsafe {
            (
                TensorRef::from_raw(base, DType::U8, &[4, 3], &[3, 1]).unwrap(),
                TensorMut::from_raw(base, DType::U8, &[4, 3], &[3, 1]).unwrap(),
            )
        };
        copy_pages(&[source], &mut [target], mapping, &CopyOptions::default())
    };
    assert_eq!(
        within(&[[0, 1], [1, 2]]),
        Err(PageError::SourceIsTarget { row: 0, source_row: 1, id: 1 }.into())
    );
    assert_eq!(within(&[[2, 2]]).unwrap_err().code(), "overlap.source_is_target");
    within(&[[0, 2], [1, 3]]).unwrap();
    assert_eq!(bytes, [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5]);
}

#[test]
fn layers_must_not_write_each_other() {
    let source = [7_u8; 8];
    let mut bytes = [0_u8; 12];
    let base = bytes.as_mut_ptr();
    #[allow(unsafe_code)]
    let within = |offsets: [usize; 2], mapping: &[[i64; 2]]| {
        let views = offsets.map(|offset| {
            // SAFETY: four pages of two bytes from at most byte 4 on lie within twelve bytes.
            unsafe { TensorMut::from_raw(base.add(offset), DType::U8, &[4, 2], &[2, 1]) }.unwrap()
        });
        let source = TensorRef::from_slice(&source, &[4, 2]).unwrap();
        copy_pages(&[source, source], &mut Vec::from(views), mapping, &CopyOptions::default())
    };
    assert_eq!(within([0, 4], &[[0, 2], [1, 0]]).unwrap_err(), PageError::PageOverlap { layer: 1 }.into());
    within([0, 4], &[[0, 0], [1, 1]]).unwrap();
    assert_eq!(bytes, [7, 7, 7, 7, 7, 7, 7, 7, 0, 0, 0, 0]);
}

#[test]
fn a_stop_is_heard() {
    let bytes = vec![1_u8; 64 << 20];
    let mut target = vec![0_u8; 64 << 20];
    let source = TensorRef::from_slice(&bytes, &[64, 1 << 20]).unwrap();
    let view = TensorMut::from_slice(&mut target, &[64, 1 << 20]).unwrap();
    let mapping: Vec<[i64; 2]> = (0..64).map(|i| [i, i]).collect();
    let options = CopyOptions { num_threads: Some(1), stop: &|| true, ..CopyOptions::default() };
    // Whether the copy outlives the time between two questions depends on the machine; both ends are allowed.
    match copy_pages(&[source], &mut [view], &mapping, &options) {
        Ok(()) => assert!(target == bytes),
        Err(error) => assert_eq!(error.code(), "interrupted"),
    }
}
