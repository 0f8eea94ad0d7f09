"""Page copies by the kernel, interpreted, against numpy and against the CPU's own."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.kernels.devices import SaysCuda
from tests.soak import repeats

from infer_accel import errors, kvcache
from infer_accel.kernels import _device
from infer_accel.kernels import page_copy as kernels
from infer_accel.kernels._device import Launch
from infer_accel.kernels._handle import PageCopy

if TYPE_CHECKING:
    from collections.abc import Callable

FORMATS = [torch.uint8, torch.int16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn]


def filled(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Return a tensor of random bytes, at an offset in a larger one."""
    count = int(np.prod(shape)) * dtype.itemsize
    data = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, count + 48, dtype=np.uint8))
    # Where memory begins decides how wide the words of a copy may be.
    begin = -data.data_ptr() % 16 + dtype.itemsize * (seed % 3)
    return data[begin : begin + count].view(dtype).view(shape)


@st.composite
def layouts(
    draw: st.DrawFn, shape: tuple[int, ...], dtype: torch.dtype, order: list[int], seed: int
) -> torch.Tensor:
    """Return a tensor of this shape: axes in this order in memory, with gaps between the outer ones."""
    gaps = [draw(st.sampled_from([0, 0, 1, 3])) for _ in shape]
    store = [shape[axis] + (gaps[axis] if place < len(order) - 1 else 0) for place, axis in enumerate(order)]
    base = filled(tuple(store), dtype, seed)
    view = base.permute(*np.argsort(order).tolist()) if order else base
    return view[tuple(slice(0, size) for size in shape)]


@st.composite
def copies(draw: st.DrawFn) -> dict[str, Any]:
    page = draw(st.lists(st.sampled_from([1, 2, 3, 5]), min_size=1, max_size=2))
    inner = draw(st.sampled_from([3, 16, 64, 600]))
    axis = draw(st.integers(0, len(page)))
    pages = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    shapes = [(*page[:axis], count, *page[axis:], inner) for count in pages]
    dtype = draw(st.sampled_from(FORMATS))
    orders = [[*draw(st.permutations(range(len(page) + 1))), len(page) + 1] for _ in range(2)]
    targets = draw(st.permutations(range(pages[1])))[: draw(st.integers(0, pages[1]))]
    layers = draw(st.integers(1, 2))
    return {
        "sources": [draw(layouts(shapes[0], dtype, orders[0], layer)) for layer in range(layers)],
        "targets": [draw(layouts(shapes[1], dtype, orders[1], 50 + layer)) for layer in range(layers)],
        "pairs": [[draw(st.integers(0, pages[0] - 1)), target] for target in targets],
        "axis": draw(st.sampled_from([axis, axis - len(page) - 2])),
    }


def whole(tensor: torch.Tensor) -> np.ndarray:
    """Return all bytes of the memory that a tensor is a part of."""
    storage = tensor.untyped_storage()
    array: np.ndarray = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()
    return array


@given(copies(), st.sampled_from(["list", "tensor", "numpy", "device"]))
@settings(max_examples=repeats(40, 1000))
def test_equals_the_copy_of_the_cpu(case: dict[str, Any], kind: str) -> None:
    sources, targets, pairs, axis = (case[name] for name in ("sources", "targets", "pairs", "axis"))
    before = [whole(target).copy() for target in targets]
    kvcache.page_copy(sources, targets, pairs, axis=axis)
    expected = [whole(target).copy() for target in targets]
    for target, old in zip(targets, before, strict=True):
        whole(target)[:] = old
    table = np.array(pairs, np.int32).reshape(-1, 2)
    mapping = {
        "list": pairs,
        "tensor": torch.from_numpy(table),
        "numpy": table.astype(np.int64),
        "device": SaysCuda.of(torch.from_numpy(table)),
    }[kind]
    handle = kernels.page_copy(sources, targets, mapping, axis=axis)
    handle.synchronize()
    # All memory around the pages counts: what lies in gaps and behind the end must be as before.
    for target, wanted in zip(targets, expected, strict=True):
        np.testing.assert_array_equal(whole(target), wanted)


