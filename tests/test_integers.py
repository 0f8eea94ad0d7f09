"""Integers that the core cannot hold: errors with codes, or what the nearest one gives, on the native backend."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from infer_accel import _backend, errors, kvcache, lora
from infer_accel.kvcache import Trace, hash_blocks, page_copy, page_gather, page_scatter

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.skipif(_backend.name() != "native", reason="numpy has integers without end")

BEYOND = [-1, 2**64, -(2**70)]


def merge(**options: object) -> None:
    weight, a, b = np.zeros((4, 4), np.float32), np.zeros((2, 4), np.float32), np.zeros((4, 2), np.float32)
    lora.merge_weights(weight, a, b, **options)  # type: ignore[call-overload]


def copy(axis: int) -> None:
    pages = np.zeros((2, 4), np.uint8)
    page_copy(pages, pages.copy(), [[0, 1]], axis=axis)


def gather(axis: int) -> None:
    pages = np.zeros((2, 4), np.uint8)
    page_gather(pages, [0], pages[:1].copy(), axis=axis)


def scatter(axis: int) -> None:
    pages = np.zeros((2, 4), np.uint8)
    page_scatter(pages[:1], pages.copy(), [0], axis=axis)


@pytest.mark.parametrize("number", BEYOND)
@pytest.mark.parametrize(
    ("call", "code"),
    [
        (lambda number: merge(num_threads=number), "argument.count"),
        (lambda number: merge(rounding="stochastic", seed=number), "argument.seed"),
        (lambda number: Trace.synthetic(requests=3, seed=number), "argument.seed"),
        (lambda number: Trace.synthetic(requests=number), "argument.count"),
    ],
)
def test_counts_and_seeds_have_64_bits(call: Callable[[int], object], code: str, number: int) -> None:
    with pytest.raises(errors.ArgumentError, match=f"^{number} came as") as caught:
        call(number)
    assert caught.value.code == code


@pytest.mark.parametrize("axis", [2**63, -(2**63) - 1, 2**70])
@pytest.mark.parametrize(
    "call", [copy, gather, scatter, lambda axis: kvcache.scrub(np.zeros((2, 4)), [0], axis=axis)]
)
def test_no_tensor_has_such_an_axis(call: Callable[[int], None], axis: int) -> None:
    with pytest.raises(errors.ArgumentError, match=f"^{axis} came as an axis") as caught:
        call(axis)
    assert caught.value.code == "argument.axis"


def test_extra_keys_too_deep_say_so() -> None:
    deep: tuple[object, ...] = ()
    for _ in range(200):
        deep = (deep,)
    with pytest.raises(errors.ArgumentError, match="nested more than") as caught:
        hash_blocks(np.arange(16), block_size=16, extra_keys=[deep])  # type: ignore[list-item]
    assert caught.value.code == "argument.extra_keys_depth"
