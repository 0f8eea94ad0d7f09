"""Many layers in one call: the bits of one after another, and nothing written when one is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infer_accel import errors, lora, reference

if TYPE_CHECKING:
    from collections.abc import Callable

DTYPES: dict[str, Any] = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
names = st.sampled_from(sorted(DTYPES))

Adapter = tuple[np.ndarray, np.ndarray, float]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    layers=st.lists(
        st.tuples(st.integers(0, 90), st.integers(0, 90), st.integers(0, 9), names, names, st.booleans()),
        max_size=8,
    ),
    num_threads=st.sampled_from([None, 1, 2, 8]),
)
def test_many_equal_one_after_another(
    seed: int, layers: list[tuple[int, int, int, str, str, bool]], num_threads: int | None
) -> None:
    rng = np.random.default_rng(seed)
    weights: list[np.ndarray] = []
    adapters: list[Adapter] = []
    for rows, columns, rank, base, adapter, transposed in layers:
        stored = rng.normal(0, 1, (columns, rows) if transposed else (rows, columns)).astype(DTYPES[base])
        weights.append(stored.T if transposed else stored)
        a, b = (rng.normal(0, 1, shape).astype(DTYPES[adapter]) for shape in ((rank, columns), (rows, rank)))
        adapters.append((a, b, float(rng.normal())))
    expected, specified = [weight.copy() for weight in weights], [weight.copy() for weight in weights]
    for weight, (a, b, scaling) in zip(expected, adapters, strict=True):
        lora.merge_weights(weight, a, b, scaling=scaling)
    reference.lora.merge_many(specified, adapters)
    merged = lora.merge_many(weights, adapters, num_threads=num_threads)
    assert all(left is right for left, right in zip(merged, weights, strict=True))
    for got, wanted, also in zip(weights, expected, specified, strict=True):
        assert got.tobytes() == wanted.tobytes() == also.tobytes()


def z(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.zeros(shape, dtype)


def adapter(rows: int = 4, columns: int = 6, scaling: float = 1.0) -> Adapter:
    return np.ones((2, columns), np.float32), np.ones((rows, 2), np.float32), scaling


def read_only() -> np.ndarray:
    array = z(4, 6)
    array.flags.writeable = False
    return array


WHOLE = z(8, 12)
INSIDE = z(20, 6)
REFUSALS: dict[str, tuple[Callable[[], tuple[list[np.ndarray], list[Adapter]]], type[Exception], str]] = {
    "shape": (lambda: ([z(4, 6), z(4, 7)], [adapter()] * 2), errors.ShapeError, "shape.mismatch"),
    "dtype": (lambda: ([z(4, 6), z(4, 6, dtype=int)], [adapter()] * 2), errors.DTypeError, "dtype.unsupported"),
    "scaling": (
        lambda: ([z(4, 6), z(4, 6)], [adapter(), adapter(scaling=float("inf"))]),
        errors.ArgumentError, "argument.scaling",
    ),
    "read-only": (lambda: ([z(4, 6), read_only()], [adapter()] * 2), errors.ReadOnlyError, "read_only"),
    "one weight twice": (lambda: ([WHOLE[:4, :6]] * 2, [adapter()] * 2), errors.OverlapError, "overlap.layers"),
    "rows that meet": (
        lambda: ([WHOLE[:4, :6], WHOLE[3:7, :6]], [adapter()] * 2), errors.OverlapError, "overlap.layers",
    ),
    "a weight inside another": (
        lambda: ([WHOLE, WHOLE[5:6, 2:8], z(4, 6)], [adapter(8, 12), adapter(1), adapter()]),
        errors.OverlapError, "overlap.layers",
    ),
    "another layer's adapter": (
        lambda: ([z(4, 6), INSIDE[3:7]], [(INSIDE[:5], z(4, 5), 1.0), adapter()]),
        errors.OverlapError, "overlap.layers",
    ),
    "its own adapter": (
        lambda: ([INSIDE[3:7]], [(INSIDE[:5], z(4, 5), 1.0)]), errors.OverlapError, "overlap.adapter",
    ),
    "fewer adapters": (lambda: ([z(4, 6), z(4, 6)], [adapter()]), errors.ArgumentError, "argument.layers"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
def test_one_bad_layer_stops_all(name: str) -> None:
    make, error, code = REFUSALS[name]
    weights, adapters = make()
    with pytest.raises(error) as caught:
        lora.merge_many(weights, adapters)
    assert getattr(caught.value, "code", None) == code
    assert not any(weight.any() for weight in weights)


def test_adapters_may_be_shared_and_rows_lie_side_by_side() -> None:
    qkv, shared = np.zeros((12, 6), np.float32), adapter()
    lora.merge_many([qkv[:4], qkv[4:8], qkv[8:]], [shared] * 3)
    assert np.all(qkv == 2)
    assert lora.merge_many([], []) == []
