"""Page copies against numpy, on layouts of every kind, and hostile calls."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from infer_accel import errors, kvcache, reference
from infer_accel._backend import native

if TYPE_CHECKING:
    from collections.abc import Callable

IMPLEMENTATIONS = [native().kvcache, reference.kvcache]
DTYPES = ["u1", "i2", "f4", "f8", "?"]


@st.composite
def strided(draw: st.DrawFn, shape: tuple[int, ...], dtype: str, seed: int) -> np.ndarray:
    """Return an array of this shape whose axes lie in memory in any order, direction and with any gaps."""
    order = draw(st.permutations(range(len(shape))))
    steps = draw(st.lists(st.sampled_from([1, 1, 1, 2, -1, -2]), min_size=len(shape), max_size=len(shape)))
    store = [shape[axis] * abs(steps[axis]) for axis in order]
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 2 if dtype == "?" else 100, size=store).astype(dtype)
    array = base.transpose(np.argsort(order)) if order else base
    array = array[tuple(slice(None, None, step) for step in steps)]
    assert array.shape == shape
    return array


@st.composite
def copies(draw: st.DrawFn) -> dict[str, Any]:
    page = draw(st.lists(st.sampled_from([1, 2, 3, 5, 17, 0]), max_size=3))
    axis = draw(st.integers(0, len(page)))
    pages = draw(st.tuples(st.integers(1, 7), st.integers(1, 7)))
    dtype = draw(st.sampled_from(DTYPES))
    layers = draw(st.integers(1, 3))
    shapes = [(*page[:axis], count, *page[axis:]) for count in pages]
    targets = draw(st.permutations(range(pages[1])))[: draw(st.integers(0, pages[1]))]
    return {
        "sources": [draw(strided(shapes[0], dtype, layer)) for layer in range(layers)],
        "targets": [draw(strided(shapes[1], dtype, 50 + layer)) for layer in range(layers)],
        "mapping": [[draw(st.integers(0, pages[0] - 1)), target] for target in targets],
        "axis": draw(st.sampled_from([axis, axis - len(page) - 1])),
    }


@given(copies(), st.sampled_from([None, 1, 2, 9]))
@settings(max_examples=400, deadline=None)
def test_equals_numpy(case: dict[str, Any], num_threads: int | None) -> None:
    sources, targets, mapping, axis = case["sources"], case["targets"], case["mapping"], case["axis"]
    expected = [target.copy() for target in targets]
    specified = [target.copy() for target in targets]
    for source, target in zip(sources, expected, strict=True):
        for fro, to in mapping:
            np.moveaxis(target, axis, 0)[to] = np.moveaxis(source, axis, 0)[fro]
    whole = [target.base.copy() if target.base is not None else None for target in targets]
    kvcache.page_copy(sources, targets, mapping, axis=axis, num_threads=num_threads)
    reference.kvcache.page_copy(sources, specified, mapping, axis=axis)
    for target, other, wanted in zip(targets, specified, expected, strict=True):
        np.testing.assert_array_equal(target, wanted)
        np.testing.assert_array_equal(other, wanted)
    # What lies in the gaps is not touched: the old memory with the expected pages is the new memory.
    for target, before, wanted in zip(targets, whole, expected, strict=True):
        if before is not None and target.size:
            view = np.ndarray(target.shape, target.dtype, before, offset_in(target), target.strides)
            view[...] = wanted
            np.testing.assert_array_equal(target.base, before)


def offset_in(array: np.ndarray) -> int:
    """How many bytes behind the start of its base's memory an array begins."""
    base = array.base
    assert isinstance(base, np.ndarray)
    return int(array.__array_interface__["data"][0] - base.__array_interface__["data"][0])


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2, torch.int8]
)
@pytest.mark.parametrize("axis", [0, 1])
def test_torch_tensors(dtype: torch.dtype, axis: int) -> None:
    shape = (6, 2, 16, 8) if axis == 0 else (2, 6, 16, 8)
    bits = torch.int16 if dtype.itemsize == 2 else torch.uint8
    source = torch.randint(0, 120, shape).to(bits).view(dtype)
    target = torch.zeros(shape, dtype=bits).view(dtype)
    mapping = torch.tensor([[5, 0], [1, 4], [1, 2]], dtype=torch.int32)
    kvcache.page_copy(source, target, mapping, axis=axis)
    wanted = torch.zeros(shape, dtype=bits)
    wanted.movedim(axis, 0)[[0, 4, 2]] = source.view(bits).movedim(axis, 0)[[5, 1, 1]]
    assert torch.equal(target.view(bits), wanted)
    specified = torch.zeros(shape, dtype=bits).view(dtype)
    reference.kvcache.page_copy([source], [specified], mapping, axis=axis)
    assert torch.equal(specified.view(bits), wanted)


