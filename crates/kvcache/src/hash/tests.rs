use super::*;
use proptest::prelude::*;

fn hash_with(tier: Tier, request: &HashRequest<'_>) -> Vec<u8> {
    let mut out = vec![0; request.num_blocks().unwrap() * request.algorithm.digest_len()];
    hash_blocks_with(tier, request, &mut out).unwrap();
    out
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"))
}

/// A tuple as CBOR, put together item by item.
fn naive_cbor(parent: &[u8], tokens: &[u32], extra_keys: Option<&ExtraKeys>) -> Vec<u8> {
    let mut bytes = Vec::new();
    cbor::push_head(&mut bytes, cbor::major::ARRAY, 3);
    cbor::push_head(&mut bytes, cbor::major::BYTES, parent.len() as u64);
    bytes.extend_from_slice(parent);
    cbor::push_head(&mut bytes, cbor::major::ARRAY, tokens.len() as u64);
    for &token in tokens {
        cbor::push_head(&mut bytes, cbor::major::UNSIGNED, u64::from(token));
    }
    bytes.extend_from_slice(extra_keys.map_or(&[cbor::NULL], |keys| keys.as_cbor()));
    bytes
}

/// A tuple as pickle of one frame, put together opcode by opcode.
fn naive_pickle(parent: &[u8], tokens: &[u32]) -> Vec<u8> {
    let mut object = vec![b'C', parent.len() as u8];
    object.extend_from_slice(parent);
    object.push(0x94);
    if tokens.len() > 3 {
        object.push(b'(');
    }
    for &token in tokens {
        match token {
            0..0x100 => object.extend_from_slice(&[b'K', token as u8]),
            0x100..0x1_0000 => {
                object.push(b'M');
                object.extend_from_slice(&(token as u16).to_le_bytes());
            }
            0x1_0000..0x8000_0000 => {
                object.push(b'J');
                object.extend_from_slice(&token.to_le_bytes());
            }
            _ => {
                object.extend_from_slice(&[0x8a, 5]);
                object.extend_from_slice(&token.to_le_bytes());
                object.push(0);
            }
        }
    }
    object.push([b't', 0x85, 0x86, 0x87][if tokens.len() > 3 { 0 } else { tokens.len() }]);
    object.extend_from_slice(b"\x94N\x87\x94.");
    let mut bytes = vec![0x80, 5, 0x95];
    bytes.extend_from_slice(&(object.len() as u64).to_le_bytes());
    bytes.extend_from_slice(&object);
    bytes
}

fn digest_of(algorithm: Algorithm, bytes: Vec<u8>) -> Vec<u8> {
    if algorithm.is_collision_resistant() {
        sha256_of(bytes)
    } else {
        xxhash_rust::xxh3::xxh3_128(&bytes).to_be_bytes().to_vec()
    }
}

fn sha256_of(mut bytes: Vec<u8>) -> Vec<u8> {
    use crate::kernels::sha256::{Kernel, PADDING_BYTES, pad};
    let length = bytes.len();
    bytes.resize(length + PADDING_BYTES, 0xaa);
    let padded = pad(&mut bytes, length);
    Kernel::for_tier(Tier::Portable).digest(&bytes[..padded]).to_vec()
}

/// Digests that `hashlib`, `cbor2` and `pickle` compute for the same tuples in Python.
#[test]
fn digests_that_python_computes() {
    let none = |algorithm: Algorithm| hex(&algorithm.none_hash(None).unwrap());
    assert_eq!(
        none(Algorithm::Sha256Cbor),
        "9bd96a485ad84efdafb72ee48a1d7a69bcead0f8f0433173941b276b9581eef0"
    );
    assert_eq!(none(Algorithm::Sha256), "066b1e8987e027138e98701c46128929378935f9b6cd1549105ae6b4f0d71198");
    let seeded = |algorithm: Algorithm| hex(&algorithm.none_hash(Some("0")).unwrap());
    assert_eq!(
        seeded(Algorithm::Sha256Cbor),
        "4e1195df020de59e0d65a33a4279f1183e7ae4e5d980e309f8b55adff2e61c3e"
    );
    assert_eq!(seeded(Algorithm::Sha256), "1973e23848344dc43a988a9b478663803cfffe1243480253f9a3cf004b14aa7c");

    let edges = [0, 23, 24, 255, 256, 65535, 65536, (1 << 31) - 1, 1 << 31, u32::MAX];
    let long: Vec<u32> = (0..20_000).collect();
    let cases: [(&[u32], [&str; 2]); 5] = [
        (
            &[7],
            [
                "13d3f705f79b720edaa9d07ce3cc48ffacb47dc6434ebe1d59e7ebfe51d282d6",
                "ad42afba4a7360560993bf7d42e4779856653b1fa26a67489cc9776a59d18d26",
            ],
        ),
        (
            &[1, 2, 3],
            [
                "e1af50ac0c00965b5980f03c1ec32a46e34ef9fcb43f2ee8b75f1d0f08813da7",
                "d6a0584b5995a886add7c1f59433a9171ba6fdf4b936d0b68e6df127e2244c82",
            ],
        ),
        (
            &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
            [
                "dc918a88b139e5afe60b88eda27508d4aee16c10fdc354791efea06206ac0749",
                "fe8fa5dda3210d0ca2031e37cbe3b001186773cd1c710beb2d45fcb51d434798",
            ],
        ),
        (
            &edges,
            [
                "7554a8337895744e2a9d1f14930441fdf95f9c477cb58260c881762b70e9ead6",
                "25fcf88e62a02fff7ba79099e76f8493a9f53d254099937286c5983744e83fd9",
            ],
        ),
        (
            &long,
            [
                "201bf3d0826257b871ffb536ffdf9d38105a063113ee70034f7613e17d576bea",
                "19b27c67469d15d3bc8873673bd8261f9bab16ae77f64ceb20cf3420cbd2cadb",
            ],
        ),
    ];
    for (token_ids, expected) in cases {
        for (algorithm, expected) in Algorithm::ALL.into_iter().zip(expected) {
            let parent = algorithm.none_hash(None).unwrap();
            let block_size = token_ids.len();
            let request = HashRequest { token_ids, block_size, algorithm, parent: &parent, extra_keys: &[] };
            for &tier in simd::available() {
                assert_eq!(hex(&hash_with(tier, &request)), expected, "{algorithm:?} of {block_size} tokens");
            }
        }
    }
}

