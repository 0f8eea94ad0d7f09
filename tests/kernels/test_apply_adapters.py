"""Mixed batches of adapters by the kernels, interpreted, against float64 and the CPU's own kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.kernels.devices import OnDevice, SaysCuda
from tests.soak import repeats

from infer_accel import errors, lora
from infer_accel.kernels import _batch
from infer_accel.kernels import apply_adapters as kernels
from infer_accel.kernels._stack import CudaStack

if TYPE_CHECKING:
    from collections.abc import Callable

FORMATS = [torch.float32, torch.float16, torch.bfloat16]
UNITS = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


def normal(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@st.composite
def batches(draw: st.DrawFn) -> dict[str, Any]:
    features = draw(st.sampled_from([1, 17, 128, 1030]))
    slices = draw(st.sampled_from([[5], [130], [3, 40], [16, 1, 9]]))
    formats = [draw(st.sampled_from(FORMATS)) for _ in range(3)]
    is_mixed = draw(st.booleans())
    seed = draw(st.integers(0, 1 << 20))
    adapters: list[Any] = []
    for index in range(draw(st.integers(1, 4))):
        kind = formats[0] if not is_mixed else draw(st.sampled_from(FORMATS))

        def product(outputs: int, place: int, kind: torch.dtype = kind, index: int = index) -> Any:
            rank = draw(st.sampled_from([1, 3, 16, 40, 70]))
            number = seed + 31 * index + place
            return (
                normal((rank, features), kind, number),
                normal((outputs, rank), kind, number + 7),
                0.5 + index,
            )

        form = draw(st.sampled_from(["each", "each", "some", "whole", "none"]))
        if form == "each":
            adapters.append([product(width, place) for place, width in enumerate(slices)])
        elif form == "some":
            adapters.append([product(width, place) if place else None for place, width in enumerate(slices)])
        else:
            adapters.append([product(sum(slices), 9)] if form == "whole" else None)
    names = draw(st.permutations(range(2 * len(adapters))))[: len(adapters)]
    tokens = draw(st.sampled_from([0, 1, 5, 20, 40]))
    return {
        "adapters": adapters,
        "names": names,
        "slices": slices,
        "ids": [draw(st.sampled_from([-1, *names])) for _ in range(tokens)],
        "x": normal((tokens, features), formats[1], seed + 1),
        "out": normal((tokens, sum(slices) + 3), formats[2], seed + 2)[:, : sum(slices)],
    }


def exact(case: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the sums in float64, and how much they may be off before the outputs are rounded."""
    result, bound = case["out"].double(), torch.zeros(case["out"].shape, dtype=torch.float64)
    for token, name in enumerate(case["ids"]):
        entry = None if name == -1 else case["adapters"][case["names"].index(name)]
        first = 0
        for index, width in enumerate(case["slices"]):
            columns = slice(first, first + width)
            first += width
            if entry is None or (len(entry) > 1 and entry[index] is None):
                continue
            is_whole = len(entry) == 1 < len(case["slices"])
            product = entry[0] if is_whole else entry[index]
            if product is None:
                continue
            a, b, scaling = product
            b = b[columns] if is_whole else b
            x = case["x"][token].double()
            result[token, columns] += scaling * (b.double() @ (a.double() @ x))
            sizes = abs(scaling) * (b.double().abs() @ (a.double().abs() @ x.abs()))
            bound[token, columns] = (len(x) + a.shape[0] + 16) * 2.0**-23 * sizes
    return result, bound