def test_arrays_of_both_kinds_meet() -> None:
    source = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    target = np.zeros((3, 6), np.float32)
    kvcache.page_copy(source, target, [[3, 0]])
    assert (target[0] == source[3].numpy()).all()
    wide = np.arange(8).astype(ml_dtypes.bfloat16).reshape(4, 2)
    kept = torch.zeros(4, 2, dtype=torch.bfloat16)
    kvcache.page_copy(wide, kept, [[i, i] for i in range(4)])
    assert kept.flatten().tolist() == list(range(8))


@given(st.integers(1, 6), st.integers(1, 8), st.data())
@settings(deadline=None)
def test_gather_and_scatter(page: int, pages: int, data: st.DataObject) -> None:
    cache = np.random.default_rng(0).integers(0, 255, (pages, page)).astype(np.uint8)
    ids = data.draw(st.lists(st.integers(0, pages - 1), max_size=10))
    for implementation in IMPLEMENTATIONS:
        packed = np.zeros((len(ids), page), np.uint8)
        implementation.page_gather([cache], ids, [packed])
        np.testing.assert_array_equal(packed, cache[ids])
        unique = list(dict.fromkeys(ids))
        back = np.zeros_like(cache)
        implementation.page_scatter([cache[unique]], [back], unique)
        wanted = np.zeros_like(cache)
        wanted[unique] = cache[unique]
        np.testing.assert_array_equal(back, wanted)


def test_gather_to_the_face() -> None:
    cache = [np.arange(12).reshape(4, 3), np.arange(12).reshape(4, 3) + 100]
    packed = [np.zeros((2, 3), int), np.zeros((2, 3), int)]
    kvcache.page_gather(cache, [3, 1], packed)
    assert packed[1].tolist() == [[109, 110, 111], [103, 104, 105]]
    kvcache.page_scatter(packed, cache, np.array([0, 1]))
    assert cache[0].tolist() == [[9, 10, 11], [3, 4, 5], [6, 7, 8], [9, 10, 11]]


def test_pages_of_one_array() -> None:
    cache = np.arange(40).reshape(8, 5)
    kvcache.page_copy(cache, cache, [[0, 4], [1, 5], [0, 6]])
    assert (cache[[4, 5, 6]] == cache[[0, 1, 0]]).all()
    layers = np.arange(2 * 6 * 4).reshape(6, 2, 4)  # blocks of two interleaved layers
    views = [layers[:, 0], layers[:, 1]]
    kvcache.page_copy(views, views, [[0, 3], [1, 2]])
    assert (layers[[3, 2]] == layers[[0, 1]]).all()
    halves = np.arange(16).reshape(8, 2)
    kvcache.page_copy(halves[:4], halves[4:], [[0, 3], [3, 0]])
    assert halves[7].tolist() == [0, 1]


