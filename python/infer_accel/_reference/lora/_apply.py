"""The specification of applying."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from infer_accel._reference._floats import fma, read, write
from infer_accel._reference.lora._arguments import fit, named, settings

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from infer_accel._typing import Tensor

    Float32 = NDArray[np.float32]

__all__ = ["apply_adapter"]

#: Partial sums of a long inner product.
_PARTS = 16


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
    factor = settings(scaling, num_threads)
    features, a, b, before = (
        read(tensor, name) for tensor, name in named(x=x, lora_A=lora_A, lora_B=lora_B, out=out)
    )
    fit("lora_A and lora_B", "rank", (a.shape[0], b.shape[1]))
    fit("lora_A and x", "in_features", (a.shape[1], features.shape[1]))
    fit("lora_B and out", "out_features", (b.shape[0], before.shape[1]))
    fit("out and x", "tokens", (before.shape[0], features.shape[0]))
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
