"""Combining: the best adapter of a given rank for the sum of two."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np

from infer_accel.bench.harness import Case, Contender, cost
from infer_accel.lora import Adapter, combine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

    from numpy.typing import NDArray

    from infer_accel.bench.harness import Bench

    Matrices = tuple[NDArray[np.float32], NDArray[np.float32]]

__all__ = ["cases"]

_MODULE = "q_proj"
_RANK = 16
_WEIGHTS = (0.7, 0.5)
#: Of the distance that the best approximation leaves: float32 factors reach it within this.
_TOLERANCE = 1e-3


def cases(bench: Bench) -> Iterator[Case]:
    """Yield the rows of combining."""
    # The rivals decompose the whole sum: at 4096 × 4096 one call takes minutes.
    size = 512 if bench.quick else 1024
    rng = np.random.default_rng(0)
    matrices = [_matrices(rng, size) for _ in _WEIGHTS]
    adapters = [Adapter.from_arrays({_MODULE: pair}, alpha=_RANK) for pair in matrices]
    wanted = np.zeros((size, size))
    for weight, (a, b) in zip(_WEIGHTS, matrices, strict=True):
        wanted += weight * (b.astype(np.float64) @ a)
    best = float(np.sqrt(np.sum(np.linalg.svd(wanted, compute_uv=False)[_RANK:] ** 2)))

    def check(product: NDArray[np.float64]) -> None:
        off = float(np.linalg.norm(wanted - product))
        np.testing.assert_array_less(off, best * (1 + _TOLERANCE))

    def check_ours(combined: object) -> None:
        layer = cast("Adapter", combined).layers[0]
        check(layer.lora_B.astype(np.float64) @ layer.lora_A.astype(np.float64))

    def check_numpy(factors: object) -> None:
        a, b = cast("tuple[NDArray[np.float64], NDArray[np.float64]]", factors)
        check(b @ a)

    peers = [Contender("numpy", lambda: _numpy_svd(matrices), check=check_numpy)]
    torch, peft = bench.rival("torch"), bench.rival("peft")
    if torch is not None and peft is not None:
        peers.append(_peft_svd(torch, peft, matrices, check))
    yield Case(
        name=f"combine svd, 2 adapters of rank {_RANK} to {_RANK}, {size}×{size} float32, 1 thread",
        measure=cost("ms", 1e-3),
        work=1,
        ours=Contender(
            "infer-accel",
            lambda: combine(adapters, _WEIGHTS, method="svd", rank=_RANK, num_threads=1),
            check=check_ours,
        ),
        peers=peers,
    )


def _matrices(rng: np.random.Generator, size: int) -> Matrices:
    a = rng.normal(0, 0.02, (_RANK, size)).astype(np.float32)
    return a, rng.normal(0, 0.02, (size, _RANK)).astype(np.float32)


def _numpy_svd(matrices: list[Matrices]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Decompose the whole sum, as one would in numpy."""
    delta = np.add(*(weight * (b @ a) for weight, (a, b) in zip(_WEIGHTS, matrices, strict=True)))
    left, values, right = np.linalg.svd(delta, full_matrices=False)
    return right[:_RANK], left[:, :_RANK] * values[:_RANK]


def _peft_svd(
    torch: ModuleType,
    peft: ModuleType,
    matrices: list[Matrices],
    check: Callable[[NDArray[np.float64]], None],
) -> Contender:
    """Return PEFT's own combination of the adapters of one linear layer."""
    rows, columns = matrices[0][1].shape[0], matrices[0][0].shape[1]
    config = peft.LoraConfig(r=_RANK, lora_alpha=_RANK, target_modules=["0"])
    model = peft.get_peft_model(torch.nn.Sequential(torch.nn.Linear(columns, rows, bias=False)), config, "0")
    model.add_adapter("1", config)
    layer = model.base_model.model[0]
    with torch.no_grad():
        for name, (a, b) in zip("01", matrices, strict=True):
            layer.lora_A[name].weight.copy_(torch.from_numpy(a))
            layer.lora_B[name].weight.copy_(torch.from_numpy(b))

    def forget() -> None:
        if "both" in model.peft_config:
            model.delete_adapter("both")

    def run() -> None:
        model.add_weighted_adapter(["0", "1"], list(_WEIGHTS), "both", combination_type="svd", svd_rank=_RANK)

    def check_layer(_: object) -> None:
        check(layer.get_delta_weight("both").detach().double().numpy())

    return Contender("PEFT", run, prepare=forget, check=check_layer)
