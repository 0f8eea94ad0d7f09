"""Page layouts, host memory, and numbers that are not finite."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from infer_accel import errors, kvcache, reference
from infer_accel._backend import native
from infer_accel.kvcache import PageLayout

if TYPE_CHECKING:
    from pathlib import Path

IMPLEMENTATIONS = [native().kvcache, reference.kvcache]
FORMATS = {
    "float64": np.float64,
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2,
}


# Layouts ----------------------------------------------------------------------------------------------------


def whole_page(layout: PageLayout, seed: int) -> np.ndarray:
    """A page of every head, in the order layer, plane, token, head, dim."""
    shape = (len(tuple(layout.layers)), layout.planes, layout.tokens, layout.heads, layout.head_dim)
    return np.random.default_rng(seed).integers(-99, 99, shape).astype(layout.dtype)


def of_rank(layout: PageLayout, page: np.ndarray) -> np.ndarray:
    """What a rank has of a page, in the order of its memory."""
    assert layout.head_range is not None
    first, end = layout.head_range
    order = ["layer", "plane", "token", "head", "dim"]
    return page[:, :, :, first:end].transpose([order.index(axis) for axis in layout.axes])


@given(
    st.integers(1, 3),
    st.integers(1, 2),
    st.sampled_from([1, 2, 4, 8]),
    st.permutations(["layer", "plane", "token", "head", "dim"]),
    st.permutations(["layer", "plane", "token", "head", "dim"]),
    st.sampled_from([1, 2, 4, 8]),
    st.sampled_from([1, 2, 4, 8]),
    st.sampled_from(["float32", "float16", "int8"]),
)
@settings(deadline=None, max_examples=60)
def test_what_some_ranks_wrote_others_read(
    layers: int, planes: int, heads: int, wrote: Any, read: Any, writers: int, readers: int, dtype: str
) -> None:
    granule = max(1, heads // max(writers, readers))
    layout = PageLayout(
        layers=range(layers), planes=planes, heads=heads, head_dim=3, tokens=5, dtype=dtype, granule=granule
    )
    pages = [whole_page(layout, seed) for seed in range(2)]
    keys = np.arange(2 * 32, dtype=np.uint8).reshape(2, 32)
    stored: dict[bytes, np.ndarray] = {}
    for rank in range(writers):
        mine = PageLayout(**(spec(layout.for_rank(rank, writers)) | {"axes": tuple(wrote)}))
        assert mine.fingerprint == layout.fingerprint
        records = mine.pack(np.stack([of_rank(mine, page) for page in pages]))
        for key, record in zip(mine.record_keys(keys), records, strict=True):
            np.testing.assert_array_equal(stored.setdefault(key.tobytes(), record), record)
    for rank in range(readers):
        mine = PageLayout(**(spec(layout.for_rank(rank, readers)) | {"axes": tuple(read)}))
        records = np.stack([stored[key.tobytes()] for key in mine.record_keys(keys)])
        out = np.zeros((2, *mine.shape), dtype)
        mine.unpack(records, out)
        for page, row in zip(pages, out, strict=True):
            np.testing.assert_array_equal(row, of_rank(mine, page))


def spec(layout: PageLayout) -> dict[str, Any]:
    names = ("layers", "heads", "head_dim", "tokens", "dtype", "planes", "granule", "axes", "head_range")
    return {name: getattr(layout, name) for name in names} | {"identity": layout.identity}


BASE: dict[str, Any] = {"layers": range(4), "heads": 8, "head_dim": 16, "tokens": 16, "dtype": "bfloat16"}


@pytest.mark.parametrize(
    "change",
    [
        {"layers": range(1, 5)},
        {"layers": (0, 1, 3, 2)},
        {"heads": 4},
        {"head_dim": 32},
        {"tokens": 32},
        {"dtype": "float16"},
        {"planes": 1},
        {"granule": 2},
        {"identity": "another model"},
    ],
)
def test_what_differs_has_another_fingerprint(tmp_path: Path, change: dict[str, Any]) -> None:
    ours, other = PageLayout(**BASE), PageLayout(**(BASE | change))
    assert ours.fingerprint != other.fingerprint
    options: dict[str, Any] = {"capacity_bytes": 1 << 24, "page_bytes": ours.record_bytes}
    kvcache.DiskTier(tmp_path, fingerprint=ours, **options).close()
    with pytest.raises(errors.IntegrityError):
        kvcache.DiskTier(tmp_path, fingerprint=other, **options)


def test_a_fingerprint_is_the_same_tomorrow() -> None:
    assert PageLayout(**BASE).fingerprint.hex().startswith("d69eb0042eba3245")


def test_a_latent_cache_and_a_hybrid_model() -> None:
    latent = PageLayout(layers=range(3), heads=1, planes=1, head_dim=576, tokens=16, dtype="bfloat16")
    ranks = [latent.for_rank(rank, 4) for rank in range(4)]
    assert {rank.head_range for rank in ranks} == {(0, 1)}, "every rank holds the latent whole"
    pages = torch.randn(2, 3, 1, 16, 1, 576).to(torch.bfloat16)
    out = torch.zeros_like(pages)
    ranks[1].unpack(ranks[0].pack(pages), out)
    assert torch.equal(out, pages)
    full = PageLayout(**(BASE | {"layers": (5, 11), "identity": "full"}))
    window = PageLayout(**(BASE | {"layers": (0, 1), "identity": "window"}))
    assert full.fingerprint != window.fingerprint


def test_pages_of_an_engine(tmp_path: Path) -> None:
    """A strided view of a cache of torch, through the disk, to ranks of another split."""
    layout = PageLayout(**(BASE | {"granule": 4, "axes": ("plane", "layer", "token", "head", "dim")}))
    cache = torch.randn(10, 2, 4, 16, 8, 16).to(torch.bfloat16)
    keys = np.arange(3 * 32, dtype=np.uint8).reshape(3, 32)
    with kvcache.DiskTier(
        tmp_path, capacity_bytes=1 << 24, page_bytes=layout.record_bytes, fingerprint=layout
    ) as tier:
        assert tier.store(layout.record_keys(keys), layout.pack(cache[::4])) == 6
        half = layout.for_rank(1, 2)
        records = np.zeros((3, half.record_bytes), np.uint8)
        assert tier.load(half.record_keys(keys), records).all()
        out = torch.zeros(3, *half.shape, dtype=torch.bfloat16)
        half.unpack(records, out)
    assert torch.equal(out, cache[::4, :, :, :, 4:])


BAD_LAYOUTS: list[tuple[dict[str, Any], str]] = [
    ({"heads": 0}, "argument.layout"),
    ({"layers": ()}, "argument.layout"),
    ({"layers": (1, 1)}, "argument.layout"),
    ({"layers": (-1,)}, "argument.layout"),
    ({"dtype": "int4"}, "argument.layout"),
    ({"axes": ("layer", "plane", "token", "head")}, "argument.layout"),
    ({"head_range": (0, 9)}, "argument.head_range"),
    ({"head_range": (4, 4)}, "argument.head_range"),
    ({"head_range": (1, 3), "granule": 2}, "argument.head_range"),
    ({"granule": 3}, "argument.head_range"),
    ({"heads": 1 << 17}, "argument.layout"),
]


@pytest.mark.parametrize(("change", "code"), BAD_LAYOUTS)
def test_bad_layouts(change: dict[str, Any], code: str) -> None:
    with pytest.raises(errors.ArgumentError) as caught:
        PageLayout(**(BASE | change))
    assert caught.value.code == code


def test_bad_pages() -> None:
    layout = PageLayout(**(BASE | {"dtype": "float16"}))
    pages = np.zeros((2, *layout.shape), np.float16)
    calls: list[tuple[Any, str]] = [
        (lambda: layout.pack(pages[:, 1:]), "shape.layout_pages"),
        (lambda: layout.pack(pages[0]), "shape.layout_pages"),
        (lambda: layout.pack(pages.astype(np.float32)), "layout.dtype"),
        (lambda: layout.unpack(np.zeros((3, layout.record_bytes), np.uint8), pages), "shape.records"),
        (lambda: layout.pack(pages, np.zeros((16, layout.record_bytes - 1), np.uint8)), "shape.records"),
        (lambda: layout.pack([1]), "dtype.not_a_tensor"),  # type: ignore[arg-type]
        (lambda: layout.pack(pages, [1]), "dtype.not_a_tensor"),  # type: ignore[arg-type]
        (lambda: layout.unpack([1], pages), "dtype.not_a_tensor"),  # type: ignore[arg-type]
        (lambda: layout.pack(torch.zeros(pages.shape, dtype=torch.float16, device="meta")), "layout.export"),
        (
            lambda: layout.pack(torch.zeros(pages.shape, dtype=torch.float16).requires_grad_()),
            "gradient.recorded",
        ),
        (lambda: layout.record_keys(np.zeros(4, np.uint8)), "shape.keys"),
        (lambda: layout.record_keys(np.zeros((2, 4), np.int64)), "dtype.bytes"),
        (lambda: layout.for_rank(3, 3), "argument.head_range"),
        (lambda: layout.for_rank(0, 3), "argument.head_range"),
    ]
    for call, code in calls:
        with pytest.raises(errors.InferAccelError) as caught:
            call()
        assert caught.value.code == code


# Numbers that are not finite --------------------------------------------------------------------------------


@given(st.sampled_from(sorted(FORMATS)), st.integers(1, 5), st.integers(0, 700), st.data())
@settings(deadline=None, max_examples=150)
def test_nonfinite_pages_are_found(name: str, pages: int, numbers: int, data: st.DataObject) -> None:
    dtype = np.dtype(FORMATS[name])
    array = np.random.default_rng(numbers).normal(size=(pages, numbers)).astype(dtype)
    if numbers:
        for _ in range(data.draw(st.integers(0, 3))):
            at = data.draw(st.integers(0, pages - 1)), data.draw(st.integers(0, numbers - 1))
            array[at] = data.draw(st.sampled_from([np.nan, np.inf, -np.inf, 0.0]))
    expected: np.ndarray = np.any(~np.isfinite(array.astype(np.float64)), axis=1)
    for implementation in IMPLEMENTATIONS:
        np.testing.assert_array_equal(
            implementation.scan_nonfinite(array.view(np.uint8), dtype=name), expected
        )
    np.testing.assert_array_equal(kvcache.scan_nonfinite(array, num_threads=2), expected)
    np.testing.assert_array_equal(kvcache.scan_nonfinite(array[::-1]), expected[::-1])


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_tensors_of_torch(name: str) -> None:
    pages = torch.zeros(4, 3, 100).to(getattr(torch, name))
    pages[2, 1, 99] = float("nan")
    assert kvcache.scan_nonfinite(pages).tolist() == [False, False, True, False]
    assert kvcache.scan_nonfinite(pages.transpose(0, 1)).tolist() == [False, True, False]


def test_long_pages_by_threads() -> None:
    pages = np.zeros((64, 1 << 17), np.float16)
    pages[[3, 50], [0, -1]] = np.inf
    assert np.flatnonzero(kvcache.scan_nonfinite(pages)).tolist() == [3, 50]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=["native", "reference"])
def test_what_holds_no_floats_is_refused(implementation: Any) -> None:
    for pages, dtype, code in [
        (np.zeros((2, 2), np.int32), None, "dtype.nonfinite"),
        (np.zeros((2, 2), np.int32), "float32", "dtype.nonfinite"),
        (np.zeros((2, 2), np.float32), "float16", "dtype.nonfinite"),
        (np.zeros((2, 3), np.uint8), "float16", "shape.nonfinite"),
        (np.zeros((2, 8), np.uint8)[:, ::2], "float16", "shape.nonfinite"),
        (np.zeros((2, 2), np.uint8), "int8", "argument.dtype"),
        (np.zeros((), np.float32), None, "argument.axis"),
        ([1.0], None, "dtype.not_a_tensor"),
    ]:
        with pytest.raises(errors.InferAccelError) as caught:
            implementation.scan_nonfinite(pages, dtype=dtype)
        assert caught.value.code == code


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=["native", "reference"])
def test_scrub(implementation: Any) -> None:
    layers = [np.full((2, 6, 5), np.nan), np.ones((3, 6))[:, ::-1]]
    implementation.scrub(layers, [1, 4, 1], axis=1)
    for layer in layers:
        assert not layer[:, [1, 4]].any()
        assert layer[:, [0, 2, 3, 5]].astype(bool).all()
    for ids, axis, error in [
        ([6], 1, errors.IdError),
        ([-1], 1, errors.IdError),
        ([0], 3, errors.ArgumentError),
    ]:
        with pytest.raises(error):
            implementation.scrub(layers, ids, axis=axis)
    frozen = np.ones((2, 2))
    frozen.flags.writeable = False
    with pytest.raises(errors.ReadOnlyError):
        implementation.scrub([frozen], [0])
    tensor = torch.ones(3, 2, dtype=torch.bfloat16)
    kvcache.scrub(tensor, [-1 + 3])
    assert tensor.tolist() == [[1, 1], [1, 1], [0, 0]]


# Host memory ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=["native", "reference"])
def test_host_memory(implementation: Any) -> None:
    pages = implementation.HostPool(3, 1000, prefault=True).pages()
    gc.collect()  # the array alone keeps the memory
    assert pages.shape == (3, 1000)
    assert pages.flags.writeable
    assert not pages.any()
    pages[:] = 7
    assert (pages == 7).all()
    assert implementation.HostPool(0, 10).pages().shape == (0, 10)
    with pytest.raises(errors.StorageError) as caught:
        implementation.HostPool(1 << 40, 1 << 22)
    assert caught.value.code == "storage.host_memory"
    with pytest.raises(errors.ArgumentError):
        implementation.HostPool(-1, 10)


def test_host_memory_as_torch_sees_it() -> None:
    pool = kvcache.HostPool(4, 64)
    pool.tensor()[2] = 9
    assert pool.pages[2].tolist() == [9] * 64
    assert pool.pages.ctypes.data % (2 << 20) == 0
    if not torch.cuda.is_available():
        assert not pool.pinned
        with pytest.raises(errors.DeviceError) as caught:
            kvcache.HostPool(4, 64, pin=True)
        assert caught.value.code == "device.pin"
    else:
        assert pool.pinned
        assert pool.tensor().is_pinned()


class Runtime:
    """What the pool asks of CUDA's runtime."""

    def __init__(self, result: int = 0) -> None:
        self.result = result
        self.registered: dict[int, int] = {}

    def cudaHostRegister(self, address: int, count: int, flags: int) -> int:
        assert flags == 0
        if self.result == 0:
            assert address not in self.registered
            self.registered[address] = count
        return self.result

    def cudaHostUnregister(self, address: int) -> int:
        del self.registered[address]
        return 0


