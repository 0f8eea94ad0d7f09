"""Merging the layers of a model in one call."""

from __future__ import annotations

from typing import TYPE_CHECKING

from infer_accel import _backend
from infer_accel.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from infer_accel._typing import Tensor, TensorT

__all__ = ["merge_many"]

_core = _backend.load("lora")


def merge_many(
    weights: Sequence[TensorT],
    adapters: Sequence[tuple[Tensor, Tensor, float]],
    *,
    num_threads: int | None = None,
) -> list[TensorT]:
    """Add to each of many weights the product of its adapter, in place.

    The bits are those of one :func:`merge_weights` after another. All layers go in one call, whose threads run
    over the tiles of all of them: small layers keep them busy too, and they meet once, at the end.

    Parameters
    ----------
    weights
        The weights, each ``[out_features, in_features]`` of float32, float16 or bfloat16, any strides. Each is
        written, and may come once.
    adapters
        For each weight ``(lora_A, lora_B, scaling)``: see :func:`merge_weights`.
    num_threads
        The most threads to use; None is ``INFER_ACCEL_NUM_THREADS``, or the processors of this process. The
        result does not depend on it.

    Returns
    -------
    list[TensorT]
        The weights.

    Raises
    ------
    ArgumentError
        Lists of different lengths, a scaling that is not finite in float32, a `num_threads` below 1.
    ShapeError, DTypeError, ReadOnlyError, OverlapError, LayoutError, GradientError, DeviceError, BackendError
        As :func:`merge_weights`; the message says which layer. Weights must not share memory with each other
        nor with any adapter. Views whose elements interleave, such as two ranges of columns of one array, count
        as sharing; ranges of rows do not.

    Notes
    -----
    CUDA tensors, all on one GPU, are merged in one launch for each combination of formats; see :func:`merge_weights`.

    Nothing is written when an error is raised. The work is that of all merges; the memory does not grow with the
    weights.

    Examples
    --------
    >>> import numpy as np
    >>> qkv = np.zeros((6, 2), np.float32)
    >>> ones = np.ones((1, 2), np.float32), np.ones((2, 1), np.float32)
    >>> _ = merge_many([qkv[0:2], qkv[4:6]], [(*ones, 0.5), (*ones, 2.0)])
    >>> qkv[:, 0]
    array([0.5, 0.5, 0. , 0. , 2. , 2. ], dtype=float32)
    """
    weights, adapters = list(weights), list(adapters)
    if len(weights) != len(adapters):
        message = f"{len(weights)} weights came with {len(adapters)} adapters; pass one (lora_A, lora_B, scaling) each"
        raise ArgumentError(message, code="argument.layers")
    if weights and getattr(weights[0], "is_cuda", False):
        from infer_accel.kernels import merge_weights as cuda  # noqa: PLC0415 - with the first CUDA tensor, not before

        cuda.merge_many(weights, adapters)
        return weights
    _core.merge_many(weights, adapters, num_threads=num_threads)
    return weights
