"""Layers whose outputs are fused: one call for all slices, which share what they make of the tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from infer_accel import lora, reference
from infer_accel.bench.harness import Case, Contender, Floor, cost
from infer_accel.bench.lora._arrays import SCALING, named, random, tensor, wide
from infer_accel.bench.lora._mixed import Oracle, contenders, own_contender

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType
    from typing import Any

    from numpy.typing import NDArray

    from infer_accel.bench.harness import Bench

__all__ = ["cases"]

_FEATURES, _RANK, _DTYPE = 4096, 16, "bfloat16"
_ADAPTERS, _TOKENS = 8, 64
#: Outputs of the fused layers of Llama-3-8B.
_LAYERS = {"qkv_proj": (4096, 1024, 1024), "gate_up_proj": (14336, 14336)}
#: Tokens that are held against the specification bit by bit.
_CHECKED_TOKENS = 2


@dataclass(frozen=True, slots=True)
class _Batch:
    """Adapters, each with a pair of matrices for each slice, and tokens sorted by adapter."""

    x: NDArray[Any]
    a: list[list[NDArray[Any]]]
    b: list[list[NDArray[Any]]]
    before: NDArray[Any]
    ids: NDArray[np.int64]
    slices: list[slice]

    @classmethod
    def random(cls, widths: tuple[int, ...]) -> _Batch:
        rng = np.random.default_rng(sum(widths))
        ends = np.cumsum(widths).tolist()
        return cls(
            random(rng, (_TOKENS, _FEATURES), 1.0, _DTYPE),
            [[random(rng, (_RANK, _FEATURES), 0.02, _DTYPE) for _ in widths] for _ in range(_ADAPTERS)],
            [[random(rng, (width, _RANK), 0.01, _DTYPE) for width in widths] for _ in range(_ADAPTERS)],
            random(rng, (_TOKENS, sum(widths)), 1.0, _DTYPE),
            np.repeat(np.arange(_ADAPTERS), _TOKENS // _ADAPTERS),
            [slice(end - width, end) for end, width in zip(ends, widths, strict=True)],
        )

    def expected(self) -> NDArray[np.float32]:
        """Return the result in float32 arithmetic, rounded nowhere else."""
        result = wide(self.before, _DTYPE)
        for adapter, (down, up) in enumerate(zip(self.a, self.b, strict=True)):
            rows = self.ids == adapter
            tokens = wide(self.x[rows], _DTYPE)
            for columns, a, b in zip(self.slices, down, up, strict=True):
                result[rows, columns] += np.float32(SCALING) * (
                    tokens @ wide(a, _DTYPE).T @ wide(b, _DTYPE).T
                )
        return result


def cases(bench: Bench) -> Iterator[Case]:
    """Yield a row for each fused layer."""
    formats = bench.rival("ml_dtypes")  # numpy has no name for bfloat16
    if formats is None:
        return
    for layer, widths in list(_LAYERS.items())[: 1 if bench.quick else None]:
        yield _case(bench, formats, layer, widths)


def _case(bench: Bench, formats: ModuleType, layer: str, widths: tuple[int, ...]) -> Case:
    def view(array: NDArray[Any]) -> NDArray[Any]:
        return named(array, _DTYPE, formats)

    batch = _Batch.random(widths)
    expected = batch.expected()
    some = np.unique(np.linspace(0, _TOKENS - 1, _CHECKED_TOKENS, dtype=np.int64))
    exact = batch.before[some]
    for place, token in enumerate(some):
        adapter = batch.ids[token]
        for columns, a, b in zip(batch.slices, batch.a[adapter], batch.b[adapter], strict=True):
            target = view(exact[place : place + 1, columns])
            arguments = (view(array) for array in (batch.x[[token]], a, b))
            reference.lora.apply_adapter(*arguments, scaling=SCALING, out=target)
    stack = lora.AdapterStack(
        [
            [(view(a), view(b), SCALING) for a, b in zip(down, up, strict=True)]
            for down, up in zip(batch.a, batch.b, strict=True)
        ]
    )
    ours = own_contender(view, stack, batch, Oracle(some, exact, expected))
    peers = []
    if (torch := bench.rival("torch")) is not None:
        peers += _torch(torch, batch, expected)
        if bench.rival("vllm") is not None:
            ops = bench.rival("vllm.lora.ops.torch_ops")  # some builds come without
            peers += [] if ops is None else _vllm(torch, ops, batch, expected)
    operations = 2 * _TOKENS * _RANK * sum(_FEATURES + width for width in widths)
    return Case(
        name=f"apply {_ADAPTERS} adapters to {_TOKENS} tokens, {layer} {_FEATURES}→{'+'.join(map(str, widths))} "
        f"{_DTYPE}, rank {_RANK}, 1 thread",
        measure=cost("µs", 1e-6),
        work=1,
        ours=ours,
        peers=peers,
        floor=Floor("FMA rate", operations / bench.limits.fma_rate("f32", threads=1)),
    )


def _torch(torch: ModuleType, batch: _Batch, expected: NDArray[Any]) -> list[Contender]:
    """Return the loops over adapters and slices; the first product of all slices is one, as a server would do it."""
    x = tensor(torch, batch.x, _DTYPE)
    count = _TOKENS // _ADAPTERS
    groups = [
        (
            slice(count * index, count * (index + 1)),
            torch.cat([tensor(torch, a, _DTYPE) for a in down]).T,
            [tensor(torch, b, _DTYPE).T for b in up],
        )
        for index, (down, up) in enumerate(zip(batch.a, batch.b, strict=True))
    ]
    wide_groups = [(rows, down.float(), [up.float() for up in ups]) for rows, down, ups in groups]

    def addmm(out: Any) -> None:  # noqa: ANN401 - torch is not typed here
        for rows, down, ups in groups:
            hidden = (x[rows] @ down).split(_RANK, dim=1)
            for columns, part, up in zip(batch.slices, hidden, ups, strict=True):
                out[rows, columns].addmm_(part, up, alpha=SCALING)

    def in_float32(out: Any) -> None:  # noqa: ANN401 - torch is not typed here
        for rows, down, ups in wide_groups:
            hidden = (x[rows].float() @ down).split(_RANK, dim=1)
            for columns, part, up in zip(batch.slices, hidden, ups, strict=True):
                out[rows, columns] = out[rows, columns].float().addmm_(part, up, alpha=SCALING)

    ways = {"torch addmm_": addmm, "torch addmm_ in float32": in_float32}
    return contenders(torch, batch.before, expected, ways)


def _vllm(torch: ModuleType, ops: ModuleType, batch: _Batch, expected: NDArray[Any]) -> list[Contender]:
    """Return vLLM's own way for a CPU, slice by slice."""
    x, ids = tensor(torch, batch.x, _DTYPE), torch.from_numpy(batch.ids)
    stacked = [
        tuple(
            torch.stack([tensor(torch, adapter[place], _DTYPE) for adapter in matrices]).unsqueeze(1)
            for matrices in (batch.a, batch.b)
        )
        for place in range(len(batch.slices))
    ]

    def run(out: Any) -> None:  # noqa: ANN401 - torch is not typed here
        for columns, (a, b) in zip(batch.slices, stacked, strict=True):
            hidden = torch.zeros(_TOKENS, _RANK, dtype=torch.float32)
            ops.bgmv_shrink(x, a, hidden, ids, SCALING)
            width = columns.stop - columns.start
            ops.bgmv_expand_slice(hidden, b, out, ids, columns.start, width, add_inputs=True)

    return contenders(torch, batch.before, expected, {"vLLM bgmv": run})
