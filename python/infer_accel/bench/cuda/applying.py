"""Mixed batches of adapters on one layer of a GPU."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import torch

from infer_accel.bench.cuda import vllm_rival
from infer_accel.bench.cuda.device import require
from infer_accel.bench.cuda.plan import DeviceRow
from infer_accel.bench.harness import Case, Floor, cost
from infer_accel.kernels import apply_adapters as applying
from infer_accel.kernels._stack import CudaStack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from infer_accel.bench.cuda.device import Gpu
    from infer_accel.bench.harness import Bench, Contender

__all__ = ["rows"]

Way: TypeAlias = 'Literal["in a graph", "eager, ids on the GPU", "eager, ids on the host"]'
_WAYS: tuple[Way, ...] = ("in a graph", "eager, ids on the GPU", "eager, ids on the host")

_SCALING = 0.5
_ADAPTERS, _TOKENS = (1, 8, 64), (1, 8, 64, 512, 4096)
#: Adapters, tokens, rank: a larger rank, where the expansion has more to do.
_RANKS = ((8, 64, 64), (64, 64, 64))
#: Without a graph, which is how a prompt is computed: ids on the device, and on the host.
_EAGER = ((8, 8), (64, 512))
_QUICK = ((8, 8), (8, 64))
#: Tokens up to which a copy of an adapter for each of them is worth a try.
_MOST_GATHERED = 512
#: Stacks of a sample: each is met once, after the second-level cache was emptied.
_SETS = 16


@dataclass(frozen=True, slots=True)
class _Batch:
    """The size of a row."""

    adapters: int
    tokens: int
    side: int = 4096
    rank: int = 16
    way: Way = "in a graph"
    sets: int = _SETS

    @property
    def name(self) -> str:
        """How the row is called."""
        who = f"{self.adapters} adapter{'s' * (self.adapters > 1)}"
        whom = f"{self.tokens} token{'s' * (self.tokens > 1)}"
        return f"cuda: apply {who} to {whom}, {self.side}x{self.side} bfloat16, rank {self.rank}, {self.way}"

    @property
    def adapter_bytes(self) -> int:
        """Bytes of the adapters of one call."""
        return self.adapters * 2 * self.side * self.rank * 2

    @property
    def token_bytes(self) -> int:
        """Bytes of one array of tokens."""
        return self.tokens * self.side * 2

    @property
    def device_bytes(self) -> int:
        """What a row needs: adapters for ours and for rivals, tokens, targets, a rival's gathered matrices."""
        gathered = 2 * self.tokens * self.side * self.rank * 2
        # Graphs keep what their calls allocate; targets are double while they are compared, in float64.
        return (
            (3 * self.adapter_bytes + self.token_bytes) * self.sets + 8 * self.token_bytes * 4 + 3 * gathered
        )


def rows(bench: Bench, gpu: Gpu) -> Iterator[DeviceRow]:
    """Yield batches of one token to thousands, for one adapter to many."""
    for batch in _batches(bench, gpu):
        # The buffer that empties the cache stays, once it is there.
        yield DeviceRow(batch.name, batch.device_bytes + (1 << 29), partial(_apply, bench, gpu, batch))


def _batches(bench: Bench, gpu: Gpu) -> Iterator[_Batch]:
    if not gpu.is_real:
        yield from _rehearsed(bench)
        return
    if bench.quick:
        for adapters, tokens in _QUICK:
            yield _Batch(adapters, tokens)
        yield _Batch(*_QUICK[0], way="eager, ids on the host")
        return
    for adapters in _ADAPTERS:
        for tokens in _TOKENS:
            if tokens >= adapters:
                yield _Batch(adapters, tokens)
    for adapters, tokens, rank in _RANKS:
        yield _Batch(adapters, tokens, rank=rank)
    for adapters, tokens in _EAGER:
        for way in _WAYS[1:]:
            yield _Batch(adapters, tokens, way=way)


