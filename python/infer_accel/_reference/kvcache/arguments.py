"""What comes in, as numpy arrays and plain lists."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import numpy as np

from infer_accel._reference._tensors import require_tensor
from infer_accel.errors import ArgumentError, DTypeError, IdError, ReadOnlyError, ShapeError

if TYPE_CHECKING:
    import numpy.typing as npt


_DIGEST_BYTES = 32
_MAX_KEY_BYTES = 64


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
    try:
        return array.astype(np.int64)
    except MemoryError:
        message = f"{array.size} ids came, and there is no memory for a copy of them"
        raise ArgumentError(message, code="argument.memory") from None


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
    require_tensor(tensor)
    array = tensor
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(tensor, torch.Tensor):
        integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
        array = tensor.detach().view(integers[tensor.element_size()]).numpy()
    if not isinstance(array, np.ndarray):
        message = f"an object of type {type(tensor).__name__} came"
        raise DTypeError(message, code="dtype.not_a_tensor")
    if writable and not array.flags.writeable:
        raise ReadOnlyError("a read-only tensor came as a target", code="read_only")
    return array


def page_keys(keys: object) -> list[bytes]:
    """Return the keys of pages: rows of uint8, or `bytes` of one length."""
    rows: list[bytes]
    if isinstance(keys, list | tuple):
        if not all(isinstance(row, bytes) for row in keys) or len({len(row) for row in keys}) > 1:
            message = (
                "something else than keys of one length came; pass bytes, or uint8 of shape [n, key_bytes]"
            )
            raise DTypeError(message, code="dtype.bytes")
        rows = list(keys)
    else:
        table = np.asarray(keys)
        if table.dtype != np.uint8:
            raise DTypeError(f"{table.dtype} came where bytes are expected", code="dtype.bytes")
        if table.ndim != 2 and table.shape != (0,):
            raise ShapeError(
                f"keys of shape {table.shape} came; pass one row for each page", code="shape.keys"
            )
        rows = [row.tobytes() for row in table]
    if rows and not 1 <= len(rows[0]) <= _MAX_KEY_BYTES:
        message = f"keys of {len(rows[0])} bytes came; 1 to {_MAX_KEY_BYTES} are allowed"
        raise ShapeError(message, code="shape.keys")
    return rows


def page_rows(pages: object, count: int, page_bytes: int, *, writable: bool = False) -> npt.NDArray[np.uint8]:
    """Return pages as rows of bytes, without a copy."""
    array = array_of(pages, writable=writable)
    if array.ndim == 0:
        raise ShapeError("one value came where pages are expected", code="shape.stored_pages")
    if len(array) != count:
        raise ShapeError(f"{len(array)} pages came for {count} keys", code="shape.page_count")
    if count == 0:
        return np.empty((0, page_bytes), np.uint8)
    inner = array[0]
    if inner.nbytes != page_bytes or not inner.flags.c_contiguous:
        message = f"pages of {array.dtype} {array.shape} came; {page_bytes} bytes each are needed, without gaps inside"
        raise ShapeError(message, code="shape.stored_pages")
    return array.reshape(count, -1).view(np.uint8)
