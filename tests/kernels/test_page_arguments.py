"""Calls that must not reach a GPU: each a typed error, before anything is launched."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from tests.kernels.devices import OnDevice, SaysCuda

from infer_accel import errors, kvcache
from infer_accel.kernels import _device, _driver, _pages, _triton
from infer_accel.kernels import page_copy as kernels

if TYPE_CHECKING:
    from collections.abc import Callable


def pages(*shape: int, **options: Any) -> torch.Tensor:
    return torch.zeros(*(shape or (4, 6)), **options)


def emptied() -> torch.Tensor:
    tensor = pages()
    tensor.untyped_storage().resize_(0)
    return tensor


def shortened() -> torch.Tensor:
    tensor = pages()
    tensor.untyped_storage().resize_(40)
    return tensor


def recorded() -> torch.Tensor:
    return pages(requires_grad=True)


def read_only() -> np.ndarray:
    array = np.zeros((4, 6), np.float32)
    array.flags.writeable = False
    return array


SECOND_GPU = OnDevice.of(4, 6, device="cuda:1")
BAD_CALLS: list[tuple[str, dict[str, Any], type[errors.InferAccelError], str]] = [
    ("source id too large", {"mapping": [[4, 0]]}, errors.IdError, "id.page"),
    ("source id negative", {"mapping": [[-1, 0]]}, errors.IdError, "id.page"),
    ("target id too large", {"mapping": [[0, 0], [0, 4]]}, errors.IdError, "id.page"),
    ("smallest integer", {"mapping": [[0, -(1 << 63)]]}, errors.IdError, "id.page"),
    ("beyond 63 bits", {"mapping": np.array([[0, 1 << 63]], np.uint64)}, errors.IdError, "id.range"),
    ("beyond 64 bits", {"mapping": [[0, 1 << 64]]}, errors.DTypeError, "dtype.ids"),
    ("target twice", {"mapping": [[0, 1], [2, 1]]}, errors.IdError, "id.repeated_target"),
    ("one column", {"mapping": [0, 1]}, errors.ShapeError, "shape.mapping"),
    ("three columns", {"mapping": [[0, 1, 2]]}, errors.ShapeError, "shape.mapping"),
    ("floats", {"mapping": [[0.0, 1.0]]}, errors.DTypeError, "dtype.ids"),
    ("floats on the GPU", {"mapping": SaysCuda.of(torch.zeros(1, 2))}, errors.DTypeError, "dtype.ids"),
    ("flat on the GPU", {"mapping": SaysCuda.of(torch.tensor([0, 1]))}, errors.ShapeError, "shape.mapping"),
    ("ids on another GPU", {"mapping": OnDevice.of(1, 2, dtype=torch.int64)}, errors.DeviceError, "device.mixed"),
    ("other shape", {"dst": [pages(4, 2)]}, errors.ShapeError, "shape.pages"),
    ("more axes", {"dst": [pages(4, 6, 1)]}, errors.ShapeError, "shape.pages"),
    ("other format", {"dst": [pages(dtype=torch.float16)]}, errors.DTypeError, "dtype.pages"),
    ("fewer layers", {"dst": []}, errors.ShapeError, "shape.layers"),
    ("no such axis", {"axis": 2}, errors.ArgumentError, "argument.axis"),
    ("a list", {"dst": [[[1.0]]]}, errors.DTypeError, "dtype.not_a_tensor"),
    ("source freed", {"src": [emptied()]}, errors.LayoutError, "layout.storage"),
    ("target freed", {"dst": [emptied()]}, errors.LayoutError, "layout.storage"),
    ("target cut", {"dst": [shortened()]}, errors.LayoutError, "layout.storage"),
    ("columns", {"src": [pages(6, 4).T], "dst": [pages(6, 4).T]}, errors.LayoutError, "layout.page_run"),
    ("every second", {"src": [pages(4, 12)[:, ::2]]}, errors.LayoutError, "layout.page_run"),
    ("expanded target", {"dst": [pages(1, 6).expand(4, 6)]}, errors.LayoutError, "layout.self_overlap"),
    ("sparse", {"src": [pages().to_sparse()]}, errors.LayoutError, "layout.export"),
    ("negated", {"src": [torch.zeros(4, 6, dtype=torch.cfloat).conj().imag]}, errors.LayoutError, "layout.negated"),
    ("gradient", {"src": [recorded()]}, errors.GradientError, "gradient.recorded"),
    ("gradient of a target", {"dst": [recorded()]}, errors.GradientError, "gradient.recorded"),
    ("read-only array", {"dst": [read_only()]}, errors.ReadOnlyError, "read_only"),
    ("backwards array", {"dst": [np.zeros((4, 6), np.float32)[::-1]]}, errors.LayoutError, "layout.strides"),
    ("two GPUs", {"src": [OnDevice.of(4, 6)], "dst": [SECOND_GPU]}, errors.DeviceError, "device.mixed"),
    ("layers on two GPUs", {
        "src": [OnDevice.of(4, 6), SECOND_GPU], "dst": [OnDevice.of(4, 6), SECOND_GPU]
    }, errors.DeviceError, "device.mixed"),
    ("another kind of device", {"src": [pages(device="meta")]}, errors.DeviceError, "device.mixed"),
    ("host not pinned", {"src": [OnDevice.of(4, 6)]}, errors.DeviceError, "device.not_pinned"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("call", "kind", "code"), [case[1:] for case in BAD_CALLS], ids=[case[0] for case in BAD_CALLS]
)
def test_bad_calls_are_refused(
    call: dict[str, Any], kind: type[errors.InferAccelError], code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def launched(*_: Any, **__: Any) -> None:
        raise AssertionError("a kernel was launched")

    monkeypatch.setattr(kernels, "_launch_kernel", launched)
    target = torch.full((4, 6), 7.0)
    given: dict[str, Any] = {"src": [pages()], "dst": [target], "mapping": [[1, 2]], "axis": 0} | call
    with pytest.raises(kind) as caught:
        kernels.page_copy(**given)
    assert caught.value.code == code
    assert (target == 7).all()


def test_packed_pages_must_be_as_many_as_ids() -> None:
    for ids in ([0, 1], SaysCuda.of(torch.tensor([0, 1]))):
        with pytest.raises(errors.ShapeError) as caught:
            kernels.page_gather([pages()], ids, [pages(3, 6)], axis=0)
        assert caught.value.code == "shape.packed_pages"
        with pytest.raises(errors.ShapeError):
            kernels.page_scatter([pages(3, 6)], [pages()], ids, axis=0)
    with pytest.raises(errors.ShapeError) as caught:
        kernels.page_gather([pages()], [[0, 1]], [pages(2, 6)], axis=0)
    assert caught.value.code == "shape.ids"


def test_a_page_of_too_many_runs() -> None:
    wide = torch.zeros(1, 2)[:, None].expand(2, 1 << 17, 2)
    with pytest.raises(errors.LayoutError) as caught:
        kernels.page_copy([wide], [torch.zeros(2, 1 << 17, 2)], [[0, 0]], axis=0)
    assert caught.value.code == "layout.page_runs"
    layers = [torch.zeros(2, 300, 4)[:, :, :2] for _ in range(300)]
    with pytest.raises(errors.LayoutError) as caught:
        kernels.page_copy(layers, [torch.zeros(2, 300, 2) for _ in layers], [[0, 1]], axis=0)
    assert caught.value.code == "layout.page_runs"


def test_an_old_architecture_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "an old one")
    with pytest.raises(errors.DeviceError, match=r"an old one.*7\.5") as caught:
        kvcache.page_copy(OnDevice.of(4, 6), OnDevice.of(4, 6), [[0, 1]])
    assert caught.value.code == "device.architecture"


def test_other_makes_of_gpu_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "7.0")
    with pytest.raises(errors.DeviceError, match="ROCm") as caught:
        _device._require_architecture(torch.device("cuda", 3))
    assert caught.value.code == "device.architecture"


def test_a_stream_of_another_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(torch.cuda, "ExternalStream", lambda handle, device: (handle, device))
    monkeypatch.setattr(_driver, "device_of_stream", lambda _: 1)
    _device._require_architecture.cache_clear()
    with pytest.raises(errors.DeviceError, match="stream of device 1") as caught:
        kvcache.page_copy(OnDevice.of(4, 6), OnDevice.of(4, 6), [[0, 1]], stream=0x5000)
    assert caught.value.code == "device.stream"
    _device._require_architecture.cache_clear()


def test_a_stream_for_tensors_of_the_cpu_is_refused() -> None:
    calls: list[Callable[[], object]] = [
        lambda: kvcache.page_copy(pages(), pages(), [[0, 1]], stream=7),
        lambda: kvcache.page_gather(pages(), [0], pages(1, 6), stream=7),
        lambda: kvcache.page_scatter(pages(1, 6), pages(), [0], stream=7),
    ]
    for call in calls:
        with pytest.raises(errors.ArgumentError) as caught:
            call()
        assert caught.value.code == "argument.stream"


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    _triton.device_code.cache_clear()
    try:
        with pytest.raises(errors.BackendError, match=r"infer-accel\[gpu\]") as caught:
            kvcache.page_copy(OnDevice.of(4, 6), OnDevice.of(4, 6), [[0, 1]])
    finally:
        _triton.device_code.cache_clear()
    assert caught.value.code == "backend.triton"
    _pages.plan_pages([pages()], [pages()], 0)  # planning needs none


def test_neither_torch_nor_triton_is_imported() -> None:
    program = """
import sys
import numpy as np
import infer_accel
from infer_accel import kvcache, lora
kvcache.page_copy(np.zeros((2, 3)), np.zeros((2, 3)), [[0, 1]])
kvcache.page_gather(np.zeros((2, 3)), [1], np.zeros((1, 3)))
weight = np.zeros((2, 2), np.float32)
lora.merge_weights(weight, weight[:1] + 1, np.ones((2, 1), np.float32))
lora.merge_many([weight], [(np.ones((1, 2), np.float32), np.ones((2, 1), np.float32), 1.0)])
stack = lora.AdapterStack([(np.ones((1, 2), np.float32), np.ones((2, 1), np.float32))])
lora.apply_adapters(np.ones((1, 2), np.float32), stack, [0], out=weight[:1])
loaded = {name.partition(".")[0] for name in sys.modules} & {"torch", "triton", "cuda"}
assert not loaded, loaded
assert "infer_accel.kernels" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