def with_a_gpu(monkeypatch: pytest.MonkeyPatch, result: int = 0) -> Runtime:
    runtime = Runtime(result)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    return runtime


@pytest.mark.parametrize("pin", [None, True])
def test_host_memory_is_pinned_as_long_as_anybody_has_it(
    pin: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = with_a_gpu(monkeypatch)
    pool = kvcache.HostPool(4, 64, pin=pin)
    assert pool.pinned
    assert runtime.registered == {pool.pages.ctypes.data: 256}
    pool.pages[1] = 5
    tensor, view = pool.tensor()[1:2], pool.pages[1]
    del pool
    gc.collect()
    assert runtime.registered, "a tensor of the memory is still there, and a copy may be under way"
    assert tensor.sum() == 5 * 64
    del tensor
    gc.collect()
    assert runtime.registered
    assert view.tolist() == [5] * 64
    del view
    gc.collect()
    assert runtime.registered == {}


def test_host_memory_that_is_not_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = with_a_gpu(monkeypatch)
    assert not kvcache.HostPool(4, 64, pin=False).pinned
    assert not kvcache.HostPool(0, 64).pinned
    assert runtime.registered == {}
    with_a_gpu(monkeypatch, result=2)
    pool = kvcache.HostPool(4, 64)
    assert not pool.pinned
    assert not pool.pages.any()
    with pytest.raises(errors.DeviceError, match="refused to pin") as caught:
        kvcache.HostPool(4, 64, pin=True)
    assert caught.value.code == "device.pin"
