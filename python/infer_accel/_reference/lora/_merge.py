"""The specification of merging."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from infer_accel._reference._floats import dtype_name, fma, read, write
from infer_accel._reference.lora._arguments import fit, named, settings
from infer_accel.errors import DTypeError, ShapeError

if TYPE_CHECKING:
    from infer_accel._typing import Tensor

__all__ = ["merge_weights"]


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
    factor = settings(scaling, num_threads)
    target = weight if out is None else out
    base, a, b = (read(tensor, name) for tensor, name in named(weight=weight, lora_A=lora_A, lora_B=lora_B))
    fit("lora_A and lora_B", "rank", (a.shape[0], b.shape[1]))
    fit("lora_A and weight", "in_features", (a.shape[1], base.shape[1]))
    fit("lora_B and weight", "out_features", (b.shape[0], base.shape[0]))
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


def _copy_bits(source: Tensor, target: Tensor) -> None:
    """Copy a tensor of the same kind, NaN payloads included."""
    target[...] = source  # type: ignore[index]