/// What `xxhash.xxh3_128_digest` computes over `cbor2` and `pickle` in Python.
#[test]
fn xxhash_digests_that_python_computes() {
    let tokens: Vec<u32> = (0..16).map(|i| i * 7919).collect();
    let expected = [
        (Algorithm::XxhashCbor, "a9d2e63407fce1a26c9dc9d7fa2d7caf", "010b7223830901ca2e668879d27ce480"),
        (Algorithm::Xxhash, "b6cdd80ea04b31ad0b9fc22fff500882", "dfc2409e7cc85f12c365dd488e176d29"),
    ];
    for (algorithm, none, block) in expected {
        let parent = algorithm.none_hash(Some("42")).unwrap();
        assert_eq!(hex(&parent), none);
        let request =
            HashRequest { token_ids: &tokens, block_size: 16, algorithm, parent: &parent, extra_keys: &[] };
        assert_eq!(hex(&hash_with(simd::tier(), &request)), block);
    }
}

#[test]
fn forgeable_chains_begin_at_random() {
    for algorithm in Algorithm::ALL {
        let first = algorithm.none_hash(None).unwrap();
        assert_eq!(first, algorithm.none_hash(None).unwrap(), "the same for a whole process");
        assert_eq!(
            first == algorithm.none_hash(Some("vllm-none-hash")).unwrap(),
            algorithm.is_collision_resistant()
        );
    }
}

#[test]
fn extra_keys_are_canonical_cbor() {
    let keys = ExtraKeys::new(&[
        ExtraKey::None,
        ExtraKey::Bool(true),
        ExtraKey::Bool(false),
        ExtraKey::Integer(-1),
        ExtraKey::Integer(i128::from(u64::MAX)),
        ExtraKey::Integer(-(1 << 64)),
        ExtraKey::Text("é".to_owned()),
        ExtraKey::Bytes(vec![0]),
        ExtraKey::Tuple(vec![
            ExtraKey::Text("lora".to_owned()),
            ExtraKey::Text("a".to_owned()),
            ExtraKey::Tuple(Vec::new()),
        ]),
        ExtraKey::Integer(24),
        ExtraKey::Integer(256),
        ExtraKey::Integer(65536),
        ExtraKey::Integer(1 << 32),
    ])
    .unwrap();
    let algorithm = Algorithm::Sha256Cbor;
    let parent = algorithm.none_hash(None).unwrap();
    let keys = [Some(keys)];
    let request =
        HashRequest { token_ids: &[1, 2], block_size: 2, algorithm, parent: &parent, extra_keys: &keys };
    assert_eq!(
        hex(&hash_with(simd::tier(), &request)),
        "e9b9761db89e8288df3f033fc568693814b3a9398d05fde73cd019e34f7d6bd5"
    );
}

