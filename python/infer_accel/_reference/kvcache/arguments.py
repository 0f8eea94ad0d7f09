"""What comes in, as numpy arrays and plain lists."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import numpy as np

from infer_accel.errors import DTypeError, GradientError, IdError, ReadOnlyError, ShapeError

if TYPE_CHECKING:
    import numpy.typing as npt


_DIGEST_BYTES = 32


def integers_of(values: object, code: str) -> npt.NDArray[np.int64]:
    array = np.asarray(values)
    if array.size == 0:
        return array.astype(np.int64)
    if array.dtype.kind == "O" and array.ndim == 1 and all(isinstance(value, int) for value in array.flat):
        raise IdError("an id beyond 64 bits came", code="id.range")
    if array.dtype.kind not in "iu":
        raise DTypeError(f"{array.dtype} came where ids are expected", code=code)
    if array.dtype.kind == "u" and int(array.max()) >= 1 << 63:
        raise IdError("an id above 2^63 - 1 came", code="id.range")
    return array.astype(np.int64)


def flat_of(values: object, code: str = "shape.handles") -> list[int]:
    array = integers_of(values, "dtype.ids")
    if array.ndim != 1:
        raise ShapeError(f"a table of shape {array.shape} came; pass one dimension", code=code)
    flat: list[int] = array.tolist()
    return flat


def rows_of(hashes: object, digest_bytes: int = _DIGEST_BYTES) -> list[bytes]:
    if isinstance(hashes, list | tuple):
        if not all(isinstance(row, bytes) for row in hashes) or len({len(row) for row in hashes}) > 1:
            raise DTypeError("something else than hashes of one length came", code="dtype.bytes")
        table = np.frombuffer(b"".join(hashes), np.uint8).reshape(len(hashes), -1) if hashes else np.empty(0)
    else:
        table = np.asarray(hashes)
        if table.dtype != np.uint8:
            raise DTypeError(f"{table.dtype} came where bytes are expected", code="dtype.bytes")
    if table.shape != (0,) and table.shape[1:] != (digest_bytes,):
        raise ShapeError(f"hashes of shape {table.shape} came", code="shape.hashes")
    return [row.tobytes() for row in table]


def array_of(tensor: object, *, writable: bool = False) -> npt.NDArray[np.generic]:
    """Return the tensor's memory as an array of numpy, in integers where numpy has no such floats."""
    array = tensor
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(tensor, torch.Tensor):
        if tensor.requires_grad and torch.is_grad_enabled():
            raise GradientError("a tensor with requires_grad=True came", code="gradient.recorded")
        integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
        array = tensor.detach().view(integers[tensor.element_size()]).numpy()
    if not isinstance(array, np.ndarray):
        message = f"an object of type {type(tensor).__name__} came"
        raise DTypeError(message, code="dtype.not_a_tensor")
    if writable and not array.flags.writeable:
        raise ReadOnlyError("a read-only tensor came as a target", code="read_only")
    return array
