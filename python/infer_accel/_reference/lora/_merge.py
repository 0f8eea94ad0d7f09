"""The specification of merging and of undoing it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from infer_accel._reference._floats import (
    dtype_name,
    fma,
    read,
    require_writable,
    round_to,
    stored_bits,
    write_bits,
)
from infer_accel._reference._tensors import require_tensor
from infer_accel._reference.lora._arguments import fit, named, settings
from infer_accel._reference.lora._residue import (
    KERNEL_REVISION,
    Residue,
    adapter_digest,
    mix,
    tensor_digest,
)
from infer_accel.errors import ArgumentError, DTypeError, IntegrityError, ShapeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from infer_accel._typing import Tensor

    Float32 = NDArray[np.float32]

__all__ = ["merge_many", "merge_weights", "unmerge_weights"]

_STEP = 0x9E3779B97F4A7C15
#: Partial sums of the norm of a row.
_PARTS = 16


def merge_weights(
    weight: Tensor,
    lora_A: Tensor,
    lora_B: Tensor,
    *,
    scaling: float = 1.0,
    out: Tensor | None = None,
    rounding: str = "nearest",
    seed: int | None = None,
    magnitude: Tensor | None = None,
    return_residue: bool = False,
    num_threads: int | None = None,
) -> Residue | None:
    """Add ``scaling · lora_B @ lora_A`` to `weight`, in place or into `out`."""
    factor = settings(scaling, num_threads)
    _check_rounding(rounding, seed)
    target = weight if out is None else out
    base = _checked(weight, lora_A, lora_B, target)
    if magnitude is not None:
        require_tensor(magnitude)
    _require_own(target, weight, lora_A, lora_B, magnitude)
    if magnitude is not None and return_residue:
        message = "a merge with magnitudes (DoRA) has no residue: keep the whole weight instead"
        raise ArgumentError(message, code="residue.magnitude")
    kind = dtype_name(target)
    before, kind_before = stored_bits(weight).copy(), dtype_name(weight)
    is_nothing = lora_A.shape[0] == 0 and magnitude is None
    sums = inner_products(lora_A, lora_B)
    values = base if lora_A.shape[0] == 0 else fma(factor, sums, base)
    if magnitude is not None:
        values = _scaled(values, magnitude)
    if seed is not None:
        values = dither(values, kind, seed)
    # Where nothing is added and nothing converted bits stay, NaN payloads included.
    write_bits(target, before if is_nothing and kind == kind_before else round_to(values, kind))
    if not return_residue:
        return None
    restored = _restored(target, kind_before, lora_A, factor, sums)
    differences = (before - restored).astype(np.uint32).reshape(-1)
    indices = np.flatnonzero(differences)
    return Residue(
        kernel_revision=KERNEL_REVISION,
        base_dtype=kind_before,
        merged_dtype=kind,
        shape=(base.shape[0], base.shape[1]),
        adapter_digest=adapter_digest([(lora_A, lora_B, factor)]),
        merged_digest=tensor_digest(target),
        indices=tuple(indices.tolist()),
        differences=tuple(differences[indices].tolist()),
    )


def unmerge_weights(
    weight: Tensor,
    lora_A: Tensor,
    lora_B: Tensor,
    *,
    scaling: float = 1.0,
    residue: Residue,
    out: Tensor | None = None,
    num_threads: int | None = None,
) -> None:
    """Give back the bits that `weight` had before a merge, in place or into `out`."""
    factor = settings(scaling, num_threads)
    target = weight if out is None else out
    _checked(weight, lora_A, lora_B, target)
    _require_own(target, weight, lora_A, lora_B)
    if residue.kernel_revision != KERNEL_REVISION:
        message = (
            f"the residue was made by kernel revision {residue.kernel_revision}, this is {KERNEL_REVISION}"
        )
        raise IntegrityError(message, code="residue.revision")
    if residue.adapter_digest != adapter_digest([(lora_A, lora_B, factor)]):
        raise IntegrityError("other adapters than those that were merged", code="residue.adapter")
    if residue.shape != tuple(weight.shape):
        message = (
            f"a weight of shape {tuple(weight.shape)} came, but the residue is of one of {residue.shape}"
        )
        raise ShapeError(message, code="residue.shape")
    formats = (dtype_name(target), dtype_name(weight))
    if formats != (residue.base_dtype, residue.merged_dtype):
        message = f"undoing from {formats[1]} to {formats[0]} was asked for, but the merge was another"
        raise DTypeError(message, code="residue.dtype")
    if tensor_digest(weight) != residue.merged_digest:
        raise IntegrityError("the weight is not the merged one", code="residue.weight")
    bits = _restored(weight, formats[0], lora_A, factor, inner_products(lora_A, lora_B)).copy()
    indices, differences = residue.entries()
    bits.reshape(-1)[indices] += differences.astype(bits.dtype)
    write_bits(target, bits)


def merge_many(
    weights: Sequence[Tensor],
    adapters: Sequence[tuple[Tensor, Tensor, float]],
    *,
    num_threads: int | None = None,
) -> None:
    """Add to each weight the product of its adapter, in place."""
    for weight, (lora_A, lora_B, scaling) in zip(weights, adapters, strict=True):
        settings(scaling, num_threads)
        _checked(weight, lora_A, lora_B, weight)
        _require_own(weight, lora_A, lora_B)
    for weight, (lora_A, lora_B, scaling) in zip(weights, adapters, strict=True):
        merge_weights(weight, lora_A, lora_B, scaling=scaling)


def inner_products(lora_A: Tensor, lora_B: Tensor) -> Float32:
    """Return ``lora_B @ lora_A``, each element one chain of fused multiply-adds."""
    a, b = read(lora_A, "lora_A"), read(lora_B, "lora_B")
    rank = a.shape[0]
    order = list(range(rank))
    if dtype_name(lora_A) == dtype_name(lora_B) == "bfloat16":
        # Of each pair of ranks the odd one first, as the instruction vdpbf16ps accumulates.
        order = [k ^ 1 if k ^ 1 < rank else k for k in order]
    total = np.zeros((b.shape[0], a.shape[1]), np.float32)
    for k in order:
        total = fma(b[:, k, None], a[None, k, :], total)
    return total


def dither(values: Float32, dtype: str, seed: int, first_row: int = 0) -> Float32:
    """Round to a neighbour in a format, up or down by chance."""
    if dtype == "float32" or values.size == 0:
        return values
    draws = np.stack([_draws(seed, first_row + row, values.shape[1]) for row in range(values.shape[0])])
    with np.errstate(all="ignore"):
        if dtype == "bfloat16":
            moved = (values.view(np.uint32) + (draws >> 16) & 0xFFFF0000).view(np.float32)
        else:
            size = np.abs(values)
            normal = (size.view(np.uint32) + (draws >> 19) & 0xFFFFE000).view(np.float32)
            # Below 2⁻¹⁴ the steps of float16 are all 2⁻²⁴; they are cut into 2¹³.
            fine = (np.minimum(size, np.float32(2.0**-14)) * np.float32(2.0**37)).astype(np.int64) + (
                draws >> 19
            )
            subnormal = (fine >> 13).astype(np.float32) * np.float32(2.0**-24)
            moved = np.copysign(np.where(size < 2.0**-14, subnormal, normal), values)
    return np.where(np.isnan(values), values, moved)


def _draws(seed: int, row: int, columns: int) -> NDArray[np.uint32]:
    """Return a random number for each column of a row; it depends on seed, row and column alone."""
    key = mix(mix(seed) + (row + 1) * _STEP & (1 << 64) - 1)
    low, high = np.uint32(key & 0xFFFFFFFF), np.uint32(key >> 32)
    with np.errstate(over="ignore"):
        mixed = (np.arange(columns, dtype=np.uint32) ^ low) * np.uint32(0x7FEB352D)
        mixed = (mixed ^ mixed >> np.uint32(15)) + high
        return mixed * np.uint32(0x846CA68B)


def _scaled(values: Float32, magnitude: Tensor) -> Float32:
    """Give each row its magnitude: DoRA."""
    shape = tuple(magnitude.shape)
    if shape not in {(values.shape[0],), (values.shape[0], 1)}:
        message = f"magnitude has shape {shape}; a number for each of {values.shape[0]} rows is needed"
        raise ShapeError(message, code="shape.mismatch")
    parts = np.zeros((values.shape[0], _PARTS), np.float32)
    for first in range(0, values.shape[1], _PARTS):
        some = values[:, first : first + _PARTS]
        parts[:, : some.shape[1]] = fma(some, some, parts[:, : some.shape[1]])
    with np.errstate(all="ignore"):
        for half in (8, 4, 2, 1):
            parts = parts[:, :half] + parts[:, half : 2 * half]
        norms = np.sqrt(parts, dtype=np.float32)
        return np.multiply(read(magnitude, "magnitude").reshape(-1, 1) / norms, values, dtype=np.float32)


def _restored(merged: Tensor, dtype: str, lora_A: Tensor, factor: Float32, sums: Float32) -> NDArray[Any]:
    """Return the bits of ``round(W′ − Δ)``."""
    if lora_A.shape[0] == 0:
        if dtype_name(merged) == dtype:
            return stored_bits(merged)
        return round_to(read(merged, "weight"), dtype)
    return round_to(fma(-factor, sums, read(merged, "weight")), dtype)


def _checked(weight: Tensor, lora_A: Tensor, lora_B: Tensor, target: Tensor) -> Float32:
    """Return the weight in float32 after a look at all shapes."""
    base, a, b = (read(tensor, name) for tensor, name in named(weight=weight, lora_A=lora_A, lora_B=lora_B))
    fit("lora_A and lora_B", "rank", (a.shape[0], b.shape[1]))
    fit("lora_A and weight", "in_features", (a.shape[1], base.shape[1]))
    fit("lora_B and weight", "out_features", (b.shape[0], base.shape[0]))
    require_tensor(target)
    if dtype_name(target) not in {"float32", "float16", "bfloat16"}:
        message = f"out is of {dtype_name(target)}; allowed: float32, float16, bfloat16: convert it first"
        raise DTypeError(message, code="dtype.unsupported")
    if tuple(target.shape) != base.shape:
        message = f"out has shape {tuple(target.shape)}, but weight {base.shape}: both must be the same"
        raise ShapeError(message, code="shape.mismatch")
    return base


def _require_own(target: Tensor, *sources: Tensor | None) -> None:
    """Refuse a target that may not be written, or whose memory is not its own; it may be a source itself."""
    require_writable(target, *(source for source in sources if source is not None and source is not target))


def _check_rounding(rounding: str, seed: int | None) -> None:
    if rounding not in {"nearest", "stochastic"}:
        message = f'rounding={rounding!r} came; allowed: "nearest", "stochastic"'
        raise ArgumentError(message, code="argument.rounding")
    if (rounding == "stochastic") != (seed is not None):
        message = f"rounding={rounding!r} came with seed={seed}; a seed belongs to stochastic rounding, and to it alone"
        raise ArgumentError(message, code="argument.seed")