#[test]
fn requests_that_cannot_be_hashed() {
    let parent = [0; 32];
    let good = HashRequest {
        token_ids: &[1, 2, 3, 4, 5],
        block_size: 2,
        algorithm: Algorithm::Sha256Cbor,
        parent: &parent,
        extra_keys: &[],
    };
    assert_eq!(good.num_blocks(), Ok(2));
    let code = |request: HashRequest<'_>| request.num_blocks().unwrap_err().code();
    assert_eq!(code(HashRequest { block_size: 0, ..good }), "argument.block_size");
    assert_eq!(code(HashRequest { parent: &parent[..16], ..good }), "shape.parent");
    assert_eq!(code(HashRequest { extra_keys: &[None], ..good }), "shape.extra_keys");
    let keys = [None, Some(ExtraKeys::new(&[]).unwrap())];
    let pickled = HashRequest { algorithm: Algorithm::Sha256, extra_keys: &keys, ..good };
    assert_eq!(code(pickled), "argument.extra_keys_pickle");
    assert_eq!(hash_blocks(&good, &mut [0; 63]).unwrap_err().code(), "shape.hash_bytes");
    assert_eq!(Algorithm::from_name("md5").unwrap_err().code(), "argument.algorithm");
    assert_eq!(Algorithm::Sha256.none_hash(Some(&"1".repeat(256))).unwrap_err().code(), "argument.hash_seed");
    let huge = ExtraKeys::new(&[ExtraKey::Integer(1 << 64)]);
    assert_eq!(huge.unwrap_err().code(), "argument.extra_keys_integer");
    let deep = (0..40).fold(ExtraKey::None, |inner, _| ExtraKey::Tuple(vec![inner]));
    assert_eq!(ExtraKeys::new(&[deep]).unwrap_err().code(), "argument.extra_keys_depth");
}

#[test]
fn a_prompt_shorter_than_a_block_has_no_hashes() {
    let algorithm = Algorithm::Sha256;
    for token_ids in [&[] as &[u32], &[1, 2, 3]] {
        let request =
            HashRequest { token_ids, block_size: usize::MAX, algorithm, parent: &[0; 32], extra_keys: &[] };
        assert!(hash_with(Tier::Portable, &request).is_empty());
    }
}

#[test]
fn ids_outside_32_bits_are_named() {
    let mut narrow = [0; 4];
    assert_eq!(narrow_token_ids(&[0, i64::from(u32::MAX)], 7, &mut narrow[..2]), Ok(()));
    assert_eq!(narrow, [0, u32::MAX, 0, 0]);
    for value in [-1, i64::from(u32::MAX) + 1, i64::MIN, i64::MAX] {
        let expected = KvCacheError::TokenId { position: 102, value };
        assert_eq!(narrow_token_ids(&[5, 7, value, -9], 100, &mut narrow), Err(expected));
    }
}

/// Ids of every width, each as likely as the others.
fn token_id() -> impl Strategy<Value = u32> {
    (0_u32..=32).prop_flat_map(|bits| match bits {
        0 => Just(0).boxed(),
        bits => (1_u32 << (bits - 1)..=u32::MAX >> (32 - bits)).boxed(),
    })
}

fn extra_key() -> impl Strategy<Value = Option<ExtraKeys>> {
    let key = prop_oneof![
        any::<i64>().prop_map(|value| ExtraKey::Integer(value.into())),
        ".{0,40}".prop_map(ExtraKey::Text),
        proptest::collection::vec(any::<u8>(), 0..300).prop_map(ExtraKey::Bytes),
    ];
    proptest::option::of(proptest::collection::vec(key, 0..3).prop_map(|keys| ExtraKeys::new(&keys).unwrap()))
}

proptest! {
    #[test]
    fn a_chain_is_its_blocks_one_by_one(
        token_ids in proptest::collection::vec(token_id(), 0..200),
        block_size in 1_usize..40,
        parent in any::<[u8; 32]>(),
        keys in proptest::collection::vec(extra_key(), 200),
        with_keys in any::<bool>(),
    ) {
        for algorithm in Algorithm::ALL {
            let num_blocks = token_ids.len() / block_size;
            let keys: &[_] = if with_keys && !algorithm.is_pickle() { &keys[..num_blocks] } else { &[] };
            let mut expected = Vec::new();
            let parent = &parent[..algorithm.digest_len()];
            let mut last = parent.to_vec();
            for (index, tokens) in token_ids.chunks_exact(block_size).enumerate() {
                let bytes = if algorithm.is_pickle() {
                    naive_pickle(&last, tokens)
                } else {
                    naive_cbor(&last, tokens, keys.get(index).and_then(Option::as_ref))
                };
                last = digest_of(algorithm, bytes);
                expected.extend_from_slice(&last);
            }
            let request = HashRequest {
                token_ids: &token_ids, block_size, algorithm, parent, extra_keys: keys,
            };
            for &tier in simd::available() {
                prop_assert_eq!(&hash_with(tier, &request), &expected);
            }
        }
    }

    #[test]
    fn a_chain_can_be_continued(
        token_ids in proptest::collection::vec(token_id(), 32..200),
        block_size in 1_usize..16,
        parent in any::<[u8; 32]>(),
    ) {
        for algorithm in Algorithm::ALL {
            let request = HashRequest {
                token_ids: &token_ids,
                block_size,
                algorithm,
                parent: &parent[..algorithm.digest_len()],
                extra_keys: &[],
            };
            let whole = hash_with(simd::tier(), &request);
            let (first, rest) = token_ids.split_at(block_size);
            let first = hash_with(simd::tier(), &HashRequest { token_ids: first, ..request });
            let rest = hash_with(simd::tier(), &HashRequest { token_ids: rest, parent: &first, ..request });
            prop_assert_eq!([first, rest].concat(), whole);
        }
    }
}