@given(batches(), st.booleans())
@settings(max_examples=repeats(30, 1000))
def test_results_stay_within_the_bound(case: dict[str, Any], on_device: bool) -> None:
    stack = CudaStack([entry or [] for entry in case["adapters"]], case["names"], case["slices"])
    wanted, bound = exact(case)
    ids: Any = torch.tensor(case["ids"], dtype=torch.int32)
    before, memory = case["out"].clone(), case["out"]
    whole = torch.empty(0, dtype=memory.dtype).set_(memory.untyped_storage()).view(-1, memory.stride(0) or 1)
    beside = whole[:, memory.shape[1] :].clone()
    kernels.apply_adapters(case["x"], stack, SaysCuda.of(ids) if on_device else case["ids"], out=memory)
    bound += (UNITS[memory.dtype] + 2.0**-22) * wanted.abs()
    assert bool(((memory.double() - wanted).abs() <= bound).all())
    none = [token for token, name in enumerate(case["ids"]) if name == -1]
    assert torch.equal(memory[none], before[none])
    assert torch.equal(whole[:, memory.shape[1] :], beside), "what stands beside the outputs was written"


@given(st.lists(st.integers(-1, 4), max_size=90), st.integers(1, 5))
@example([0] * 40 + [1, -1, 0] * 17, 3)
@settings(max_examples=repeats(150, 3000))
def test_work_items_cover_each_token_once(ids: list[int], adapters: int) -> None:
    ids = [name if name < adapters else -1 for name in ids]
    names = [2 * slot for slot in range(adapters)]
    wide = np.array([2 * name if name >= 0 else -1 for name in ids], np.int64)
    order, work = _batch.items_on_host(wide, names)
    device_order, device_work = _batch.items_on_device(torch.from_numpy(wide), torch.tensor(names))
    assert len(device_work) == _batch.most_items(len(ids), adapters)
    for tokens, items in ((order, work), (device_order.numpy(), device_work.numpy())):
        covered = []
        for slot, start, length in items.tolist():
            if slot < 0:
                continue
            assert 1 <= length <= _batch.TOKENS
            part = tokens[start : start + length].tolist()
            assert len(part) == length
            assert all(wide[token] == names[slot] for token in part)
            covered += part
        assert sorted(covered) == [token for token, name in enumerate(ids) if name >= 0]
    # A chunk that is not full is the last of its adapter.
    assert len(work) == sum(-(-ids.count(name) // _batch.TOKENS) for name in set(ids) - {-1})


def test_ids_on_the_device_that_are_unknown_count_as_none() -> None:
    stack = CudaStack([[(torch.ones(1, 2), torch.ones(3, 1), 1.0)]], [4], None)
    out = torch.zeros(4, 3)
    ids = torch.tensor([4, 3, 5, -7])
    kernels.apply_adapters(torch.ones(4, 2), stack, SaysCuda.of(ids), out=out)
    assert out[:, 0].tolist() == [2, 0, 0, 0]


def test_a_token_does_not_depend_on_its_batch() -> None:
    x, base = normal((50, 1100), torch.float32, 0), normal((50, 70), torch.float32, 1)
    products = [
        (normal((8, 1100), torch.float32, 5 + i), normal((70, 8), torch.float32, 9 + i), 0.7)
        for i in range(2)
    ]
    stack = CudaStack([[product] for product in products], [0, 1], None)
    ids = [(token * 7) % 3 - 1 for token in range(50)]
    together = base.clone()
    kernels.apply_adapters(x, stack, ids, out=together)
    for chosen in ([3], [49, 3, 20], list(range(0, 50, 2))):
        some = base[chosen].clone()
        kernels.apply_adapters(x[chosen], stack, [ids[token] for token in chosen], out=some)
        assert torch.allclose(some, together[chosen], rtol=1e-5, atol=1e-4)


def test_a_nan_stays_with_its_token() -> None:
    a = torch.ones(2, 40)
    poisoned = a.clone()
    poisoned[0, 3] = float("nan")
    b = torch.ones(20, 2)
    stack = CudaStack([[(a, b, 1.0)], [(poisoned, b, 1.0)]], [0, 1], None)
    x = torch.ones(6, 40)
    x[4, 39] = float("inf")
    out = torch.zeros(6, 20)
    with np.errstate(all="ignore"):
        kernels.apply_adapters(x, stack, [0, 1, 0, -1, 0, 0], out=out)
    assert [bool(torch.isfinite(row).all()) for row in out] == [True, False, True, True, False, True]


def test_the_face_makes_stacks_of_the_gpu() -> None:
    one = SaysCuda.of(torch.ones(1, 4)), torch.ones(6, 1)
    two = torch.ones(8, 4, dtype=torch.float16), torch.ones(6, 8, dtype=torch.float16), 0.5
    stack = lora.AdapterStack([one, two, None], ids=[5, 2, 9])
    assert (stack.ids, stack.ranks, stack.in_features, stack.slices) == ((2, 5, 9), (8, 1, 0), 4, (6,))
    assert len(stack) == 3
    assert stack.nbytes == 4 * (10 + 80)
    assert "3 adapters" in repr(stack)
    x, out = SaysCuda.of(torch.ones(3, 4)), torch.zeros(3, 6)
    one[0].fill_(9)  # a stack has copies of its own
    assert lora.apply_adapters(x, stack, [2, -1, 5], out=out) is out
    assert out[:, 0].tolist() == [16, 0, 4]
    with pytest.raises(errors.DeviceError):
        lora.apply_adapters(torch.ones(3, 4), stack, [2, -1, 5], out=out)
    with pytest.raises(errors.DeviceError):
        lora.apply_adapters(x, lora.AdapterStack([(torch.ones(1, 4), torch.ones(6, 1))]), [0, 0, 0], out=out)


A, B = torch.ones(2, 4), torch.ones(6, 2)
BAD_STACKS: list[tuple[str, tuple[Any, ...], type[errors.InferAccelError], str]] = [
    ("rank", ([[(A, torch.ones(6, 3), 1.0)]], [0], None), errors.ShapeError, "shape.mismatch"),
    ("features", ([[(A, B, 1.0)], [(torch.ones(2, 5), B, 1.0)]], [0, 1], None), errors.ShapeError, "shape.stack"),
    ("outputs", ([[(A, B, 1.0)], [(A, torch.ones(5, 2), 1.0)]], [0, 1], None), errors.ShapeError, "shape.slices"),
    ("slices", ([[(A, B, 1.0), None]], [0], [6, 1, 2]), errors.ShapeError, "shape.slices"),
    ("whole", ([[(A, B, 1.0)]], [0], [6, 1]), errors.ShapeError, "shape.slices"),
    ("id twice", ([[(A, B, 1.0)]] * 2, [3, 3], None), errors.IdError, "id.repeated_adapter"),
    ("id below zero", ([[(A, B, 1.0)]], [-1], None), errors.IdError, "id.adapter"),
    ("scaling", ([[(A, B, float("inf"))]], [0], None), errors.ArgumentError, "argument.scaling"),
    ("format", ([[(A.int(), B, 1.0)]], [0], None), errors.DTypeError, "dtype.unsupported"),
    ("vector", ([[(A[0], B, 1.0)]], [0], None), errors.ShapeError, "shape.matrix"),
    ("another GPU", ([[(OnDevice.of(2, 4), B, 1.0)]], [0], None), errors.DeviceError, "device.mixed"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("given_", "kind", "code"), [case[1:] for case in BAD_STACKS], ids=[c[0] for c in BAD_STACKS]
)
def test_bad_stacks_are_refused(
    given_: tuple[Any, ...], kind: type[errors.InferAccelError], code: str
) -> None:
    with pytest.raises(kind) as caught:
        CudaStack(*given_)
    assert caught.value.code == code


X, OUT, IDS = torch.ones(3, 4), torch.zeros(3, 6), [0, -1, 0]
BAD_CALLS: list[tuple[str, dict[str, Any], type[errors.InferAccelError], str]] = [
    ("tokens", {"out": torch.zeros(2, 6)}, errors.ShapeError, "shape.mismatch"),
    ("features", {"x": torch.ones(3, 5)}, errors.ShapeError, "shape.stack"),
    ("outputs", {"out": torch.zeros(3, 7)}, errors.ShapeError, "shape.stack"),
    ("ids", {"ids": [0]}, errors.ShapeError, "shape.adapter_ids"),
    ("unknown id", {"ids": [0, 1, 0]}, errors.IdError, "id.adapter"),
    ("id below −1", {"ids": [0, -2, 0]}, errors.IdError, "id.adapter"),
    ("floats", {"ids": [0.0, 0.0, 0.0]}, errors.DTypeError, "dtype.ids"),
    ("floats on the GPU", {"ids": SaysCuda.of(torch.zeros(3))}, errors.DTypeError, "dtype.ids"),
    ("ids on the GPU", {"ids": SaysCuda.of(torch.zeros(2, dtype=torch.int32))}, errors.ShapeError, "shape.adapter_ids"),
    ("ids elsewhere", {"ids": OnDevice.of(3, dtype=torch.int64)}, errors.DeviceError, "device.mixed"),
    ("x elsewhere", {"x": OnDevice.of(3, 4)}, errors.DeviceError, "device.mixed"),
    ("columns", {"x": torch.ones(4, 3).T}, errors.LayoutError, "layout.tokens"),
    ("columns of out", {"out": torch.zeros(6, 3).T}, errors.LayoutError, "layout.tokens"),
    ("expanded out", {"out": torch.zeros(1, 6).expand(3, 6)}, errors.LayoutError, "layout.self_overlap"),
    ("integers", {"x": X.int()}, errors.DTypeError, "dtype.unsupported"),
    ("gradient", {"out": torch.zeros(3, 6, requires_grad=True)}, errors.GradientError, "gradient.recorded"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("call", "kind", "code"), [case[1:] for case in BAD_CALLS], ids=[case[0] for case in BAD_CALLS]
)
def test_bad_calls_are_refused(
    call: dict[str, Any], kind: type[errors.InferAccelError], code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def launched(*_: Any, **__: Any) -> None:
        raise AssertionError("a kernel was launched")

    monkeypatch.setattr(kernels, "_launch", launched)
    stack = CudaStack([[(A, B, 1.0)]], [0], None)
    given = {"x": X, "ids": IDS, "out": OUT} | call
    with pytest.raises(kind) as caught:
        kernels.apply_adapters(given["x"], stack, given["ids"], out=given["out"])
    assert caught.value.code == code
    assert not OUT.any()


def test_shared_memory_is_refused() -> None:
    memory = torch.zeros(3, 9)
    stack = CudaStack([[(A, B, 1.0)]], [0], None)
    call: Callable[[], None] = lambda: kernels.apply_adapters(memory[:, 5:], stack, IDS, out=memory[:, :6])
    with pytest.raises(errors.OverlapError) as caught:
        call()
    assert caught.value.code == "overlap.adapter"


@given(
    st.sampled_from([(1, 1), (17, 5), (130, 140), (1030, 9)]),
    st.sampled_from([1, 3, 16, 40]),
    st.sampled_from([0, 1, 5, 20]),
    st.tuples(*[st.sampled_from(FORMATS)] * 4),
    st.sampled_from(["as it is", "columns", "beside a word"]),
)
@settings(max_examples=repeats(12, 500))
def test_one_adapter_stays_within_the_bound(
    sides: tuple[int, int], rank: int, tokens: int, formats: tuple[torch.dtype, ...], layout: str
) -> None:
    features, outputs = sides
    x, a, b, out = (
        normal((tokens, features), formats[0], 0),
        normal((rank, features), formats[1], 1),
        normal((outputs, rank), formats[2], 2),
        normal((tokens, outputs), formats[3], 3),
    )
    if layout == "columns":
        a, b = a.T.contiguous().T, b.T.contiguous().T
    elif layout == "beside a word":  # where vectors of 16 bytes cannot be read
        a = torch.cat([a.new_zeros(1), a.reshape(-1)])[1:].view(a.shape)
    wanted = out.double() + 0.7 * ((x.double() @ a.double().T) @ b.double().T)
    sizes = 0.7 * ((x.double().abs() @ a.double().abs().T) @ b.double().abs().T)
    before = [tensor.clone() for tensor in (x, a, b)]
    assert lora.apply_adapter(SaysCuda.of(x), a, b, scaling=0.7, out=out) is out
    bound = (features + rank + 16) * 2.0**-23 * sizes + (UNITS[out.dtype] + 2.0**-22) * wanted.abs()
    assert bool(((out.double() - wanted).abs() <= bound).all())
    assert all(torch.equal(*pair) for pair in zip(before, (x, a, b), strict=True))


def test_one_adapter_is_read_where_it_lies() -> None:
    a, b = normal((2, 8), torch.float32, 0), normal((6, 2), torch.float32, 1)

    def address(lent: torch.Tensor) -> int:
        stack = CudaStack([[(lent, b, 1.0)]], [0], None, is_lent=True)
        assert stack.table is not None
        return int(stack.table[0, 0].item())

    assert address(a) == a.data_ptr()
    # Copied are matrices that kernels could not read: other steps, an odd beginning, unlike formats.
    columns = a.T.contiguous().T
    odd = torch.cat([a.new_zeros(1), a.reshape(-1)])[1:].view(a.shape)
    for lent in (columns, odd, a.half()):
        assert address(lent) != lent.data_ptr()
        assert address(lent) % 16 == 0


BAD_SINGLE_CALLS: list[tuple[str, dict[str, Any], type[errors.InferAccelError], str]] = [
    ("rank", {"lora_B": torch.ones(6, 3)}, errors.ShapeError, "shape.mismatch"),
    ("features", {"x": torch.ones(3, 5)}, errors.ShapeError, "shape.mismatch"),
    ("tokens", {"x": torch.ones(2, 4)}, errors.ShapeError, "shape.mismatch"),
    ("outputs", {"out": torch.zeros(3, 7)}, errors.ShapeError, "shape.mismatch"),
    ("vector", {"lora_A": A[0]}, errors.ShapeError, "shape.matrix"),
    ("columns", {"x": torch.ones(4, 3).T}, errors.LayoutError, "layout.tokens"),
    ("expanded out", {"out": torch.zeros(1, 6).expand(3, 6)}, errors.LayoutError, "layout.self_overlap"),
    ("another GPU", {"lora_A": OnDevice.of(2, 4)}, errors.DeviceError, "device.mixed"),
    ("out elsewhere", {"out": OnDevice.of(3, 6)}, errors.DeviceError, "device.mixed"),
    ("integers", {"lora_B": B.int()}, errors.DTypeError, "dtype.unsupported"),
    ("an array of strings", {"x": np.array([["a"]])}, errors.DTypeError, "dtype.unknown"),
    ("scaling", {"scaling": float("nan")}, errors.ArgumentError, "argument.scaling"),
    ("gradient", {"lora_A": torch.ones(2, 4, requires_grad=True)}, errors.GradientError, "gradient.recorded"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("call", "kind", "code"),
    [case[1:] for case in BAD_SINGLE_CALLS],
    ids=[case[0] for case in BAD_SINGLE_CALLS],
)
def test_bad_calls_with_one_adapter_are_refused(
    call: dict[str, Any], kind: type[errors.InferAccelError], code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def launched(*_: Any, **__: Any) -> None:
        raise AssertionError("a kernel was launched")

    monkeypatch.setattr(kernels, "_launch", launched)
    given = {"x": X, "lora_A": A, "lora_B": B, "out": OUT, "scaling": 1.0} | call
    with pytest.raises(kind) as caught:
        kernels.apply_adapter(**given)
    assert caught.value.code == code
    assert not OUT.any()


def test_memory_that_one_adapter_shares_is_refused() -> None:
    memory = torch.ones(6, 6)
    calls: list[Callable[[], None]] = [
        lambda: kernels.apply_adapter(X, A, memory[:, :2], scaling=1.0, out=memory[:3]),
        lambda: kernels.apply_adapter(X, memory[:2, :4], B, scaling=1.0, out=memory[1:4]),
    ]
    for call in calls:
        with pytest.raises(errors.OverlapError) as caught:
            call()
        assert caught.value.code == "overlap.adapter"
