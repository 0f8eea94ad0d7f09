"""Several adapters made into one: what each method computes, in float64, rounded to float32 once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Float32 = NDArray[np.float32]
    Float64 = NDArray[np.float64]

__all__ = ["Term", "combine_module", "dare_mask"]

#: The step of SplitMix64, and the multipliers of its output function.
_STEP, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_WORD = 2**64 - 1


@dataclass(frozen=True)
class Term:
    """One adapter's part of a module: ``weight · scaling · lora_B @ lora_A``, and its place among the adapters."""

    adapter: int
    lora_A: Float32  # noqa: N815
    lora_B: Float32  # noqa: N815
    scaling: float
    weight: float

    @property
    def factor(self) -> float:
        """What the product is multiplied by."""
        return self.weight * self.scaling


def combine_module(
    module: str,
    terms: Sequence[Term],
    *,
    method: str,
    density: float = 1.0,
    rank: int | None = None,
    seed: int = 0,
) -> tuple[Float32, Float32]:
    """Return the combined ``lora_A`` and ``lora_B`` of a module; their scaling is 1."""
    if method == "cat":
        a = np.concatenate([(term.lora_A * np.float64(term.factor)).astype(np.float32) for term in terms])
        return a, np.concatenate([term.lora_B for term in terms], axis=1)
    if method == "svd":
        return _svd(terms, rank)
    matrices: list[Float32] = []
    for name in ("lora_A", "lora_B"):
        values, factors = [], []
        for term in terms:
            matrix = getattr(term, name).astype(np.float64)
            if method.startswith("dare") and density < 1.0:
                kept = dare_mask(
                    matrix.shape, density=density, seed=seed, module=module, matrix=name, adapter=term.adapter
                )
                matrix = np.where(kept, matrix / density, 0.0)
            elif method != "linear" and density < 1.0:
                matrix = _largest(matrix, density)
            values.append(matrix)
            root = np.sqrt(abs(term.factor))
            factors.append(-root if name == "lora_A" and term.factor < 0 else root)
        elects = method in {"ties", "dare_ties"}
        combined = _elected_mean(values, factors) if elects else _weighted_sum(values, factors)
        matrices.append(combined.astype(np.float32))
    return matrices[0], matrices[1]


def dare_mask(
    shape: tuple[int, int], *, density: float, seed: int, module: str, matrix: str, adapter: int
) -> NDArray[np.bool_]:
    """Return which elements of ``"lora_A"`` or ``"lora_B"`` DARE keeps."""
    digest = 0xCBF29CE484222325
    for byte in f"{module}\0{matrix}".encode():  # FNV-1a
        digest = (digest ^ byte) * 0x100000001B3 & _WORD
    key = _mix(seed ^ _mix(digest ^ _mix(adapter)))
    count = shape[0] * shape[1]
    with np.errstate(over="ignore"):
        state = np.uint64(key) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_STEP)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(_FIRST)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(_SECOND)
    numbers = ((state ^ (state >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    kept: NDArray[np.bool_] = numbers < density
    return kept.reshape(shape)


def _mix(state: int) -> int:
    state = (state ^ (state >> 30)) * _FIRST & _WORD
    state = (state ^ (state >> 27)) * _SECOND & _WORD
    return state ^ (state >> 31)


def _largest(matrix: Float64, density: float) -> Float64:
    """Return the matrix with zeros for all but the largest elements; of equal magnitudes the earlier stays."""
    order = np.argsort(-np.abs(matrix).reshape(-1), kind="stable")[: int(density * matrix.size)]
    result = np.zeros(matrix.size)
    result[order] = matrix.reshape(-1)[order]
    return result.reshape(matrix.shape)


def _weighted_sum(values: Sequence[Float64], factors: Sequence[float]) -> Float64:
    total = values[0] * factors[0]
    for value, factor in zip(values[1:], factors[1:], strict=True):
        total = total + value * factor
    return total


def _elected_mean(values: Sequence[Float64], factors: Sequence[float]) -> Float64:
    """Return the mean of the weighted elements whose own sign is that of the sum of all."""
    is_positive = _weighted_sum(values, [1.0] * len(values)) >= 0.0
    total, count = np.zeros(values[0].shape), np.zeros(values[0].shape)
    for value, factor in zip(values, factors, strict=True):
        agrees = np.where(is_positive, value > 0.0, value < 0.0)
        total += np.where(agrees, value * factor, 0.0)
        count += agrees
    return total / np.maximum(count, 1.0)


def _svd(terms: Sequence[Term], rank: int | None) -> tuple[Float32, Float32]:
    """Return the truncated decomposition of the whole sum; defined up to what a decomposition leaves open."""
    delta = np.zeros((terms[0].lora_B.shape[0], terms[0].lora_A.shape[1]))
    for term in terms:
        delta += term.factor * (term.lora_B.astype(np.float64) @ term.lora_A.astype(np.float64))
    left, values, right = np.linalg.svd(delta, full_matrices=False)
    ranks = [term.lora_A.shape[0] for term in terms]
    kept = min(max(ranks) if rank is None else rank, sum(ranks), *delta.shape)
    return right[:kept].astype(np.float32), (left[:, :kept] * values[:kept]).astype(np.float32)
