"""Applying an adapter to activations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from infer_accel import _backend

if TYPE_CHECKING:
    from infer_accel._typing import Tensor, TensorT

__all__ = ["apply_adapter"]

_core = _backend.load("lora")


def apply_adapter(
    x: Tensor,
    lora_A: Tensor,
    lora_B: Tensor,
    *,
    scaling: float = 1.0,
    out: TensorT,
    num_threads: int | None = None,
) -> TensorT:
    """Add ``scaling · (x @ lora_A.T) @ lora_B.T`` to the output of a layer.

    What lies between the two products stays in float32, and `out` is rounded once. The result of a token has
    the same bits whatever batch it comes in, whatever the number of threads.

    Parameters
    ----------
    x
        ``[tokens, in_features]`` of float32, float16 or bfloat16, any strides.
    lora_A
        ``[rank, in_features]`` of float32, float16 or bfloat16.
    lora_B
        ``[out_features, rank]`` of float32, float16 or bfloat16.
    scaling
        What the product is multiplied by: ``alpha / rank``, or ``alpha / sqrt(rank)``. Rounded to float32
        once.
    out
        ``[tokens, out_features]`` of float32, float16 or bfloat16, any strides: what the layer itself
        computed. Added to. The formats of the four may differ.
    num_threads
        The most threads to use; None is ``INFER_ACCEL_NUM_THREADS``, or the processors of this process.

    Returns
    -------
    TensorT
        `out` itself.

    Raises
    ------
    ShapeError, DTypeError
        Shapes or formats that do not fit; the message says which.
    ReadOnlyError, OverlapError, LayoutError
        An `out` that may not be written, that shares memory with another argument, or that names an element
        twice.
    GradientError, DeviceError
        A torch tensor whose gradient is being recorded, or that lies on another device.
    ArgumentError
        A `scaling` that is not finite in float32, or a `num_threads` below 1.

    Notes
    -----
    Let ``m = |scaling| · |x| @ |lora_A|.T @ |lora_B|.T``. Short of overflow and underflow, the result differs
    from the exact one, ``y``, by at most ``(⌈in_features / 16⌉ + rank + 6) · 2⁻²⁴ · 1.01 m + (u + 2⁻²³) ·
    |y|``, where ``u`` is 2⁻²⁴, 2⁻¹¹ or 2⁻⁸ for an `out` of float32, float16 or bfloat16. The order of
    accumulation is part of ``infer_accel.reference.lora``.

    Nothing is written when an error is raised. The work is ``tokens · rank · (in + out)`` multiplications.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.array([[1, 2]], np.float32)
    >>> out = np.full((1, 3), 0.5, np.float32)
    >>> apply_adapter(x, np.ones((1, 2), np.float32), np.array([[1], [0], [-1]], np.float32), out=out)
    array([[ 3.5,  0.5, -2.5]], dtype=float32)
    """
    _core.apply_adapter(x, lora_A, lora_B, scaling=scaling, out=out, num_threads=num_threads)
    return out
