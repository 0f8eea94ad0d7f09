"""Merging an adapter into a weight."""

from __future__ import annotations

from typing import TYPE_CHECKING

from infer_accel import _backend

if TYPE_CHECKING:
    from infer_accel._typing import Tensor, TensorT

__all__ = ["merge_weights"]

_core = _backend.load("lora")


def merge_weights(
    weight: TensorT,
    lora_A: Tensor,
    lora_B: Tensor,
    *,
    scaling: float = 1.0,
    out: TensorT | None = None,
    num_threads: int | None = None,
) -> TensorT:
    """Add ``scaling · lora_B @ lora_A`` to a weight, in place.

    The sum is accumulated in float32 in one order for every processor and number of threads and rounded once,
    to the weight's own format; no delta-sized array is made.

    Parameters
    ----------
    weight
        ``[out_features, in_features]`` of float32, float16 or bfloat16, any strides; a transposed view
        (``fan_in_fan_out``) is as fast as a plain one. Written, unless `out` is given.
    lora_A
        ``[rank, in_features]`` of float32, float16 or bfloat16.
    lora_B
        ``[out_features, rank]`` of float32, float16 or bfloat16; its format may differ from `lora_A`'s.
    scaling
        What the product is multiplied by: ``alpha / rank``, or ``alpha / sqrt(rank)``. Rounded to float32
        once.
    out
        Where the result goes instead: shape and dtype of `weight`, and memory of its own (or `weight`
        itself).
    num_threads
        The most threads to use; None is ``INFER_ACCEL_NUM_THREADS``, or the processors of this process. The
        result does not depend on it.

    Returns
    -------
    TensorT
        The object that was written: `weight`, or `out` where it is given.

    Raises
    ------
    ShapeError, DTypeError
        Shapes or formats that do not fit; the message says which.
    ReadOnlyError, OverlapError, LayoutError
        A target that may not be written, that shares memory with an argument that is read, or that names an
        element twice.
    GradientError, DeviceError
        A torch tensor whose gradient is being recorded, or that lies on another device.
    ArgumentError
        A `scaling` that is not finite in float32, or a `num_threads` below 1.

    Notes
    -----
    ``sum = 0``, then ``sum = fma(lora_B[i, k], lora_A[k, j], sum)`` for each `k`, then
    ``weight[i, j] = round(fma(scaling, sum, weight[i, j]))``, to nearest even. `k` ascends, except between
    two bfloat16 matrices: 1, 0, 3, 2, … there, the order of the instruction ``vdpbf16ps``. Subnormal numbers
    are kept. A result that is not a number is the positive quiet NaN. Zeros follow IEEE 754: −0.0 plus a
    delta of +0.0 is +0.0. With rank 0 every bit stays.

    Nothing is written when an error is raised. The work is ``out · in · rank`` multiplications and one pass
    over the weight; the memory does not grow with the weight.

    Examples
    --------
    >>> import numpy as np
    >>> weight = np.array([[1, 2], [3, 4]], np.float32)
    >>> lora_A = np.array([[1, 10]], np.float32)
    >>> lora_B = np.array([[0.5], [-0.5]], np.float32)
    >>> merge_weights(weight, lora_A, lora_B, scaling=2.0)
    array([[ 2., 12.],
           [ 2., -6.]], dtype=float32)

    References
    ----------
    Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021, arXiv:2106.09685.
    """
    _core.merge_weights(weight, lora_A, lora_B, scaling=scaling, out=out, num_threads=num_threads)
    return weight if out is None else out
