"""The bodies of `tests/gpu`, in the interpreter: what they expect is so, and a kernel that is wrong is seen by them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.gpu.bodies import Place, cases
from tests.soak import repeats

PLACE = Place(torch.device("cpu"))
CASES = list(cases())


# All in `make soak`; else every ninth, counted so that each kind, format and rank is among them.
@pytest.mark.parametrize("body", [pytest.param(body, id=name) for name, _, body in CASES[:: repeats(7, 1)]])
def test_it_is_what_the_cpu_says(body: Any) -> None:
    body(PLACE)


def test_names_are_apart_and_the_short_list_has_every_kernel() -> None:
    names = [name for name, _, _ in CASES]
    assert len(set(names)) == len(names) > 200
    short = [name for name, is_short, _ in CASES if is_short]
    assert len(short) < 60
    for word in (
        "pages",
        "gather",
        "scatter",
        "merge",
        "float8_e4m3fn",
        "float8_e5m2",
        "apply one",
        "ids int32",
    ):
        assert any(word in name for name in short), word


@pytest.mark.parametrize(
    ("kernel", "word"),
    [
        ("page_copy.page_copy", "pages of 24, pairs"),
        ("page_copy.page_gather", "pages of 24, gather"),
        ("page_copy.page_scatter", "pages of 24, scatter"),
        ("merge_weights.merge_weights", "merge float32, rank 5, into another"),
        ("merge_weights.merge_weights", "merge float8_e5m2"),
        ("apply_adapters.apply_adapters", "apply float32 float32 float32, ranks (3, 16)"),
        ("apply_adapters.apply_adapter", "apply one float32 float32 float32"),
    ],
)
def test_a_kernel_that_does_nothing_is_seen(kernel: str, word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"infer_accel.kernels.{kernel}", lambda *_, **__: None)
    body = next(body for name, _, body in CASES if word in name)
    with pytest.raises(AssertionError, match=r"other bits|bound"):
        body(PLACE)
