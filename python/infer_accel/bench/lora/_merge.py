"""Merging: one weight of a layer, in place."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from infer_accel import lora, reference
from infer_accel._reference._floats import round_bfloat16
from infer_accel.bench.harness import Case, Contender, Floor, cost
from infer_accel.bench.lora._arrays import BLOCK_ROWS, SCALING, close, named, random, tensor, wide

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType
    from typing import Any

    from numpy.typing import NDArray

    from infer_accel.bench.harness import Bench
    from infer_accel.bench.lora._arrays import Float32

__all__ = ["cases"]

#: Rows that are held against the specification bit by bit: it takes a second for these.
_CHECKED_ROWS = 6

#: Rows of a trial, and the seconds beyond which a rival is timed on no more than these.
_TRIAL_ROWS = 32
_LONGEST_CALL = 0.25

Shape = tuple[int, int]


@dataclass(frozen=True, slots=True)
class _Merge:
    """One merge row: `base` and `adapter` are names of number formats."""

    shape: Shape
    rank: int
    base: str
    adapter: str


def cases(bench: Bench) -> Iterator[Case]:
    """Yield the rows of merging."""
    formats = bench.rival("ml_dtypes")  # numpy has no name for bfloat16
    square, tall = (4096, 4096), (14336, 4096)
    if formats is not None:
        weight = random(np.random.default_rng(0), square, 0.02, "bfloat16")
        for rank in (8, 16, 64) if bench.quick else (8, 16, 64, 256):
            yield from _case(bench, formats, weight, _Merge(square, rank, "bfloat16", "bfloat16"))
        yield from _case(bench, formats, weight, _Merge(square, 16, "bfloat16", "float32"))
    weight = random(np.random.default_rng(0), square, 0.02, "float16")
    yield from _case(bench, formats, weight, _Merge(square, 16, "float16", "float16"))
    if formats is not None and not bench.quick:
        weight = random(np.random.default_rng(0), tall, 0.02, "bfloat16")
        for rank in (8, 16, 64, 256):
            yield from _case(bench, formats, weight, _Merge(tall, rank, "bfloat16", "bfloat16"))


def _case(bench: Bench, formats: ModuleType | None, original: NDArray[Any], spec: _Merge) -> Iterator[Case]:
    """Yield the row of one merge: a weight of a layer, in place."""
    rows, columns = spec.shape
    rng = np.random.default_rng(spec.rank)
    a = random(rng, (spec.rank, columns), 0.02, spec.adapter)
    b = random(rng, (rows, spec.rank), 0.01, spec.adapter)
    weight = original.copy()
    expected = wide(original, spec.base)
    expected += np.float32(SCALING) * (wide(b, spec.adapter) @ wide(a, spec.adapter))
    some = np.unique(np.linspace(0, rows - 1, _CHECKED_ROWS, dtype=np.int64))
    exact = original[some]
    reference.lora.merge_weights(
        named(exact, spec.base, formats),
        named(a, spec.adapter, formats),
        named(b[some], spec.adapter, formats),
        scaling=SCALING,
    )

    def restore() -> None:
        np.copyto(weight, original)

    def check(_: object) -> None:
        close(weight, expected, spec.base)

    def check_exact(_: object) -> None:
        np.testing.assert_array_equal(weight[some], exact)
        close(weight, expected, spec.base)

    ours = tuple(
        named(array, dtype, formats)
        for array, dtype in ((weight, spec.base), (a, spec.adapter), (b, spec.adapter))
    )
    # numpy takes seconds for the whole: a block of rows is measured, and checked.
    few = slice(0, BLOCK_ROWS)
    peers = [
        Contender(
            "numpy",
            lambda: _numpy_merge(weight[few], a, b[few], spec),
            prepare=restore,
            check=lambda _: close(weight[few], expected[few], spec.base),
            work=BLOCK_ROWS / rows,
        )
    ]
    if (torch := bench.rival("torch")) is not None:
        peers += _torch_merges(torch, (weight, a, b), spec, restore, check)
        if (peft := bench.rival("peft")) is not None:
            peers.append(_peft_merge(torch, peft, (original, a, b), spec, expected))
    yield Case(
        name=f"merge {rows}×{columns} {spec.base}, rank {spec.rank} {spec.adapter}, 1 thread",
        measure=cost("ms", 1e-3),
        work=1,
        ours=Contender(
            "infer-accel",
            lambda: lora.merge_weights(*ours, scaling=SCALING, num_threads=1),
            prepare=restore,
            check=check_exact,
        ),
        peers=peers,
        floor=_merge_floor(bench, spec, weight.nbytes),
    )


def _merge_floor(bench: Bench, spec: _Merge, weight_bytes: int) -> Floor:
    """Return the slower of the two: passing over the weight, or multiplying."""
    from infer_accel._native import system

    paired = spec.adapter == "bfloat16" and system.simd_tier() == "avx512bf16"
    operations = 2 * spec.shape[0] * spec.shape[1] * spec.rank
    passing = 2 * weight_bytes / bench.limits.read_modify_write_bandwidth(threads=1)
    multiplying = operations / bench.limits.fma_rate("bf16" if paired else "f32", threads=1)
    if passing > multiplying:
        return Floor("read-modify-write bandwidth", passing)
    return Floor("FMA rate", multiplying)


def _numpy_merge(weight: NDArray[Any], a: NDArray[Any], b: NDArray[Any], spec: _Merge) -> None:
    """Merge as one would in numpy: widen, multiply, add, round."""
    merged = wide(weight, spec.base)
    merged += np.float32(SCALING) * (wide(b, spec.adapter) @ wide(a, spec.adapter))
    weight[...] = round_bfloat16(merged) if spec.base == "bfloat16" else merged.astype(spec.base)


def _torch_merges(
    torch: ModuleType,
    arrays: tuple[NDArray[Any], NDArray[Any], NDArray[Any]],
    spec: _Merge,
    restore: Callable[[], None],
    check: Callable[[object], None],
) -> list[Contender]:
    """Return the ways that torch has: two that multiply in 16 bits, and one that keeps float32 in between."""
    weight, a, b = (
        tensor(torch, array, dtype)
        for array, dtype in zip(arrays, (spec.base, spec.adapter, spec.adapter), strict=True)
    )
    a_own, b_own = a.to(weight.dtype), b.to(weight.dtype)
    buffer = torch.empty((BLOCK_ROWS, spec.shape[1]), dtype=torch.float32)

    def blocked() -> None:
        a_wide, b_wide = a.float(), b.float()
        for first in range(0, spec.shape[0], BLOCK_ROWS):
            part = weight[first : first + BLOCK_ROWS]
            wide = buffer[: part.shape[0]]
            wide.copy_(part)
            wide.addmm_(b_wide[first : first + BLOCK_ROWS], a_wide, alpha=SCALING)
            part.copy_(wide)

    def addmm(rows: int) -> None:
        weight[:rows].addmm_(b_own[:rows], a_own, alpha=SCALING)

    def add(rows: int) -> None:
        weight[:rows].add_(b_own[:rows] @ a_own, alpha=SCALING)

    contenders = [Contender("torch float32 by blocks", blocked, prepare=restore, check=check)]
    for name, run in (("torch addmm_", addmm), ("torch W.add_(B @ A)", add)):
        rows = _affordable_rows(run, spec.shape[0])
        # Of a part of the rows nothing is checked: the others hold the weight as it was.
        whole = check if rows == spec.shape[0] else None
        work = rows / spec.shape[0]
        contenders.append(Contender(name, partial(run, rows), prepare=restore, check=whole, work=work))
    return contenders


def _affordable_rows(run: Callable[[int], None], rows: int) -> int:
    """Return how many rows to measure: without 16-bit products in hardware, torch takes seconds for all."""
    few = min(_TRIAL_ROWS, rows)
    run(few)
    start = time.perf_counter()
    run(few)
    seconds = time.perf_counter() - start
    return rows if seconds * rows / few < _LONGEST_CALL else few


def _peft_merge(
    torch: ModuleType,
    peft: ModuleType,
    arrays: tuple[NDArray[Any], NDArray[Any], NDArray[Any]],
    spec: _Merge,
    expected: Float32,
) -> Contender:
    """Return PEFT's own merge of one linear layer, adapters as it loads them."""
    original, a, b = (
        tensor(torch, array, dtype)
        for array, dtype in zip(arrays, (spec.base, spec.adapter, spec.adapter), strict=True)
    )
    linear = torch.nn.Linear(spec.shape[1], spec.shape[0], bias=False, dtype=original.dtype)
    config = peft.LoraConfig(r=spec.rank, lora_alpha=SCALING * spec.rank, target_modules=["0"])
    layer = peft.get_peft_model(torch.nn.Sequential(linear), config).base_model.model[0]
    with torch.no_grad():
        layer.lora_A["default"].weight.copy_(a)
        layer.lora_B["default"].weight.copy_(b)

    def restore() -> None:
        layer.merged_adapters.clear()
        with torch.no_grad():
            layer.base_layer.weight.copy_(original)

    def check(_: object) -> None:
        bits = layer.base_layer.weight.detach()
        result = bits.view(torch.int16).numpy().view(np.uint16) if spec.base == "bfloat16" else bits.numpy()
        close(result, expected, spec.base)

    return Contender("PEFT", layer.merge, prepare=restore, check=check)