OVERLAPS: list[tuple[str, Any]] = [
    ("source is target", lambda a: (a, a, [[2, 2]])),
    ("chain", lambda a: (a, a, [[0, 1], [1, 2]])),
    ("swap", lambda a: (a, a, [[0, 1], [1, 0]])),
    ("shifted view", lambda a: (a[:-1], a[1:], [[1, 0]])),
    ("half a page", lambda a: (a.reshape(16, 2), a.reshape(8, 4).reshape(-1)[2:30].reshape(14, 2), [[1, 0]])),
    ("backwards", lambda a: (a, a[::-1], [[0, 7]])),
    ("two layers, one target", lambda a: ([a[:2], a[2:4]], [a[4:6], a[4:6]], [[0, 0]])),
    ("a layer reads what another writes", lambda a: ([a[:2], a[4:6]], [a[4:6], a[6:8]], [[0, 0]])),
]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=["native", "reference"])
@pytest.mark.parametrize("name", ["float32", "bfloat16", "float8_e4m3fn", "int64", "bool"])
@pytest.mark.parametrize("to_torch", [False, True])
def test_between_libraries(implementation: Any, name: str, to_torch: bool) -> None:
    """A format is the same whichever library has it, and another one is another although it is as wide."""
    kind = np.dtype(getattr(ml_dtypes, name, name))
    array = np.ones((3, 4), kind)[::-1]
    tensor = torch.zeros(3, 4, dtype=getattr(torch, name))
    source, target = (array, tensor) if to_torch else (tensor, array)
    implementation.page_copy([source], [target], [[0, 2]])
    assert target[2].tolist() == source[0].tolist()
    assert target[1].tolist() != source[1].tolist()
    other = np.zeros((3, 4), f"u{kind.itemsize}")
    for pair in ((tensor, other), (other, tensor)):
        with pytest.raises(errors.DTypeError) as refused:
            implementation.page_copy([pair[0]], [pair[1]], [[0, 1]])
        assert refused.value.code == "dtype.pages"


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=["native", "reference"])
@pytest.mark.parametrize(("name", "make"), OVERLAPS, ids=[name for name, _ in OVERLAPS])
def test_overlaps_are_refused(implementation: Any, name: str, make: Any) -> None:
    array = np.arange(32).reshape(8, 4)
    source, target, mapping = make(array)
    if not isinstance(source, list):
        source, target = [source], [target]
    before = array.copy()
    with pytest.raises(errors.OverlapError):
        implementation.page_copy(source, target, mapping)
    np.testing.assert_array_equal(array, before)


def read_only() -> np.ndarray:
    array = np.zeros((4, 3))
    array.flags.writeable = False
    return array


RECORDED = torch.zeros(4, 3, dtype=torch.float64, requires_grad=True)
BAD_CALLS: list[tuple[dict[str, Any], type[errors.InferAccelError], str]] = [
    ({"mapping": [[4, 0]]}, errors.IdError, "id.page"),
    ({"mapping": [[-1, 0]]}, errors.IdError, "id.page"),
    ({"mapping": [[0, 4]]}, errors.IdError, "id.page"),
    ({"mapping": [[0, -1]]}, errors.IdError, "id.page"),
    ({"mapping": [[0, -(1 << 63)]]}, errors.IdError, "id.page"),
    ({"mapping": [[0, 1 << 64]]}, errors.DTypeError, "dtype.ids"),
    ({"mapping": [[0, 1], [2, 1]]}, errors.IdError, "id.repeated_target"),
    ({"mapping": [0, 1]}, errors.ShapeError, "shape.mapping"),
    ({"mapping": [[0, 1, 2]]}, errors.ShapeError, "shape.mapping"),
    ({"mapping": [[0.0, 1.0]]}, errors.DTypeError, "dtype.ids"),
    ({"targets": [np.zeros((4, 2))]}, errors.ShapeError, "shape.pages"),
    ({"targets": [np.zeros((4, 3, 1))]}, errors.ShapeError, "shape.pages"),
    ({"targets": [np.zeros((4, 3), np.float32)]}, errors.DTypeError, "dtype.pages"),
    ({"targets": []}, errors.ShapeError, "shape.layers"),
    ({"targets": [read_only()]}, errors.ReadOnlyError, "read_only"),
    ({"targets": [[[1.0]]]}, errors.DTypeError, "dtype.not_a_tensor"),
    (
        {"targets": [torch.zeros(4, 3, dtype=torch.float64, requires_grad=True)]},
        errors.GradientError,
        "gradient.recorded",
    ),
    ({"axis": 2}, errors.ArgumentError, "argument.axis"),
    ({"axis": -3}, errors.ArgumentError, "argument.axis"),
    ({"num_threads": 0}, errors.ArgumentError, "argument.num_threads"),
    ({"num_threads": -1}, errors.ArgumentError, "argument.count"),
]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=["native", "reference"])
@pytest.mark.parametrize(("change", "error", "code"), BAD_CALLS)
def test_bad_calls(
    implementation: Any, change: dict[str, Any], error: type[errors.InferAccelError], code: str
) -> None:
    target = np.zeros((4, 3))
    call = {"sources": [np.ones((4, 3))], "targets": [target], "mapping": [[0, 1]]} | change
    with pytest.raises(error) as caught:
        implementation.page_copy(call.pop("sources"), call.pop("targets"), call.pop("mapping"), **call)
    assert caught.value.code == code
    assert not target.any()


