"""Numbers that are not finite by numpy, and memory by numpy."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import numpy as np

from infer_accel._reference.kvcache.arguments import array_of, flat_of
from infer_accel.errors import ArgumentError, DTypeError, IdError, ShapeError, StorageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from infer_accel._typing import Tensor

#: Format → bytes of a number, and the bits that are all set in one that is not finite.
_MASKS = {
    "float64": (8, 0x7FF0_0000_0000_0000),
    "float32": (4, 0x7F80_0000),
    "float16": (2, 0x7C00),
    "bfloat16": (2, 0x7F80),
    "float8_e4m3fn": (1, 0x7F),
    "float8_e5m2": (1, 0x7C),
}


def scan_nonfinite(
    pages: Tensor,
    *,
    dtype: str | None = None,
    num_threads: int | None = None,
) -> npt.NDArray[np.bool_]:
    """Return which pages hold a NaN or an infinity."""
    if num_threads is not None and num_threads < 1:
        raise ArgumentError(f"num_threads={num_threads} came", code="argument.num_threads")
    if dtype is not None and dtype not in _MASKS:
        raise ArgumentError(f"dtype={dtype!r} came", code="argument.dtype")
    name = _format_of(pages)
    meant = dtype or name
    if meant not in _MASKS or name not in {meant, "uint8"}:
        raise DTypeError(f"pages of {name} came, to be read as {meant}", code="dtype.nonfinite")
    array = array_of(pages)
    if array.ndim == 0:
        raise ArgumentError("one value came; pages have a first axis", code="argument.axis")
    size, mask = _MASKS[meant]
    if array.size == 0:
        return np.zeros(len(array), np.bool_)
    if name == "uint8" and (not array[0].flags.c_contiguous or array[0].nbytes % size):
        raise ShapeError(f"pages of shape {array.shape} came, to be read as {meant}", code="shape.nonfinite")
    bits = np.ascontiguousarray(array).reshape(len(array), -1).view(f"u{size}")
    found: npt.NDArray[np.bool_] = (bits & np.array(mask, bits.dtype) == mask).any(axis=1)
    return found


def scrub(targets: Sequence[Tensor], ids: Tensor | Sequence[int], *, axis: int = 0) -> None:
    """Write zeros to the pages `ids` of every layer."""
    flat = flat_of(ids, "shape.ids")
    arrays = [array_of(target, writable=True) for target in targets]
    if axis < 0 and arrays:
        axis += arrays[0].ndim
    for array in arrays:
        if not 0 <= axis < array.ndim:
            raise ArgumentError(f"axis={axis} came for {array.ndim} dimensions", code="argument.axis")
        if any(not 0 <= page < array.shape[axis] for page in flat):
            raise IdError(f"pages {flat} came for {array.shape[axis]}", code="id.page")
    for array in arrays:
        np.moveaxis(array, axis, 0)[flat] = 0


def _format_of(pages: Tensor) -> str:
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(pages, torch.Tensor):
        return str(pages.dtype).removeprefix("torch.")
    if not isinstance(pages, np.ndarray):
        raise DTypeError(f"an object of type {type(pages).__name__} came", code="dtype.not_a_tensor")
    return str(pages.dtype.name)


class HostPool:
    """Memory for pages: an array of zeros."""

    def __init__(self, num_pages: int, page_bytes: int, *, prefault: bool = False) -> None:
        if num_pages < 0 or page_bytes < 0:
            raise ArgumentError("a count below zero came", code="argument.count")
        try:
            self._pages = np.zeros((num_pages, page_bytes), np.uint8)
        except (MemoryError, ValueError) as error:
            message = f"there is no memory for {num_pages} pages of {page_bytes} bytes"
            raise StorageError(message, code="storage.host_memory") from error
        if prefault:
            self._pages.fill(0)

    def pages(self) -> npt.NDArray[np.uint8]:
        """Return the pages."""
        return self._pages
