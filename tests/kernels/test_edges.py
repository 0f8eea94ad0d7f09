"""What lies beside an operand is poison: a kernel that reads it gives NaN, and one that writes it is noticed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests.kernels.devices import SaysCuda

from infer_accel import lora
from infer_accel.kernels import apply_adapters as applying
from infer_accel.kernels import merge_weights as merging
from infer_accel.kernels._stack import CudaStack

FORMATS = [torch.float32, torch.float16, torch.bfloat16]


def amid_poison(values: torch.Tensor, gap: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Return all memory, full of NaN, and the values as a view in the middle of it."""
    rows, columns = values.shape
    memory = torch.full((rows + 2, columns + gap), float("nan"), dtype=values.dtype)
    view = memory[1 : rows + 1, :columns]
    view.copy_(values)
    return memory, view


def packed_amid_poison(values: torch.Tensor) -> torch.Tensor:
    """Return contiguous values between NaN, beginning at a multiple of 16 bytes."""
    count = values.numel()
    memory = torch.full((count + 256,), float("nan"), dtype=values.dtype)
    begin = 64 + (-memory.data_ptr() // values.element_size()) % 16
    view = memory[begin : begin + count].view(values.shape)
    view.copy_(values)
    return view


def beside(memory: torch.Tensor) -> torch.Tensor:
    """Return whether each number of the memory around a view is still NaN."""
    around = memory.isnan()
    around[1:-1, :-8] = True
    return around


def positive(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    # Nothing cancels, so that whatever is left out or counted twice is far outside the bound.
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) + 0.5).to(dtype)


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize(
    ("features", "rank", "outputs", "tokens"),
    [(1030, 3, 130, 17), (2100, 20, 5, 2), (5, 70, 128, 16), (129, 17, 129, 1)],
)
def test_one_adapter(dtype: torch.dtype, features: int, rank: int, outputs: int, tokens: int) -> None:
    values = (
        positive((tokens, features), dtype, 0),
        positive((rank, features), dtype, 1),
        positive((outputs, rank), dtype, 2),
    )
    (_, x), a, b = amid_poison(values[0]), packed_amid_poison(values[1]), packed_amid_poison(values[2])
    memory, out = amid_poison(torch.zeros(tokens, outputs))
    stack = CudaStack([[(a, b, 1.0)]], [0], None, is_lent=True)
    assert stack.table is not None
    assert stack.table[0, :2].tolist() == [a.data_ptr(), b.data_ptr()], "what is read must lie amid poison"
    applying.apply_adapter(x, a, b, scaling=0.5, out=out)
    exact = 0.5 * (values[0].double() @ values[1].double().T) @ values[2].double().T
    assert bool(((out.double() - exact).abs() <= (features + rank + 16) * 2.0**-23 * exact).all())
    assert bool(beside(memory).all())


def test_a_batch_of_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    # What is between the two products is never all written: chunks, slices and ranks differ in size.
    empty = torch.empty

    def poisoned(*shape: Any, **options: Any) -> torch.Tensor:
        return empty(*shape, **options).fill_(float("nan"))

    monkeypatch.setattr(torch, "empty", poisoned)
    widths, features = [3, 130, 16], 1030
    adapters = [
        [
            (positive((rank, features), torch.float32, i), positive((width, rank), torch.float32, 9 + i), 0.5)
            for width in widths
        ]
        for i, rank in enumerate([1, 20, 70])
    ]
    adapters[1][0] = None  # type: ignore[call-overload]
    ids = [0] * 17 + [2] * 3 + [-1] + [1] * 16
    _, x = amid_poison(positive((len(ids), features), torch.float32, 5))
    memory, out = amid_poison(torch.zeros(len(ids), sum(widths)))
    applying.apply_adapters(x, CudaStack(adapters, [0, 1, 2], widths), ids, out=out)
    for token, name in enumerate(ids):
        first = 0
        for width, product in zip(widths, adapters[name], strict=True):
            found = out[token, first : first + width].double()
            first += width
            if name < 0 or product is None:
                assert not found.any()
                continue
            exact = 0.5 * product[1].double() @ (product[0].double() @ x[token].double())
            assert bool(((found - exact).abs() <= (features + 100) * 2.0**-23 * exact).all())
    assert bool(beside(memory).all())


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize(
    ("rows", "columns", "rank"), [(33, 65, 5), (1, 70, 3), (40, 1, 2), (32, 64, 4), (35, 70, 40)]
)
@pytest.mark.parametrize("is_transposed", [False, True])
def test_merging(dtype: torch.dtype, rows: int, columns: int, rank: int, is_transposed: bool) -> None:
    a, b = positive((rank, columns), dtype, 1), positive((rows, rank), dtype, 2)
    weight = positive((rows, columns), dtype, 3)
    memory, view = amid_poison(weight.T if is_transposed else weight)
    given = view.T if is_transposed else view
    (_, a_view), (_, b_view) = amid_poison(a), amid_poison(b)
    merging.merge_weights(given, a_view, b_view, scaling=0.5)
    wanted = lora.merge_weights(weight.clone(), a, b, scaling=0.5)
    if rank <= merging.EXACT_RANK or dtype is torch.float32:
        assert torch.equal(given, wanted)
    else:
        assert torch.allclose(given.float(), wanted.float(), rtol=2.0**-7)
    assert bool(beside(memory).all())


def test_poison_is_seen() -> None:
    memory, view = amid_poison(torch.ones(2, 3))
    assert bool(beside(memory).all())
    memory[2, 4] = 0
    assert not bool(beside(memory).all())
    assert view.shape == (2, 3)
    assert packed_amid_poison(torch.ones(2, 3)).data_ptr() % 16 == 0
    x = SaysCuda.of(torch.ones(1, 3))
    with np.errstate(all="ignore"):
        lora.apply_adapter(x, torch.full((1, 3), float("nan")), torch.ones(1, 1), out=memory[:1, :1].zero_())
    assert bool(memory[0, 0].isnan())
