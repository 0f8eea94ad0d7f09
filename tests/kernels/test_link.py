"""Copies between host and device by the driver, with a double in its place that really moves bytes."""

from __future__ import annotations

import contextlib
import ctypes
import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from infer_accel import errors
from infer_accel.kernels import _driver, _link, _threshold
from infer_accel.kernels import page_copy as kernels
from infer_accel.kernels._device import Launch
from infer_accel.kernels._pages import plan_pages

if TYPE_CHECKING:
    from pathlib import Path


class Mover:
    """What the driver does, done by the CPU."""

    takes_default_stream = False

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.sizes: list[int] = []

    def copy(self, sources: Any, targets: Any, sizes: Any, stream: int) -> None:
        assert len(sources) == len(targets) == len(sizes) <= _driver.LARGEST_BATCH
        assert stream == 0
        self.calls.append(len(sizes))
        self.sizes += sizes.tolist()
        for source, target, size in zip(sources.tolist(), targets.tolist(), sizes.tolist(), strict=True):
            ctypes.memmove(target, source, size)


def linked(monkeypatch: pytest.MonkeyPatch, threshold: int = 0) -> Mover:
    """Let tensors of the CPU stand on both sides of a link whose driver is a double."""
    mover = Mover()
    monkeypatch.setattr(kernels, "_device_of", lambda _: (torch.device("cpu"), True))
    monkeypatch.setattr(_driver, "copy_driver", lambda: mover)
    monkeypatch.setattr(_threshold, "read_threshold", lambda _: threshold)
    return mover


@given(st.integers(1, 9), st.integers(2, 9), st.booleans(), st.data())
@settings(max_examples=60)
def test_joined_runs_move_the_same_bytes(rows: int, width: int, planes: bool, data: st.DataObject) -> None:
    shape = (2, rows, width) if planes else (rows, width)
    source = torch.from_numpy(np.random.default_rng(rows).integers(0, 256, shape, dtype=np.uint8))
    target, wanted = torch.zeros(shape, dtype=torch.uint8), torch.zeros(shape, dtype=torch.uint8)
    targets = data.draw(st.permutations(range(rows)))[: data.draw(st.integers(0, rows))]
    pairs = [[data.draw(st.integers(0, rows - 1)), to] for to in targets]
    axis = 1 if planes else 0
    for fro, to in pairs:
        wanted.movedim(axis, 0)[to] = source.movedim(axis, 0)[fro]
    groups, *_ = plan_pages([source], [target], axis)
    runs = _link.joined_runs(groups, np.array(pairs, np.int64).reshape(-1, 2))
    mover = Mover()
    _link.copy_runs(runs, Launch(torch.device("cpu")), mover)
    assert torch.equal(target, wanted)
    assert sum(mover.sizes) == len(pairs) * width * (2 if planes else 1)
    begins, ends = runs[0], runs[0] + runs[2]
    is_next = (ends[:-1] == begins[1:]) & (runs[1][:-1] + runs[2][:-1] == runs[1][1:])
    assert not is_next.any(), "two runs that follow each other on both sides"


def test_neighbours_become_one_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    mover = linked(monkeypatch)
    source, target = torch.arange(80).reshape(20, 4), torch.zeros(20, 4, dtype=torch.int64)
    handle = kernels.page_copy([source], [target], [[i + 3, i] for i in range(10)] + [[0, 15]], axis=0)
    handle.wait()
    handle.synchronize()
    assert mover.sizes == [10 * 32, 32]
    assert torch.equal(target[:10], source[3:13])
    assert torch.equal(target[15], source[0])


def test_batches_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    mover = linked(monkeypatch)
    count = 2 * _driver.LARGEST_BATCH + 5
    source, target = torch.arange(count).reshape(-1, 1), torch.zeros(count, 1, dtype=torch.int64)
    kernels.page_copy([source], [target], [[count - 1 - i, i] for i in range(count)], axis=0)
    assert mover.calls == [_driver.LARGEST_BATCH, _driver.LARGEST_BATCH, 5]
    assert torch.equal(target, source.flip(0))


