"""How Python's tensors arrive in the core: without a copy, with what their exporter says, or not at all."""

from __future__ import annotations

import array
import ctypes
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from infer_accel import errors
from infer_accel._backend import native

describe = native().system.describe

NUMPY_DTYPES = ["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "?"]


def address(a: np.ndarray) -> int:
    return int(a.__array_interface__["data"][0])


@pytest.mark.parametrize("dtype", NUMPY_DTYPES)
def test_numpy_arrives_in_place(dtype: str) -> None:
    a = np.zeros((3, 4), dtype)
    assert describe(a) == (a.dtype.name, [3, 4], [4, 1], address(a), True)
    b = a[::-1, 1::2]
    assert describe(b) == (a.dtype.name, [3, 2], [-4, 2], address(b), True)


@given(hnp.arrays(np.int16, hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4)), st.data())
def test_every_numpy_view_keeps_its_strides(a: np.ndarray, data: st.DataObject) -> None:
    if a.ndim:
        a = a.transpose(data.draw(st.permutations(range(a.ndim))))
        step = data.draw(st.sampled_from([-2, -1, 1, 2]))
        a = a[::step]
    name, shape, strides, at, _ = describe(a)
    assert (name, tuple(shape), at) == ("int16", a.shape, address(a))
    for extent, stride, expected in zip(a.shape, strides, a.strides, strict=True):
        assert extent <= 1 or stride * a.itemsize == expected


def test_read_only_is_seen() -> None:
    a = np.zeros(3)
    a.flags.writeable = False
    assert describe(a)[4] is False
    assert describe(b"abc")[4] is False
    assert describe(bytearray(b"abc"))[4] is True
    assert describe(memoryview(bytearray(8)).toreadonly())[4] is False


def test_buffers_arrive() -> None:
    assert describe(array.array("f", [1, 2]))[:3] == ("float32", [2], [1])
    assert describe(memoryview(bytearray(16)).cast("q"))[:3] == ("int64", [2], [1])
    assert describe((ctypes.c_uint16 * 4)())[:3] == ("uint16", [4], [1])


@pytest.mark.parametrize(
    ("value", "error", "code"),
    [
        ("text", errors.DTypeError, "dtype.not_a_tensor"),
        (None, errors.DTypeError, "dtype.not_a_tensor"),
        ([1, 2], errors.DTypeError, "dtype.not_a_tensor"),
        (np.zeros(2, complex), errors.DTypeError, "dtype.unknown"),
        (np.array([object()]), errors.DTypeError, "dtype.unknown"),
        (np.array(["a"]), errors.DTypeError, "dtype.unknown"),
        (np.zeros(2, "M8[s]"), errors.DTypeError, "dtype.unknown"),
        (np.zeros(2, ">f4" if sys.byteorder == "little" else "<f4"), errors.LayoutError, "layout.byte_order"),
        (np.zeros(3, [("a", "f4"), ("b", "i1")])["a"], errors.LayoutError, "layout.stride_bytes"),
        (np.zeros((1,) * 9), errors.ShapeError, "shape.dimensions"),
        (memoryview(b"ab").cast("c")[::1].cast("B").cast("c"), None, None),
    ],
)
def test_what_is_no_tensor_is_refused(
    value: Any, error: type[errors.InferAccelError] | None, code: str | None
) -> None:
    if error is None:
        describe(value)
        return
    with pytest.raises(error) as caught:
        describe(value)
    assert caught.value.code == code
    assert any("tensor" in note for note in caught.value.__notes__)


class Exporter:
    """An object with ``__dlpack__`` and nothing else."""

    def __init__(self, source: Any, *, knows_versions: bool = True) -> None:
        self.source = source
        self.knows_versions = knows_versions
        self.exports = 0

    def __dlpack__(self, **options: Any) -> Any:
        if options and not self.knows_versions:
            raise TypeError("unexpected keyword argument 'max_version'")
        self.exports += 1
        return self.source.__dlpack__(**options)