def test_broadcast_targets_are_refused() -> None:
    target = np.lib.stride_tricks.as_strided(np.zeros(3), (4, 3), (0, 8))
    with pytest.raises(errors.InferAccelError):
        kvcache.page_copy(np.ones((4, 3)), target, [[0, 0]])
    source = np.broadcast_to(np.arange(3.0), (4, 3))
    kept = np.zeros((4, 3))
    kvcache.page_copy(source, kept, [[0, 0], [3, 2]])
    assert kept.tolist() == [[0, 1, 2], [0, 0, 0], [0, 1, 2], [0, 0, 0]]


def test_streams_are_for_devices() -> None:
    with pytest.raises(errors.ArgumentError) as caught:
        kvcache.page_copy(np.ones((2, 2)), np.ones((2, 2)), [[0, 0]], stream=1)
    assert caught.value.code == "argument.stream"
    with pytest.raises(errors.InferAccelError):  # memory that is nowhere
        kvcache.page_copy(torch.ones(2, 2, device="meta"), np.ones((2, 2), np.float32), [[0, 0]])


def test_nothing_to_copy() -> None:
    target = np.zeros((4, 3))
    kvcache.page_copy(np.ones((4, 3)), target, [])
    kvcache.page_copy(np.ones((4, 3)), target, np.empty((0, 2), np.int32))
    kvcache.page_copy(np.ones((4, 0)), np.zeros((4, 0)), [[0, 1]])
    kvcache.page_copy([], [], [])
    assert not target.any()


def test_threads_copy_at_once() -> None:
    source = np.random.default_rng(0).integers(0, 255, (64, 1 << 16), dtype=np.uint8)
    pairs = np.stack([np.arange(64), np.arange(64)[::-1]], axis=1)
    wrong: list[int] = []

    def work(number: int) -> None:
        target = np.zeros_like(source)
        for _ in range(5):
            kvcache.page_copy(source, target, pairs, num_threads=2)
            if (target[::-1] != source).any():
                wrong.append(number)
            target.fill(0)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("page_bytes", [1000, 4096, 65536 + 48, 5 << 20])
def test_long_copies_take_the_way_past_the_cache(num_threads: int, page_bytes: int) -> None:
    pages = max(3, (40 << 20) // page_bytes)
    source = np.frombuffer(np.random.default_rng(1).bytes(pages * page_bytes), np.uint8).reshape(pages, -1)
    target = np.zeros_like(source)
    mapping = np.stack(
        [np.random.default_rng(2).permutation(pages), np.random.default_rng(3).permutation(pages)], axis=1
    )
    kvcache.page_copy(source, target, mapping, num_threads=num_threads)
    np.testing.assert_array_equal(target[mapping[:, 1]], source[mapping[:, 0]])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=["native", "reference"])
def test_ids_that_no_memory_holds(implementation: Any) -> None:
    """Strides of zero make any number of ids out of one; no copy of them is begun."""
    ids = np.broadcast_to(np.int64(0), (1 << 58,))
    pages = np.zeros((2, 4))
    calls: list[Callable[[], object]] = [
        lambda: implementation.page_gather([pages], ids, [pages.copy()]),
        lambda: implementation.page_copy([pages], [pages.copy()], ids.reshape(-1, 2)),
    ]
    for call in calls:
        with pytest.raises(errors.ArgumentError, match="no memory for a copy of them") as refused:
            call()
        assert refused.value.code == "argument.memory"
