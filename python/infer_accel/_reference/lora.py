"""The specification of ``infer_accel.lora``: every rounding in the order in which it happens."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from infer_accel._reference._floats import dtype_name, fma, read, write
from infer_accel.errors import ArgumentError, DTypeError, ShapeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from infer_accel._typing import Tensor

    Float32 = NDArray[np.float32]

__all__ = ["apply_adapter", "merge_weights"]

#: Partial sums of a long inner product.
_PARTS = 16


def merge_weights(
    weight: Tensor,
    lora_A: Tensor,
    lora_B: Tensor,
    *,
    scaling: float = 1.0,
    out: Tensor | None = None,
    num_threads: int | None = None,
) -> None:
    """Add ``scaling · lora_B @ lora_A`` to `weight`, in place or into `out`."""
    factor = _settings(scaling, num_threads)
    target = weight if out is None else out
    base, a, b = (read(tensor, name) for tensor, name in _named(weight=weight, lora_A=lora_A, lora_B=lora_B))
    _fit("lora_A and lora_B", "rank", (a.shape[0], b.shape[1]))
    _fit("lora_A and weight", "in_features", (a.shape[1], base.shape[1]))
    _fit("lora_B and weight", "out_features", (b.shape[0], base.shape[0]))
    if tuple(target.shape) != base.shape:
        message = f"out has shape {tuple(target.shape)}, but weight {base.shape}: both must be the same"
        raise ShapeError(message, code="shape.mismatch")
    if dtype_name(target) != dtype_name(weight):
        message = f"out is of {dtype_name(target)}, but weight of {dtype_name(weight)}: both must be the same"
        raise DTypeError(message, code="dtype.mismatch")
    rank = a.shape[0]
    if rank == 0 or base.size == 0:
        if out is not None and base.size:
            _copy_bits(weight, out)
        return
    order = list(range(rank))
    if dtype_name(lora_A) == dtype_name(lora_B) == "bfloat16":
        # Of each pair of ranks the odd one first, as the instruction vdpbf16ps accumulates.
        order = [k ^ 1 if k ^ 1 < rank else k for k in order]
    total = np.zeros(base.shape, np.float32)
    for k in order:
        total = fma(b[:, k, None], a[None, k, :], total)
    write(target, fma(factor, total, base))


def apply_adapter(
    x: Tensor,
    lora_A: Tensor,
    lora_B: Tensor,
    *,
    scaling: float = 1.0,
    out: Tensor,
    num_threads: int | None = None,
) -> None:
    """Add ``scaling · (x @ lora_A.T) @ lora_B.T`` to `out`."""
    factor = _settings(scaling, num_threads)
    features, a, b, before = (
        read(tensor, name) for tensor, name in _named(x=x, lora_A=lora_A, lora_B=lora_B, out=out)
    )
    _fit("lora_A and lora_B", "rank", (a.shape[0], b.shape[1]))
    _fit("lora_A and x", "in_features", (a.shape[1], features.shape[1]))
    _fit("lora_B and out", "out_features", (b.shape[0], before.shape[1]))
    _fit("out and x", "tokens", (before.shape[0], features.shape[0]))
    if before.size == 0 or a.size == 0:
        return
    hidden = _inner_products(features, a)
    total = np.zeros(before.shape, np.float32)
    for k in range(a.shape[0]):
        total = fma(hidden[:, k, None], b[None, :, k], total)
    write(out, fma(factor, total, before))


def _inner_products(tokens: Float32, ranks: Float32) -> Float32:
    """Return the inner product of every token with every rank: feature j goes to partial sum j % 16."""
    count = tokens.shape[1]
    parts = np.zeros((tokens.shape[0], ranks.shape[0], _PARTS), np.float32)
    for first in range(0, count, _PARTS):
        width = min(_PARTS, count - first)
        columns = slice(first, first + width)
        parts[..., :width] = fma(ranks[None, :, columns], tokens[:, None, columns], parts[..., :width])
    with np.errstate(all="ignore"):
        for half in (8, 4, 2, 1):
            parts = parts[..., :half] + parts[..., half : 2 * half]
    return parts[..., 0]


def _settings(scaling: float, num_threads: int | None) -> Float32:
    with np.errstate(over="ignore"):
        factor = np.asarray(scaling, np.float64).astype(np.float32)
    if not math.isfinite(factor):
        message = f"scaling={scaling} came; it must be a finite number that float32 can hold"
        raise ArgumentError(message, code="argument.scaling")
    if num_threads is not None and num_threads < 1:
        message = f"num_threads={num_threads} came; pass 1 or more, or None for the default"
        raise ArgumentError(message, code="argument.num_threads")
    return factor


def _named(**tensors: Tensor) -> list[tuple[Tensor, str]]:
    for name, tensor in tensors.items():
        if len(tensor.shape) != 2:
            message = f"{name} has shape {tuple(tensor.shape)}; a matrix is needed"
            raise ShapeError(message, code="shape.matrix")
    return [(tensor, name) for name, tensor in tensors.items()]


def _fit(who: str, what: str, sizes: tuple[int, int]) -> None:
    if sizes[0] != sizes[1]:
        message = f"{who} must have the same {what}; {sizes[0]} and {sizes[1]} came"
        raise ShapeError(message, code="shape.mismatch")


def _copy_bits(source: Tensor, target: Tensor) -> None:
    """Copy a tensor of the same kind, NaN payloads included."""
    target[...] = source  # type: ignore[index]
