"""Block hashes: equal to vLLM's formulas, which are hashlib over cbor2 and pickle."""

from __future__ import annotations

import hashlib
import pickle
import threading
from typing import TYPE_CHECKING, Any

import cbor2
import numpy as np
import pytest
import torch
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from infer_accel import errors, kvcache, reference
from infer_accel._backend import native

if TYPE_CHECKING:
    from collections.abc import Callable

ALGORITHMS: list[kvcache.Algorithm] = ["sha256_cbor", "sha256", "xxhash_cbor", "xxhash"]
DIGEST_BYTES = {"sha256_cbor": 32, "sha256": 32, "xxhash_cbor": 16, "xxhash": 16}
IMPLEMENTATIONS = [native().kvcache, reference.kvcache]


def digest(algorithm: kvcache.Algorithm, value: object) -> bytes:
    if algorithm in {"sha256", "xxhash"}:
        message = pickle.dumps(value, protocol=5)
    else:
        message = bytes(cbor2.dumps(value, canonical=True))
    if algorithm.startswith("xxhash"):
        return bytes(xxhash.xxh3_128_digest(message))
    return hashlib.sha256(message).digest()


def oracle(
    algorithm: kvcache.Algorithm,
    ids: list[int],
    block_size: int,
    parent: bytes | None,
    keys: list[Any] | None,
) -> list[bytes]:
    """Do what vLLM's `hash_block_tokens` does, block by block."""
    last = parent or kvcache.none_hash(algorithm)
    hashes = []
    for block in range(len(ids) // block_size):
        tokens = tuple(ids[block * block_size : (block + 1) * block_size])
        extra = None if keys is None else keys[block]
        last = digest(algorithm, (last, tokens, extra))
        hashes.append(last)
    return hashes


@pytest.fixture(autouse=True)
def _no_hash_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)


# Every width of an id, each as likely as the others.
token_ids = st.integers(0, 32).flatmap(lambda bits: st.integers((1 << bits) >> 1, (1 << bits) - 1))
prompts = st.lists(token_ids, max_size=80)
extra_key = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 64), (1 << 64) - 1)
    | st.text(max_size=30)
    | st.binary(max_size=300),
    lambda inner: st.lists(inner, max_size=4).map(tuple),
    max_leaves=6,
)
block_keys = st.none() | st.lists(extra_key, max_size=4).map(tuple)


