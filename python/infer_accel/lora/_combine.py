"""Several adapters made into one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from infer_accel import _backend
from infer_accel._numbers import real
from infer_accel.errors import ArgumentError
from infer_accel.lora._adapter import Adapter, wrap

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["CombineMethod", "combine"]

CombineMethod = Literal["linear", "cat", "svd", "ties", "dare_linear", "dare_ties", "magnitude_prune"]


def combine(
    adapters: Sequence[Adapter],
    weights: Sequence[float],
    *,
    method: CombineMethod,
    density: float | None = None,
    rank: int | None = None,
    seed: int | None = None,
    num_threads: int | None = None,
) -> Adapter:
    """Make one adapter out of several.

    The methods mean what they mean in PEFT's ``add_weighted_adapter``. With ``f = weight · scaling`` of each adapter:

    ``"cat"``
        All ranks side by side: exactly the sum ``Σ f · B @ A``, whose rank is the sum of the ranks.
    ``"svd"``
        The best approximation of that sum that has `rank` ranks, the largest of the adapters' by default.
    ``"linear"``
        ``A = Σ sign(f) √|f| · A`` and ``B = Σ √|f| · B``: no more ranks, but **not** the sum of the deltas, as the
        product of two sums has cross terms.
    ``"magnitude_prune"``
        As ``"linear"``, of matrices of which only the ``⌊density · elements⌋`` largest elements are kept.
    ``"ties"``
        As ``"magnitude_prune"``; then the sign of the sum over the adapters is elected at each place, and those
        elements that have it are averaged.
    ``"dare_linear"``, ``"dare_ties"``
        As ``"linear"`` and ``"ties"``, of matrices of which each element is kept with a probability of `density`, and
        divided by it.

    Parameters
    ----------
    adapters
        One or more. A module that only some of them change is combined from those. Every method but ``"cat"`` and
        ``"svd"`` needs equal ranks in each module.
    weights
        One finite number for each adapter; negative ones take an adapter away.
    method
        See above.
    density
        The share of elements that is kept, above 0 and at most 1; for the methods that drop some, which need it.
    rank
        For ``"svd"``: the ranks of the result, fewer where the sum has fewer.
    seed
        For ``"dare_linear"`` and ``"dare_ties"``, which need it: names the random choices. The same seed, adapters in
        the same order and module names make the same choices, on every machine.
    num_threads
        The most threads to use; None is ``INFER_ACCEL_NUM_THREADS``, or the processors of this process. The result
        does not depend on it.

    Returns
    -------
    Adapter
        In float32, with a scaling of 1: save it, merge it, serve it like any other.

    Raises
    ------
    ArgumentError
        ``argument.combine``: every setting that is wrong, missing, or of no use to the method.
    AdapterError
        ``adapter.combine``: every reason why the adapters do not go together: other bases, other ranks, DoRA,
        tensors that are replaced as a whole.

    Notes
    -----
    Everything is computed in float64 and rounded to float32 once, in one order: the result has the same bits on every
    machine. PEFT computes in float32: short of overflow its elements differ by at most ``(adapters + 4) · 2⁻²⁴`` times
    the sum of the magnitudes that are added up. Of ``"svd"`` the products ``B @ A`` are to be compared; ours is within
    ``2⁻²²`` of the largest singular value of the best one. An element that PEFT drops or elects by comparing rounded
    sums that are nearly equal may fall the other way.

    ``"svd"`` never makes the sum: it factors the thin matrices (QR) and decomposes what lies between them, of as many
    rows as there are ranks in all. The work is ``2 (in + out) · ranks²`` multiplications and about
    ``60 · ranks³``, where PEFT's is ``O(in · out · min(in, out))``.

    Examples
    --------
    >>> import numpy as np
    >>> from infer_accel.lora import Adapter, combine
    >>> matrices = np.ones((1, 3), np.float32), np.ones((2, 1), np.float32)
    >>> adapter = Adapter.from_arrays({"q_proj": matrices}, alpha=3)
    >>> both = combine([adapter, adapter], [1.0, -0.5], method="svd")
    >>> both.rank, both.scaling
    (1, 1.0)
    >>> np.round(both.layers[0].lora_B @ both.layers[0].lora_A, 3)
    array([[1.5, 1.5, 1.5],
           [1.5, 1.5, 1.5]], dtype=float32)

    References
    ----------
    Yadav et al., "TIES-Merging: Resolving Interference When Merging Models", 2023, arXiv:2306.01708. Yu et al.,
    "Language Models are Super Mario: Absorbing Abilities from Homologous Models as a Free Lunch", 2023,
    arXiv:2311.03099.
    """
    _check_type(adapters)
    combined = _backend.load("lora").combine(
        [adapter._core for adapter in adapters],  # noqa: SLF001 - a class of this package
        [real(weight) for weight in weights],
        method=method,
        density=density,
        rank=rank,
        seed=seed,
        num_threads=num_threads,
    )
    return wrap(combined)


def _check_type(adapters: Sequence[object]) -> None:
    """Refuse what is no adapter: a path, most often."""
    for index, thing in enumerate(adapters):
        if not isinstance(thing, Adapter):
            message = (
                f"adapters[{index}] is of type {type(thing).__name__}; load it first, by Adapter.load(path)"
            )
            raise ArgumentError(message, code="argument.combine")