def test_dlpack_arrives_in_place_and_is_given_back() -> None:
    a = np.arange(6, dtype=np.float32).reshape(2, 3)
    exporter = Exporter(a)
    before = sys.getrefcount(a)
    for _ in range(10):
        assert describe(exporter) == ("float32", [2, 3], [3, 1], address(a), True)
    assert sys.getrefcount(a) == before, "the deleter must run once for each export"


def test_dlpack_read_only_flag_is_honoured() -> None:
    a = np.arange(6)
    a.flags.writeable = False
    assert describe(Exporter(a))[4] is False


def test_dlpack_without_versions_is_only_read() -> None:
    a = np.arange(6)
    assert describe(Exporter(a, knows_versions=False)) == ("int64", [6], [1], address(a), False)


class Hostile:
    def __init__(self, capsule: Any) -> None:
        self.capsule = capsule

    def __dlpack__(self, **_: Any) -> Any:
        if isinstance(self.capsule, BaseException):
            raise self.capsule
        return self.capsule


def capsule(name: bytes) -> Any:
    make = ctypes.pythonapi.PyCapsule_New
    make.restype = ctypes.py_object
    make.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    return make(1, name, None)


NAMES = [b"dltensor_other", b"used_dltensor_versioned", b"used_dltensor"]


@pytest.mark.parametrize("name", NAMES)
def test_foreign_and_used_capsules_are_refused(name: bytes) -> None:
    with pytest.raises(errors.LayoutError, match="used before, or is of no known name"):
        describe(Hostile(capsule(name)))


def test_an_exporter_that_fails_is_quoted() -> None:
    with pytest.raises(errors.LayoutError, match="no export today") as caught:
        describe(Hostile(BufferError("no export today")))
    assert caught.value.code == "layout.export"
    assert isinstance(caught.value.__cause__, BufferError)
    with pytest.raises(errors.LayoutError, match="returned no capsule"):
        describe(Hostile(3))
    with pytest.raises(KeyboardInterrupt):
        describe(Hostile(KeyboardInterrupt()))


class Managed(ctypes.Structure):
    """``DLManagedTensorVersioned``, filled by hand to lie."""

    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("manager", ctypes.c_void_p),
        ("deleter", ctypes.CFUNCTYPE(None, ctypes.c_void_p)),
        ("flags", ctypes.c_uint64),
        ("data", ctypes.c_void_p),
        ("device_kind", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class ByHand:
    """Exports one hand-made tensor and counts the calls of its deleter."""

    def __init__(self, **changes: Any) -> None:
        self.memory = (ctypes.c_float * 6)()
        self.shape = (ctypes.c_int64 * 2)(*changes.pop("shape", (2, 3)))
        self.strides = (ctypes.c_int64 * 2)(*changes.pop("strides", (3, 1)))
        self.deleted = 0
        self.deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self.delete)
        fields: dict[str, Any] = {
            "major": 1, "minor": 3, "deleter": self.deleter, "data": ctypes.addressof(self.memory),
            "device_kind": 1, "ndim": 2, "code": 2, "bits": 32, "lanes": 1,
            "shape": self.shape, "strides": self.strides,
        }  # fmt: skip
        self.managed = Managed(**(fields | changes))

    def delete(self, _: int | None) -> None:
        self.deleted += 1

    def __dlpack__(self, **_: Any) -> Any:
        make = ctypes.pythonapi.PyCapsule_New
        make.restype = ctypes.py_object
        make.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        return make(ctypes.addressof(self.managed), b"dltensor_versioned", None)


