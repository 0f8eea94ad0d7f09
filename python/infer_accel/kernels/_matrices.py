"""Matrices of an adapter and of a weight: checked, and described for the kernels."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from infer_accel._numbers import real
from infer_accel.errors import ArgumentError, DeviceError, DTypeError, LayoutError, OverlapError, ShapeError
from infer_accel.kernels import _device
from infer_accel.kernels._arguments import extent_bytes, strided

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

__all__ = [
    "FORMATS",
    "factor_bits",
    "matrix",
    "refuse_shared",
    "require_equal",
    "require_unlike_rows",
    "steps",
]

#: Number formats, as the kernels number them.
FORMATS = {"float32": 0, "float16": 1, "bfloat16": 2, "float8_e4m3fn": 3, "float8_e5m2": 4}

_PLAIN = ("float32", "float16", "bfloat16")


def matrix(
    tensor: object, name: str, *, written: bool = False, allowed: Sequence[str] = _PLAIN
) -> tuple[torch.Tensor, int]:
    """Return a matrix that lies where kernels work, and the number of its format.

    Raises
    ------
    ShapeError, DTypeError, DeviceError, LayoutError, GradientError, ReadOnlyError
        It is something else.
    """
    checked = strided(tensor, name, written=written)
    if checked.dim() != 2:
        message = f"{name} has the shape {tuple(checked.shape)}; a matrix is needed"
        raise ShapeError(message, code="shape.matrix")
    kind = str(checked.dtype).removeprefix("torch.")
    if kind not in allowed:
        message = f"{name} is of {kind}; allowed on CUDA: {', '.join(allowed)}: convert it first"
        raise DTypeError(message, code="dtype.unsupported")
    if not _device.is_served(checked):
        message = f"{name} lies on {checked.device} beside CUDA tensors; move it there first"
        raise DeviceError(message, code="device.mixed")
    return checked, FORMATS[kind]


def require_equal(who: str, what: str, one: int, other: int) -> None:
    """Refuse matrices that do not fit each other."""
    if one != other:
        message = f"{who} must have the same {what}; {one} and {other} came"
        raise ShapeError(message, code="shape.mismatch")


def factor_bits(scaling: float) -> int:
    """Return the bits of a scaling in float32.

    Raises
    ------
    ArgumentError
        It is not finite there.
    """
    with np.errstate(over="ignore"):
        factor = np.float64(real(scaling)).astype(np.float32)
    if not math.isfinite(factor):
        message = f"scaling={scaling} came; it must be a finite number that float32 can hold"
        raise ArgumentError(message, code="argument.scaling")
    return int(factor.view(np.uint32))


def steps(tensor: torch.Tensor) -> tuple[int, int]:
    """Return the strides of a matrix; 1 for an axis of one entry, whose stride says nothing."""
    row, column = tensor.stride()
    return (1 if tensor.shape[0] == 1 else int(row)), (1 if tensor.shape[1] == 1 else int(column))


def require_unlike_rows(tensor: torch.Tensor, name: str) -> None:
    """Refuse a target in which two indices name one element."""
    (rows, columns), (down, across) = tensor.shape, tensor.stride()
    axes = sorted((stride, size) for stride, size in ((down, rows), (across, columns)) if size > 1)
    covered = 1
    for stride, size in axes:
        if stride < covered and tensor.numel():
            message = f"two indices of {name} name one element; clone() it first"
            raise LayoutError(message, code="layout.self_overlap")
        covered = stride * (size - 1) + covered


def refuse_shared(
    written: Sequence[tuple[str, torch.Tensor]], read: Sequence[tuple[str, torch.Tensor]], code: str
) -> None:
    """Refuse targets whose ranges of addresses meet each other, or what is read.

    Raises
    ------
    OverlapError
        They do.
    """
    spans = sorted(
        (tensor.data_ptr(), tensor.data_ptr() + extent_bytes(tensor), is_written, name)
        for is_written, named in ((True, written), (False, read))
        for name, tensor in named
        if tensor.numel()
    )
    # The furthest end so far of all spans, and of those that are written.
    reached: list[tuple[int, str]] = [(0, ""), (0, "")]
    for begin, end, is_written, name in spans:
        last, other = reached[0] if is_written else reached[1]
        if begin < last:
            message = (
                f"{name} shares memory with {other}, and one of them is written; pass a copy of one of them"
            )
            raise OverlapError(message, code=code)
        reached[0] = max(reached[0], (end, name))
        if is_written:
            reached[1] = max(reached[1], (end, name))