@given(prompts, st.integers(1, 20), st.none() | st.binary(min_size=32, max_size=32), st.data())
@settings(max_examples=300, deadline=None)
def test_equals_hashlib_cbor2_and_pickle(
    ids: list[int], block_size: int, parent: bytes | None, data: st.DataObject
) -> None:
    num_blocks = len(ids) // block_size
    keys = data.draw(st.none() | st.lists(block_keys, min_size=num_blocks, max_size=num_blocks))
    whole = parent
    for algorithm in ALGORITHMS:
        parent = whole and whole[: DIGEST_BYTES[algorithm]]
        expected = oracle(algorithm, ids, block_size, parent, keys)
        got = kvcache.hash_blocks(
            ids, block_size=block_size, algorithm=algorithm, parent=parent, extra_keys=keys
        )
        assert got.shape == (num_blocks, DIGEST_BYTES[algorithm])
        assert got.dtype == np.uint8
        assert [row.tobytes() for row in got] == expected
        specified = reference.kvcache.hash_blocks(
            ids,
            block_size=block_size,
            algorithm=algorithm,
            parent=parent or kvcache.none_hash(algorithm),  # xxhash begins at random in each implementation
            extra_keys=keys,
        )
        assert (specified == got).all()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_blocks_of_many_thousand_tokens(algorithm: kvcache.Algorithm) -> None:
    # More than one frame of pickle: frames are closed behind the first object that fills 64 KiB.
    for block_size in (9_000, 13_000, 21_845, 40_000):
        ids = [(i * 7919) % (1 << 32) for i in range(block_size)]
        (expected,) = oracle(algorithm, ids, block_size, None, None)
        assert kvcache.hash_blocks(ids, block_size=block_size, algorithm=algorithm)[0].tobytes() == expected


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(
    "kind", ["int32", "int64", "uint32", "uint16", "list", "tuple", "range", "torch", "strided"]
)
def test_every_kind_of_ids(algorithm: kvcache.Algorithm, kind: str) -> None:
    ids = list(range(100, 150))
    makers: dict[str, Callable[[], Any]] = {
        "list": lambda: ids,
        "tuple": lambda: tuple(ids),
        "range": lambda: range(100, 150),
        "torch": lambda: torch.tensor(ids),
        "strided": lambda: np.repeat(np.array(ids)[::-1], 2)[::-2],
    }
    made = makers[kind]() if kind in makers else np.array(ids, kind)
    expected = oracle(algorithm, ids, 16, None, None)
    got = kvcache.hash_blocks(made, block_size=16, algorithm=algorithm)
    assert [row.tobytes() for row in got] == expected


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("seed", [None, "0", "42", "random", ""])
def test_none_hash_follows_the_seed(
    algorithm: kvcache.Algorithm, seed: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if seed is not None:
        monkeypatch.setenv("PYTHONHASHSEED", seed)
    if seed is None and algorithm.startswith("xxhash"):
        assert kvcache.none_hash(algorithm) == kvcache.none_hash(algorithm)
        assert kvcache.none_hash(algorithm) != digest(algorithm, "vllm-none-hash")
        return
    expected = digest(algorithm, "vllm-none-hash" if seed is None else seed)
    assert kvcache.none_hash(algorithm) == reference.kvcache.none_hash(algorithm) == expected
    first = kvcache.hash_blocks([1, 2], block_size=2, algorithm=algorithm)
    again = kvcache.hash_blocks([1, 2], block_size=2, algorithm=algorithm, parent=expected)
    assert (first == again).all()


def test_pickle_tells_shared_from_equal_keys() -> None:
    # As vLLM's sha256 does: the second mention of one object is a reference, an equal object is not.
    name = "adapter"
    copy = bytes(name, "ascii").decode()
    shared = kvcache.hash_blocks([1], block_size=1, algorithm="sha256", extra_keys=[(name, name)])
    equal = kvcache.hash_blocks([1], block_size=1, algorithm="sha256", extra_keys=[(name, copy)])
    assert (shared != equal).any()
    cbor = [kvcache.hash_blocks([1], block_size=1, extra_keys=[(name, second)]) for second in (name, copy)]
    assert (cbor[0] == cbor[1]).all()


def test_a_hash_depends_on_everything_before_it() -> None:
    base = kvcache.hash_blocks(range(64), block_size=16)
    for position in (0, 15, 16, 63):
        ids = list(range(64))
        ids[position] += 1000
        differs = (kvcache.hash_blocks(ids, block_size=16) != base).any(axis=1)
        assert differs.tolist() == [block >= position // 16 for block in range(4)]


def test_a_parent_may_be_a_row() -> None:
    hashes = kvcache.hash_blocks(range(32), block_size=16)
    for parent in (hashes[0], hashes[0].tobytes(), hashes[::-1][1]):
        continued = kvcache.hash_blocks(range(16, 32), block_size=16, parent=parent)
        assert (continued[0] == hashes[1]).all()


@pytest.mark.parametrize("dtype", [np.int64, np.float32, np.int8])
def test_a_parent_of_other_numbers_is_refused(dtype: Any) -> None:
    parent = kvcache.hash_blocks(range(16), block_size=16)[0].astype(dtype)
    with pytest.raises(errors.DTypeError) as caught:
        kvcache.hash_blocks(range(16), block_size=16, parent=parent)
    assert caught.value.code == "dtype.bytes"


@pytest.mark.parametrize("algorithm", ["sha256", "xxhash"])
def test_keys_nested_without_end_are_refused(algorithm: Any) -> None:
    key: tuple[Any, ...] = ()
    for _ in range(100_000):
        key = (key,)
    with pytest.raises(errors.ArgumentError) as caught:
        kvcache.hash_blocks(range(16), block_size=16, algorithm=algorithm, extra_keys=[key])
    assert caught.value.code == "argument.extra_keys_depth"


BAD_CALLS: list[tuple[dict[str, Any], type[errors.InferAccelError], str]] = [
    ({"token_ids": [1, -1]}, errors.IdError, "id.token"),
    ({"token_ids": [1 << 32, 1]}, errors.IdError, "id.token"),
    ({"token_ids": np.array([5, -(1 << 63)])}, errors.IdError, "id.token"),
    ({"token_ids": np.array([-1], np.int32)}, errors.IdError, "id.token"),
    ({"token_ids": [1 << 80]}, errors.IdError, "id.range"),
    ({"token_ids": np.array([1 << 63], np.uint64)}, errors.IdError, "id.range"),
    ({"token_ids": [1.0, 2.0]}, errors.DTypeError, "dtype.ids"),
    ({"token_ids": np.zeros(4, np.float32)}, errors.DTypeError, "dtype.ids"),
    ({"token_ids": np.zeros(4, bool)}, errors.DTypeError, "dtype.ids"),
    ({"token_ids": [[1, 2], [3, 4]]}, errors.ShapeError, "shape.token_ids"),
    ({"token_ids": np.array(3)}, errors.ShapeError, "shape.token_ids"),
    ({"block_size": 0}, errors.ArgumentError, "argument.block_size"),
    ({"block_size": -1}, errors.ArgumentError, "argument.count"),
    ({"algorithm": "md5"}, errors.ArgumentError, "argument.algorithm"),
    ({"algorithm": "sha256\0"}, errors.ArgumentError, "argument.algorithm"),
    ({"parent": b""}, errors.ShapeError, "shape.parent"),
    ({"parent": b"\0" * 31}, errors.ShapeError, "shape.parent"),
    ({"extra_keys": []}, errors.ShapeError, "shape.extra_keys"),
    ({"extra_keys": [None] * 3}, errors.ShapeError, "shape.extra_keys"),
    ({"extra_keys": [(1 << 64,), None]}, errors.ArgumentError, "argument.extra_keys_integer"),
    ({"extra_keys": [(1.5,), None]}, errors.ArgumentError, "argument.extra_keys"),
]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=["native", "reference"])
@pytest.mark.parametrize(("change", "error", "code"), BAD_CALLS)
def test_bad_calls(
    implementation: Any, change: dict[str, Any], error: type[errors.InferAccelError], code: str
) -> None:
    call = {"token_ids": [1, 2, 3, 4], "block_size": 2} | change
    with pytest.raises(error) as caught:
        implementation.hash_blocks(call.pop("token_ids"), **call)
    assert caught.value.code == code
    assert str(caught.value)


def test_text_is_no_ids() -> None:
    for implementation in IMPLEMENTATIONS:
        for text in (["a", "b"], "ab", None, object()):
            with pytest.raises(errors.DTypeError):
                implementation.hash_blocks(text, block_size=1)


@pytest.mark.parametrize("keys", [["salt"], [("\ud800",)], [({},)], [(object(),)], [(1 << 200,)], "text"])
def test_extra_keys_that_have_no_cbor(keys: Any) -> None:
    ids = [1] * len(keys)
    with pytest.raises(errors.ArgumentError) as caught:
        kvcache.hash_blocks(ids, block_size=1, extra_keys=keys)
    assert caught.value.code == "argument.extra_keys"


def test_extra_keys_nested_without_end() -> None:
    keys: Any = ()
    for _ in range(100_000):
        keys = (keys,)
    with pytest.raises(errors.ArgumentError):
        kvcache.hash_blocks([1], block_size=1, extra_keys=[keys])
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(errors.ArgumentError):
        kvcache.hash_blocks([1], block_size=1, extra_keys=[(endless,)])


def test_a_block_longer_than_the_prompt() -> None:
    for block_size in (5, 1 << 40, (1 << 64) - 1):
        assert kvcache.hash_blocks([1, 2, 3, 4], block_size=block_size).shape == (0, 32)
    with pytest.raises(errors.ArgumentError):
        kvcache.hash_blocks([1], block_size=1 << 64)
    assert kvcache.hash_blocks([], block_size=16).shape == (0, 32)


def test_a_seed_that_is_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "9" * 300)
    with pytest.raises(errors.ArgumentError) as caught:
        kvcache.none_hash()
    assert caught.value.code == "argument.hash_seed"
    monkeypatch.setenv("PYTHONHASHSEED", "\udcff")
    with pytest.raises(errors.ArgumentError) as caught:
        kvcache.none_hash()
    assert caught.value.code == "argument.hash_seed"


def test_threads_hash_alike() -> None:
    ids = np.arange(32768, dtype=np.int32)
    expected = kvcache.hash_blocks(ids, block_size=16)
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(10):
            if (kvcache.hash_blocks(ids, block_size=16) != expected).any():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