def test_a_tensor_by_hand_is_read_and_deleted_once() -> None:
    tensor = ByHand(byte_offset=4)
    assert describe(tensor) == ("float32", [2, 3], [3, 1], ctypes.addressof(tensor.memory) + 4, True)
    assert tensor.deleted == 1


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"major": 2}, errors.LayoutError),
        ({"device_kind": 2}, errors.DeviceError),
        ({"device_kind": 99}, errors.DeviceError),
        ({"code": 5}, errors.DTypeError),
        ({"bits": 24}, errors.DTypeError),
        ({"lanes": 4}, errors.DTypeError),
        ({"ndim": -1}, errors.LayoutError),
        ({"ndim": 1000}, errors.ShapeError),
        ({"shape": (-1, 3)}, errors.LayoutError),
        ({"shape": (2**62, 2**62)}, errors.ShapeError),
        ({"strides": (2**62, 2**62)}, errors.ShapeError),
        ({"data": None}, errors.LayoutError),
    ],
)
def test_lies_are_refused_and_deleted_once(changes: dict[str, Any], error: type[Exception]) -> None:
    tensor = ByHand(**changes)
    with pytest.raises(error):
        describe(tensor)
    assert tensor.deleted == 1


def test_errors_survive_pickling() -> None:
    import pickle

    error = errors.OutOfBlocksError("none left", needed=5, free=2, code="out_of_blocks.all_in_use")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.code, again.needed, again.free) == (
        "none left",
        "out_of_blocks.all_in_use",
        5,
        2,
    )
    assert isinstance(again, MemoryError)


def test_every_error_is_the_builtin_it_resembles() -> None:
    for name in errors.__all__:
        cls = getattr(errors, name)
        assert issubclass(cls, errors.InferAccelError)
        assert cls is errors.InferAccelError or len(cls.__bases__) == 2
        assert cls("message").code == cls.code
        assert cls("message", code="x.y").code == "x.y"


class TestMlDtypes:
    ml_dtypes = pytest.importorskip("ml_dtypes")

    @pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float8_e5m2"])
    def test_arrives_in_place(self, name: str) -> None:
        a = np.zeros((2, 3), getattr(self.ml_dtypes, name))
        for _ in range(2):  # the name is looked up once
            assert describe(a) == (name, [2, 3], [3, 1], address(a), True)

    def test_unserved_formats_are_refused(self) -> None:
        with pytest.raises(errors.DTypeError, match="float8_e4m3b11fnuz"):
            describe(np.zeros(2, self.ml_dtypes.float8_e4m3b11fnuz))


class TestTorch:
    torch = pytest.importorskip("torch")

    @pytest.mark.parametrize(
        "name",
        [
            "bfloat16",
            "float16",
            "float32",
            "float64",
            "float8_e4m3fn",
            "float8_e5m2",
            "int32",
            "uint8",
            "bool",
        ],
    )
    def test_arrives_in_place(self, name: str) -> None:
        t = self.torch.zeros(4, 6, dtype=getattr(self.torch, name))
        assert describe(t) == (name, [4, 6], [6, 1], t.data_ptr(), True)
        view = t.T[1::2]
        assert describe(view) == (name, [3, 4], [2, 6], view.data_ptr(), True)

    def test_gradients_are_refused_unless_off(self) -> None:
        torch = self.torch
        for t in (torch.zeros(2, requires_grad=True), torch.nn.Parameter(torch.zeros(2))):
            with pytest.raises(errors.GradientError, match="detach"):
                describe(t)
            assert describe(t.detach())[1] == [2]
            with torch.no_grad():
                assert describe(t)[1] == [2]

    def test_what_is_not_plain_memory_is_refused(self) -> None:
        torch = self.torch
        with pytest.raises(errors.LayoutError, match="strided"):
            describe(torch.zeros(3, 3).to_sparse())
        with pytest.raises(errors.LayoutError, match="meta"):
            describe(torch.zeros(3, device="meta"))
        with pytest.raises(errors.DTypeError):
            describe(torch.zeros(3, dtype=torch.complex64))
        with pytest.raises(errors.LayoutError, match="resolve_neg"):
            describe(torch.zeros(3, dtype=torch.complex64).conj().imag)

    def test_subclasses_are_asked_by_method(self) -> None:
        torch = self.torch

        class Tagged(torch.Tensor):  # type: ignore[name-defined]
            pass

        t = torch.arange(4).as_subclass(Tagged)
        assert describe(t) == ("int64", [4], [1], t.data_ptr(), True)
