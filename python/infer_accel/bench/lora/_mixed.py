"""Mixed batches: the tokens of a step, each with an adapter of its own choice."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

import numpy as np

from infer_accel import lora, reference
from infer_accel.bench.harness import Case, Contender, Floor, cost
from infer_accel.bench.lora._arrays import SCALING, close, named, random, tensor, wide

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import ModuleType
    from typing import Any

    from numpy.typing import NDArray

    from infer_accel.bench.harness import Bench

__all__ = ["cases", "contenders"]

_WIDTH, _RANK, _DTYPE = 4096, 16, "bfloat16"

#: Tokens that are held against the specification bit by bit: it takes a second for these.
_CHECKED_TOKENS = 6


@dataclass(frozen=True, slots=True)
class _Batch:
    """Adapters and tokens of a step; tokens sorted by adapter, as many for each."""

    x: NDArray[Any]
    a: list[NDArray[Any]]
    b: list[NDArray[Any]]
    before: NDArray[Any]
    ids: NDArray[np.int64]

    @classmethod
    def random(cls, adapters: int, tokens: int) -> _Batch:
        rng = np.random.default_rng(100 * adapters + tokens)
        return cls(
            random(rng, (tokens, _WIDTH), 1.0, _DTYPE),
            [random(rng, (_RANK, _WIDTH), 0.02, _DTYPE) for _ in range(adapters)],
            [random(rng, (_WIDTH, _RANK), 0.01, _DTYPE) for _ in range(adapters)],
            random(rng, (tokens, _WIDTH), 1.0, _DTYPE),
            np.repeat(np.arange(adapters), tokens // adapters),
        )

    def expected(self) -> NDArray[np.float32]:
        """Return the result in float32 arithmetic, rounded nowhere else."""
        result = wide(self.before, _DTYPE)
        for adapter, (a, b) in enumerate(zip(self.a, self.b, strict=True)):
            rows = self.ids == adapter
            product = wide(self.x[rows], _DTYPE) @ wide(a, _DTYPE).T @ wide(b, _DTYPE).T
            result[rows] += np.float32(SCALING) * product
        return result


def cases(bench: Bench) -> Iterator[Case]:
    """Yield a row for each number of adapters and tokens."""
    formats = bench.rival("ml_dtypes")  # numpy has no name for bfloat16
    torch = bench.rival("torch")
    if formats is None and torch is None:
        return
    sizes = [(1, 1), (1, 64), (8, 8), (8, 256), (64, 64), (64, 256)]
    for adapters, tokens in sizes[:4] if bench.quick else sizes:
        yield _case(bench, (formats, torch), adapters, tokens)


def _case(
    bench: Bench, modules: tuple[ModuleType | None, ModuleType | None], adapters: int, tokens: int
) -> Case:
    formats, torch = modules

    def view(array: NDArray[Any]) -> Any:  # noqa: ANN401 - an array or a tensor
        return tensor(torch, array, _DTYPE) if formats is None and torch else named(array, _DTYPE, formats)

    batch = _Batch.random(adapters, tokens)
    expected = batch.expected()
    some = np.unique(np.linspace(0, tokens - 1, _CHECKED_TOKENS, dtype=np.int64))
    exact = batch.before[some]
    for place, token in enumerate(some):
        adapter = batch.ids[token]
        arguments = (view(array) for array in (batch.x[[token]], batch.a[adapter], batch.b[adapter]))
        reference.lora.apply_adapter(*arguments, scaling=SCALING, out=view(exact[place : place + 1]))
    pairs = [(view(a), view(b), SCALING) for a, b in zip(batch.a, batch.b, strict=True)]
    stack = lora.AdapterStack(pairs)
    ours = own_contender(view, stack, batch, Oracle(some, exact, expected))
    peers = [] if torch is None else _torch(torch, batch, expected)
    if torch is not None and bench.rival("vllm") is not None:
        ops = bench.rival("vllm.lora.ops.torch_ops")  # some builds come without
        peers += [] if ops is None else _vllm(torch, ops, batch, expected)
    operations = 4 * tokens * _WIDTH * _RANK
    return Case(
        name=f"apply {adapters} adapter{'s' * (adapters > 1)} to {tokens} token{'s' * (tokens > 1)}, "
        f"{_WIDTH}→{_WIDTH} {_DTYPE}, rank {_RANK}, 1 thread",
        measure=cost("µs", 1e-6),
        work=1,
        ours=ours,
        peers=peers,
        floor=Floor("FMA rate", operations / bench.limits.fma_rate("f32", threads=1)),
    )


class Tokens(Protocol):
    """Tokens, their adapters, and what the target holds at first."""

    @property
    def x(self) -> NDArray[Any]: ...
    @property
    def ids(self) -> NDArray[np.int64]: ...
    @property
    def before(self) -> NDArray[Any]: ...


@dataclass(frozen=True, slots=True)
class Oracle:
    """What must come out: every bit of some tokens, and about this of all of them."""

    some: NDArray[np.int64]
    exact: NDArray[Any]
    expected: NDArray[Any]


def own_contender(
    view: Callable[[NDArray[Any]], Any], stack: lora.AdapterStack, batch: Tokens, oracle: Oracle
) -> Contender:
    """Return ours, held against its oracle."""
    out = batch.before.copy()
    x, target = view(batch.x), view(out)

    # A call takes microseconds, so calls are repeated and add up; the checks begin from where they should.
    def run() -> None:
        lora.apply_adapters(x, stack, batch.ids, out=target, num_threads=1)

    def check(_: object) -> None:
        out[...] = batch.before
        run()
        np.testing.assert_array_equal(out[oracle.some], oracle.exact)
        close(out, oracle.expected, _DTYPE)

    return Contender("infer-accel", run, check=check)


def contenders(
    torch: ModuleType, start: NDArray[Any], expected: NDArray[Any], ways: Mapping[str, Callable[[Any], None]]
) -> list[Contender]:
    """Return rivals that add to the target that they are given; `start` is what it holds at first."""
    before, out = (tensor(torch, array, _DTYPE) for array in (start, start.copy()))

    def check_of(run: Callable[[Any], None]) -> Callable[[object], None]:
        def check(_: object) -> None:
            out.copy_(before)
            run(out)
            # Rivals round what lies between the products to eight bits, which shows where the sum is small.
            close(out.view(torch.int16).numpy().view(np.uint16), expected, _DTYPE, slack=0.02)

        return check

    return [Contender(name, partial(run, out), check=check_of(run)) for name, run in ways.items()]


def _torch(torch: ModuleType, batch: _Batch, expected: NDArray[Any]) -> list[Contender]:
    """Return the loops over adapters: in bfloat16 both ways, and in float32 with matrices widened beforehand."""
    x = tensor(torch, batch.x, _DTYPE)
    count = len(batch.ids) // len(batch.a)
    groups = [
        (slice(count * index, count * (index + 1)), tensor(torch, a, _DTYPE).T, tensor(torch, b, _DTYPE).T)
        for index, (a, b) in enumerate(zip(batch.a, batch.b, strict=True))
    ]
    wide_groups = [(rows, down.float(), up.float()) for rows, down, up in groups]

    def addmm(out: Any) -> None:  # noqa: ANN401 - torch is not typed here
        for rows, down, up in groups:
            out[rows].addmm_(x[rows] @ down, up, alpha=SCALING)

    def two_products(out: Any) -> None:  # noqa: ANN401 - torch is not typed here
        for rows, down, up in groups:
            out[rows].add_((x[rows] @ down) @ up, alpha=SCALING)

    def in_float32(out: Any) -> None:  # noqa: ANN401 - torch is not typed here
        for rows, down, up in wide_groups:
            total = out[rows].float()
            out[rows] = total.addmm_(x[rows].float() @ down, up, alpha=SCALING)

    ways = {"torch addmm_": addmm, "torch two matmuls": two_products, "torch addmm_ in float32": in_float32}
    return contenders(torch, batch.before, expected, ways)


def _vllm(torch: ModuleType, ops: ModuleType, batch: _Batch, expected: NDArray[Any]) -> list[Contender]:
    """Return vLLM's own ways for a CPU: what its decode steps call, and what its prefill calls."""
    x = tensor(torch, batch.x, _DTYPE)
    a = torch.stack([tensor(torch, array, _DTYPE) for array in batch.a]).unsqueeze(1)
    b = torch.stack([tensor(torch, array, _DTYPE) for array in batch.b]).unsqueeze(1)
    ids = torch.from_numpy(batch.ids)
    tokens, adapters = len(batch.ids), len(batch.a)
    length = tokens // adapters
    lengths = torch.full((adapters,), length, dtype=torch.int64)
    starts, indices = torch.arange(adapters) * length, torch.arange(adapters)

    def decode(out: Any) -> None:  # noqa: ANN401 - torch is not typed here
        hidden = torch.zeros(tokens, _RANK, dtype=torch.float32)
        ops.bgmv_shrink(x, a, hidden, ids, SCALING)
        ops.bgmv_expand(hidden, b, out, ids, add_inputs=True)

    def prefill(out: Any) -> None:  # noqa: ANN401 - torch is not typed here
        hidden = torch.zeros(tokens, _RANK, dtype=torch.float32)
        sequences = starts, lengths, indices, adapters, length, tokens
        ops.sgmv_shrink(x, a, hidden, *sequences, SCALING)
        ops.sgmv_expand(hidden, b, out, *sequences, add_inputs=True)

    ways = {"vLLM bgmv": decode, "vLLM sgmv": prefill}
    return contenders(torch, batch.before, expected, ways)
