"""What all of them check first."""

from __future__ import annotations

import math
from operator import index
from typing import TYPE_CHECKING

import numpy as np

from infer_accel._numbers import real
from infer_accel._reference._tensors import require_tensor
from infer_accel.errors import ArgumentError, ShapeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from infer_accel._typing import Tensor

    Float32 = NDArray[np.float32]

__all__ = ["fit", "named", "settings"]


def settings(scaling: float, num_threads: int | None) -> Float32:
    with np.errstate(over="ignore"):
        factor = np.asarray(real(scaling), np.float64).astype(np.float32)
    if not math.isfinite(factor):
        message = f"scaling={scaling} came; it must be a finite number that float32 can hold"
        raise ArgumentError(message, code="argument.scaling")
    if num_threads is not None and not 1 <= index(num_threads) < 1 << 64:
        message = f"num_threads={num_threads} came; pass 1 or more, or None for the default"
        raise ArgumentError(message, code="argument.num_threads")
    return factor


def named(**tensors: Tensor) -> list[tuple[Tensor, str]]:
    for name, tensor in tensors.items():
        require_tensor(tensor)
        if len(tensor.shape) != 2:
            message = f"{name} has shape {tuple(tensor.shape)}; a matrix is needed"
            raise ShapeError(message, code="shape.matrix")
    return [(tensor, name) for name, tensor in tensors.items()]


def fit(who: str, what: str, sizes: tuple[int, int]) -> None:
    if sizes[0] != sizes[1]:
        message = f"{who} must have the same {what}; {sizes[0]} and {sizes[1]} came"
        raise ShapeError(message, code="shape.mismatch")