@given(st.integers(1, 6), st.sampled_from([1, 5, 32, 3000]), st.booleans(), st.data())
@settings(max_examples=repeats(15, 300))
def test_gather_and_scatter(pages: int, page: int, on_device: bool, data: st.DataObject) -> None:
    cache = filled((pages, page), torch.uint8, 1)
    ids = data.draw(st.lists(st.integers(0, pages - 1), max_size=7))
    unique = list(dict.fromkeys(ids))

    def passed(values: list[int]) -> Any:
        return SaysCuda.of(torch.tensor(values, dtype=torch.int64)) if on_device else values

    packed = torch.zeros(len(ids), page, dtype=torch.uint8)
    kernels.page_gather([cache], passed(ids), [packed], axis=0).synchronize()
    assert torch.equal(packed, cache[ids])
    back = torch.zeros_like(cache)
    kernels.page_scatter([cache[unique]], [back], passed(unique), axis=0).synchronize()
    wanted = torch.zeros_like(cache)
    wanted[unique] = cache[unique]
    assert torch.equal(back, wanted)


def test_layers_of_unequal_pages_and_many_programs() -> None:
    sources = [filled((9, 4096), torch.float32, 0), filled((9, 3), torch.float32, 3)]
    targets = [torch.zeros(12, 4096), torch.zeros(12, 3)]
    pairs = [[place, 11 - place] for place in range(9)]
    kernels.page_copy(sources, targets, pairs, axis=0)
    for source, target in zip(sources, targets, strict=True):
        np.testing.assert_array_equal(
            target[3:].flip(0).numpy().view(np.uint32), source.numpy().view(np.uint32)
        )
        assert not target[:3].any()


def test_pages_of_one_array() -> None:
    cache = torch.arange(40).reshape(8, 5)
    kernels.page_copy([cache], [cache], [[0, 4], [1, 5], [0, 6]], axis=0)
    assert (cache[[4, 5, 6]] == cache[[0, 1, 0]]).all()
    layers = torch.arange(48).reshape(6, 2, 4)  # blocks of two interleaved layers
    views = [layers[:, 0], layers[:, 1]]
    kernels.page_copy(views, views, [[0, 3], [1, 2]], axis=0)
    assert (layers[[3, 2]] == layers[[0, 1]]).all()


OVERLAPS: list[tuple[str, Any]] = [
    ("source is target", lambda a: (a, a, [[2, 2]])),
    ("chain", lambda a: (a, a, [[0, 1], [1, 2]])),
    ("swap", lambda a: (a, a, [[0, 1], [1, 0]])),
    ("shifted view", lambda a: (a[:-1], a[1:], [[1, 0]])),
    ("half a page", lambda a: (a.reshape(16, 2), a.reshape(-1)[2:30].reshape(14, 2), [[1, 0]])),
    ("two layers, one target", lambda a: ([a[:2], a[2:4]], [a[4:6], a[4:6]], [[0, 0]])),
    ("a layer reads what another writes", lambda a: ([a[:2], a[4:6]], [a[4:6], a[6:8]], [[0, 0]])),
]


@pytest.mark.parametrize(("name", "make"), OVERLAPS, ids=[name for name, _ in OVERLAPS])
def test_overlaps_are_refused(name: str, make: Any) -> None:
    array = torch.arange(32).reshape(8, 4)
    source, target, pairs = make(array)
    before = array.clone()
    layers: Any = [side if isinstance(side, list) else [side] for side in (source, target)]
    with pytest.raises(errors.OverlapError):
        kernels.page_copy(layers[0], layers[1], pairs, axis=0)
    with pytest.raises(errors.OverlapError):
        kvcache.page_copy(layers[0], layers[1], pairs)
    assert torch.equal(array, before)


@given(st.data())
@settings(max_examples=repeats(40, 1000))
def test_overlap_is_judged_as_on_the_cpu(data: st.DataObject) -> None:
    base = np.arange(64, dtype=np.uint8)
    sides: Any = []
    for _ in range(2):
        rows, step, width = (
            data.draw(st.integers(1, 4)),
            data.draw(st.integers(4, 9)),
            data.draw(st.just(3)),
        )
        layers = []
        for _ in range(2):
            begin = data.draw(st.integers(0, 64 - (rows - 1) * step - width))
            layers.append(np.lib.stride_tricks.as_strided(base[begin:], (rows, width), (step, 1)))
        sides.append(layers)
    rows = [len(side[0]) for side in sides]
    targets = data.draw(st.permutations(range(rows[1])))[: data.draw(st.integers(1, rows[1]))]
    pairs = [[data.draw(st.integers(0, rows[0] - 1)), target] for target in targets]
    tensors = [[torch.from_numpy(array) for array in side] for side in sides]
    before, outcomes = base.copy(), []
    ways: list[Callable[[], object]] = [
        lambda: kvcache.page_copy(sides[0], sides[1], pairs),
        lambda: kernels.page_copy(tensors[0], tensors[1], pairs, axis=0),
    ]
    for copy in ways:
        base[:] = before
        try:
            copy()
        except errors.OverlapError:
            outcomes.append("refused")
        else:
            outcomes.append(base.tobytes().hex())
    assert outcomes[0] == outcomes[1]