def _rehearsed(bench: Bench) -> Iterator[_Batch]:
    """Yield one of each kind, small."""
    small = _Batch(3, 6, side=40, sets=2)
    yield small
    if not bench.quick:
        yield replace(small, adapters=1, tokens=1)
        yield replace(small, rank=24)
    for way in _WAYS[2 if bench.quick else 1 :]:
        yield replace(small, way=way)


@dataclass(frozen=True, slots=True)
class _Tensors:
    """The tensors of a row: a stack of adapters and a target for each call of a sample, tokens for all."""

    batch: _Batch
    a: list[torch.Tensor]
    b: list[torch.Tensor]
    x: torch.Tensor
    base: torch.Tensor
    outs: list[torch.Tensor]
    ids: torch.Tensor

    @classmethod
    def random(cls, gpu: Gpu, batch: _Batch) -> _Tensors:
        dtype, side = torch.bfloat16, batch.side
        base = gpu.random(batch.tokens, side, dtype=dtype, seed=8)
        # As many tokens for each, in any order: what a rival with equal shares needs.
        listed = np.random.default_rng(0).permutation(np.arange(batch.tokens) % batch.adapters)
        return cls(
            batch,
            [
                gpu.random(batch.adapters, batch.rank, side, dtype=dtype, seed=100 + turn, size=0.05)
                for turn in range(batch.sets)
            ],
            [
                gpu.random(batch.adapters, side, batch.rank, dtype=dtype, seed=200 + turn, size=0.05)
                for turn in range(batch.sets)
            ],
            gpu.random(batch.tokens, side, dtype=dtype, seed=7),
            base,
            [base.clone() for _ in range(batch.sets)],
            torch.from_numpy(listed).to(gpu.device),
        )

    def restore(self) -> None:
        """Put back what was there before: an application adds to it."""
        for out in self.outs:
            out.copy_(self.base)

    def exact(self, turn: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what must come out, and the sizes of what is summed up, in float64."""
        result = self.base.double()
        sizes = torch.zeros_like(result)
        for adapter, (a, b) in enumerate(zip(self.a[turn].double(), self.b[turn].double(), strict=True)):
            chosen = self.ids == adapter
            x = self.x[chosen].double()
            result[chosen] += _SCALING * ((x @ a.T) @ b.T)
            sizes[chosen] = _SCALING * ((x.abs() @ a.abs().T) @ b.abs().T)
        return result, sizes

    def require_bound(self, _: object) -> None:
        """Require the bound of `docs/concepts/gpu.md` of the first and the last target."""
        for turn in {0, self.batch.sets - 1}:
            exact, sizes = self.exact(turn)
            bound = (self.batch.side + self.batch.rank + 16) * 2.0**-23 * sizes
            bound += (2.0**-8 + 2.0**-22) * exact.abs()
            distance = exact.sub(self.outs[turn].double()).abs_()
            require(bool((distance <= bound).all()), "outputs are too far off")

    def require_near(self, _: object) -> None:
        """Require less: rivals round what lies between the products to bfloat16."""
        for turn in {0, self.batch.sets - 1}:
            exact, sizes = self.exact(turn)
            distance = exact.sub(self.outs[turn].double()).abs_()
            bound = 2.0**-6 * sizes + 2.0**-6 * exact.abs() + 1e-6
            require(bool((distance <= bound).all()), "outputs are too far off")


def _apply(bench: Bench, gpu: Gpu, batch: _Batch) -> Case:
    """Apply a mixed batch to a layer; each stack is met once a sample, and comes from memory."""
    tensors = _Tensors.random(gpu, batch)
    stacks = [
        CudaStack([[(a[i], b[i], _SCALING)] for i in range(batch.adapters)], range(batch.adapters), None)
        for a, b in zip(tensors.a, tensors.b, strict=True)
    ]
    on_host = tensors.ids.cpu().numpy()
    ids = on_host if "host" in batch.way else gpu.ids(on_host)

    def prepare() -> None:
        tensors.restore()
        gpu.flush()

    def contender(name: str, call: Callable[[int], object], *, is_ours: bool = False) -> Contender:
        return gpu.contender(
            name,
            call,
            sets=batch.sets,
            calls=batch.sets,
            check=tensors.require_bound if is_ours else tensors.require_near,
            prepare=prepare,
            on="graph" if batch.way == "in a graph" else "device",
        )

    peers = [contender(name, call) for name, call in _torch_ways(tensors).items()]
    kernels = vllm_rival.lora_kernels(bench) if gpu.is_real else None
    if kernels is not None:
        pairs = list(zip(tensors.a, tensors.b, strict=True))
        call = kernels.call(tensors.x, pairs, tensors.ids, tensors.outs, _SCALING)
        peers.append(contender("vLLM's kernels, batch described before", call))
    moved = batch.adapter_bytes + 3 * batch.token_bytes
    multiplied = 4 * batch.tokens * batch.side * batch.rank
    floors = (
        Floor("device copy", moved / gpu.copy_rate(bench.limits)),
        Floor("GEMM bfloat16", multiplied / gpu.gemm_rate(bench.limits)),
    )
    return Case(
        name=batch.name,
        measure=cost("µs", 1e-6),
        work=1,
        ours=contender(
            "infer-accel",
            lambda turn: applying.apply_adapters(tensors.x, stacks[turn], ids, out=tensors.outs[turn]),
            is_ours=True,
        ),
        peers=peers,
        floor=max(floors, key=lambda floor: floor.seconds),
    )


def _torch_ways(tensors: _Tensors) -> dict[str, Callable[[int], object]]:
    """Return what can be done with torch alone; who goes where was found out before."""
    x, ids, count = tensors.x, tensors.ids, tensors.batch.adapters
    order = torch.sort(ids, stable=True).indices
    places = [torch.nonzero(ids == adapter).flatten() for adapter in range(count)]

    def whole(turn: int) -> None:
        a, b, out = tensors.a[turn][0], tensors.b[turn][0], tensors.outs[turn]
        out.addmm_(x @ a.T, b.T, alpha=_SCALING)

    def one_by_one(turn: int) -> None:
        a, b, out = tensors.a[turn], tensors.b[turn], tensors.outs[turn]
        for adapter, index in enumerate(places):
            hidden = x.index_select(0, index) @ a[adapter].T
            out.index_add_(0, index, hidden @ b[adapter].T, alpha=_SCALING)

    def gathered(turn: int) -> None:
        a, b = tensors.a[turn].index_select(0, ids), tensors.b[turn].index_select(0, ids)
        hidden = torch.bmm(a, x.unsqueeze(2))
        tensors.outs[turn].unsqueeze(2).baddbmm_(b, hidden, alpha=_SCALING)

    def equal_shares(turn: int) -> None:
        sorted_ = x.index_select(0, order).view(count, -1, x.shape[1])
        hidden = torch.bmm(sorted_, tensors.a[turn].mT)
        result = torch.bmm(hidden, tensors.b[turn].mT).view(len(order), -1)
        tensors.outs[turn].index_add_(0, order, result, alpha=_SCALING)

    ends = torch.cumsum(torch.bincount(ids, minlength=count), 0).to(torch.int32)

    def grouped(turn: int) -> None:
        multiply = torch.nn.functional.grouped_mm
        hidden = multiply(x.index_select(0, order), tensors.a[turn].mT, offs=ends)
        result = multiply(hidden, tensors.b[turn].mT, offs=ends)
        tensors.outs[turn].index_add_(0, order, result, alpha=_SCALING)

    if count == 1:
        return {"torch addmm_": whole}
    ways: dict[str, Callable[[int], object]] = {"torch, adapter by adapter": one_by_one}
    # A copy of an adapter for each token: where there are few.
    if len(ids) <= _MOST_GATHERED:
        ways["torch bmm of gathered adapters"] = gathered
    if len(ids) % count == 0:
        ways["torch bmm of equal shares"] = equal_shares
    if hasattr(torch.nn.functional, "grouped_mm"):
        ways["torch grouped_mm"] = grouped
    return ways