def test_short_runs_go_through_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = torch.arange(64).reshape(16, 4), torch.zeros(16, 4, dtype=torch.int64)
    pairs = [[i, (5 * i) % 16] for i in range(16)]
    mover = linked(monkeypatch, threshold=33)
    kernels.page_copy([source], [target], pairs, axis=0)
    assert mover.calls == []
    assert torch.equal(target[[(5 * i) % 16 for i in range(16)]], source)
    target.zero_()
    mover = linked(monkeypatch, threshold=32)
    kernels.page_copy([source], [target], pairs, axis=0)
    assert mover.calls == [16]
    assert torch.equal(target[[(5 * i) % 16 for i in range(16)]], source)


class Module:
    """`cuda.bindings.driver`, as far as it is called."""

    class CUresult(int):
        pass

    def __init__(self, *, batches: bool, result: int = 0) -> None:
        self.made: list[tuple[Any, ...]] = []
        self.result = result
        self.CUmemcpySrcAccessOrder = SimpleNamespace(CU_MEMCPY_SRC_ACCESS_ORDER_STREAM=1)
        self.CUmemcpyAttributes = SimpleNamespace
        self.CUdeviceptr = self.CUstream = int
        if batches:
            self.cuMemcpyBatchAsync = lambda *given: self._made("batch", *given)
        self.cuMemcpyAsync = lambda *given: self._made("single", *given)

    def _made(self, *given: Any) -> tuple[Any, ...]:
        self.made.append(given)
        return (self.CUresult(self.result),)


def test_the_driver_is_called_in_batches_where_it_knows_them() -> None:
    numbers = np.array([16, 32], np.int64), np.array([64, 96], np.int64), np.array([3, 5], np.int64)
    module = Module(batches=True)
    driver = _driver.Driver(module, 13000)
    assert not driver.takes_default_stream
    driver.copy(*numbers, 9)
    ((kind, to, fro, lengths, count, attributes, places, number, stream),) = module.made
    assert (kind, to, fro, lengths, count) == ("batch", [64, 96], [16, 32], [3, 5], 2)
    assert (attributes[0].srcAccessOrder, places, number, stream) == (1, [0], 1, 9)
    for module, version in ((Module(batches=True), 12040), (Module(batches=False), 13000)):
        driver = _driver.Driver(module, version)
        assert driver.takes_default_stream
        driver.copy(*numbers, 9)
        assert module.made == [("single", 64, 16, 3, 9), ("single", 96, 32, 5, 9)]
    with pytest.raises(errors.DeviceError) as caught:
        _driver.Driver(Module(batches=True, result=700), 13000).copy(*numbers, 9)
    assert caught.value.code == "device.driver"


def test_the_bindings_take_what_we_pass() -> None:
    module = pytest.importorskip("cuda.bindings.driver")
    numbers = np.array([16], np.int64), np.array([64], np.int64), np.array([3], np.int64)
    for version in (13000, 12040):
        # No driver here, or one that refuses such addresses; a TypeError would be ours.
        with contextlib.suppress(RuntimeError, errors.DeviceError):
            _driver.Driver(module, version).copy(*numbers, 9)


def test_thresholds_are_kept_by_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert _threshold.read_threshold("a GPU") == _threshold.DEFAULT_BYTES
    path = _threshold.write_threshold("a GPU", 4096)
    assert path == tmp_path / "infer-accel" / "devices.json"
    _threshold.write_threshold("another", 0)
    assert (_threshold.read_threshold("a GPU"), _threshold.read_threshold("another")) == (4096, 0)
    assert [entry.name for entry in path.parent.iterdir()] == ["devices.json"]


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "[1]", '{"a GPU": 5}', '{"a GPU": {"driver_copies_from_bytes": "5"}}', "[" * 100_000]
    + [
        json.dumps({"a GPU": {"driver_copies_from_bytes": value}}) for value in (-1, 1 << 31, 1.5, True, None)
    ],
)
def test_a_malformed_file_is_no_file(text: str, tmp_path: Path) -> None:
    path = tmp_path / "devices.json"
    path.write_text(text)
    assert _threshold.read_threshold("a GPU", path) == _threshold.DEFAULT_BYTES
    _threshold.write_threshold("a GPU", 77, path)
    assert _threshold.read_threshold("a GPU", path) == 77