def test_ids_on_the_device_are_checked_there() -> None:
    cache, out = filled((4, 24), torch.uint8, 0), torch.full((4, 24), 7, dtype=torch.uint8)
    ids = torch.tensor([[0, 3], [4, 1], [-1, 2], [1, 0]])
    handle = kernels.page_copy([cache], [out], SaysCuda.of(ids), axis=0)
    with pytest.raises(errors.IdError, match=r"row [12] of ids") as caught:
        handle.synchronize()
    assert caught.value.code == "id.page"
    assert torch.equal(out[[3, 0]], cache[[0, 1]])
    assert (out[[1, 2]] == 7).all()
    for bad in ([[0, 4]], [[0, -1]], [[1 << 40, 0]]):
        with pytest.raises(errors.IdError):
            kernels.page_copy([cache], [out], SaysCuda.of(torch.tensor(bad)), axis=0).synchronize()
    kernels.page_copy([cache], [out], SaysCuda.of(torch.tensor([[0, 0]])), axis=0).synchronize()


def test_the_face_turns_off_to_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = SaysCuda.of(filled((4, 24), torch.uint8, 0))
    out = torch.zeros(2, 24, dtype=torch.uint8)
    handle = kvcache.page_gather(cache, [3, 0], out)
    assert handle is not None
    handle.wait()
    assert torch.equal(out, cache[[3, 0]])
    assert kvcache.page_copy([out], [cache], [[0, 1]]) is not None
    assert kvcache.page_scatter([out[:1]], [cache], [2]) is not None
    assert torch.equal(cache[[1, 2]], out[[0, 0]])


def test_tables_are_uploaded_once_and_never_in_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    launch, table = Launch(torch.device("cpu")), np.array([[1, 2, 3, 4]], np.int64)
    first = launch.constant(table)
    assert launch.constant(table.copy()) is first
    captured = Launch(torch.device("cpu"), captured=True)
    assert captured.constant(table) is first
    with pytest.raises(errors.ArgumentError) as caught:
        captured.constant(table + 1)
    assert caught.value.code == "argument.capture"
    monkeypatch.setattr(_device, "_MOST_CONSTANTS", 50)
    for number in range(80):  # a graph's table stays, whatever comes
        launch.constant(table + number)
    assert launch.constant(table) is first


@pytest.mark.parametrize("is_capturing", [False, True])
def test_a_captured_copy_is_waited_for_where_that_means_something(
    is_capturing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[object] = []
    stream = SimpleNamespace(wait_event=waited.append)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _=None: stream)
    monkeypatch.setattr(torch.cuda, "stream", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: waited.append("host"))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: is_capturing)
    event: Any = object()
    handle = PageCopy(Launch(torch.device("cuda", 0), stream, captured=True), event, None, [])
    allowed, refused = (
        (handle.wait, handle.synchronize) if is_capturing else (handle.synchronize, handle.wait)
    )
    with pytest.raises(errors.ArgumentError) as caught:
        refused()
    assert caught.value.code == "argument.capture"
    assert waited == []
    allowed()
    assert waited == [event if is_capturing else "host"]


def test_pages_that_only_touch_are_copied() -> None:
    array = torch.arange(32).reshape(8, 4)
    kernels.page_copy([array[:4]], [array[4:]], [[3, 0]], axis=0)
    assert torch.equal(array[4], array[3])
    # Runs of two lengths, of which none meets another although all of their ranges do.
    base = torch.arange(128, dtype=torch.uint8)
    short, long, to_short, to_long = (
        base[first:].as_strided((3, width), (32, 1), first)
        for first, width in ((0, 2), (4, 8), (2, 2), (12, 8))
    )
    kernels.page_copy([short, long], [to_short, to_long], [[0, 1], [1, 2]], axis=0)
    assert torch.equal(to_short[1:], short[:2])
    assert torch.equal(to_long[1:], long[:2])


def test_layers_that_lie_in_each_other_are_judged_together() -> None:
    array = torch.arange(24).reshape(6, 4)
    layers, before = [array[:4], array[2:]], array.clone()
    with pytest.raises(errors.OverlapError):
        kernels.page_copy(layers, layers, [[0, 2]], axis=0)
    assert torch.equal(array, before)
