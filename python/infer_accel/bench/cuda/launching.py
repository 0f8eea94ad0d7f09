"""What small calls cost: how long the host is held by one, and how long the device takes for next to nothing.

The second is measured in a graph, where no host is waited for; a merge cannot be captured, since a replay would add the
adapter once more, so it is given to the device call by call.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from infer_accel import lora
from infer_accel.bench.cuda.device import Clock, require
from infer_accel.bench.cuda.plan import DeviceRow
from infer_accel.bench.harness import Case, cost
from infer_accel.kernels import apply_adapters as applying
from infer_accel.kernels import merge_weights as merging
from infer_accel.kernels import page_copy as copying
from infer_accel.kernels._stack import CudaStack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from infer_accel.bench.cuda.device import Gpu
    from infer_accel.bench.harness import Bench, Contender

    Call = Callable[[int], object]

__all__ = ["kvcache_rows", "lora_rows"]

#: Calls of a sample: so many of a dozen launches fit into a stream's queue.
_CALLS = 32
_RANK = 16
_ROOM = 64 << 20
_TITLES = {"host": "host's time", "graph": "device's time in a graph", "device": "device's time"}
#: By which clocks a call is timed that can be captured, and one that cannot; `--quick` takes the first.
_CAPTURED: tuple[Clock, ...] = ("host", "graph")
_GIVEN: tuple[Clock, ...] = ("host", "device")


def kvcache_rows(bench: Bench, gpu: Gpu) -> Iterator[DeviceRow]:
    """Yield one page of 4 KiB."""
    for clock in _CAPTURED[:1] if bench.quick else _CAPTURED:
        name = f"cuda: {_TITLES[clock]} of page_copy, 1 page of 4 KiB, ids on the GPU"
        yield DeviceRow(name, _ROOM, partial(_page, gpu, name, clock, on_host=False))
    name = f"cuda: {_TITLES['host']} of page_copy, 1 page of 4 KiB, ids on the host"
    yield DeviceRow(name, _ROOM, partial(_page, gpu, name, "host", on_host=True))


def lora_rows(bench: Bench, gpu: Gpu) -> Iterator[DeviceRow]:
    """Yield a merge of one tile and of many of them, one token of one adapter, and a batch of one."""
    for clock in _GIVEN[:1] if bench.quick else _GIVEN:
        for layers in (1, 224 if gpu.is_real else 3):
            what = "merge_weights, 64x128" if layers == 1 else f"merge_many, {layers} layers of 64x128"
            name = f"cuda: {_TITLES[clock]} of {what}, bfloat16, rank {_RANK}"
            yield DeviceRow(name, _ROOM, partial(_merge, gpu, name, clock, layers))
    for clock in _CAPTURED[:1] if bench.quick else _CAPTURED:
        for form in ("apply_adapter", "apply_adapters"):
            name = f"cuda: {_TITLES[clock]} of {form}, 1 token, 128x128 bfloat16, rank {_RANK}"
            yield DeviceRow(name, _ROOM, partial(_apply, gpu, name, clock, form))


def _page(gpu: Gpu, name: str, clock: Clock, *, on_host: bool) -> Case:
    source = gpu.random(4, 4096, dtype=torch.uint8, seed=0)
    target = torch.empty_like(source)
    pairs = np.array([[2, 1]])
    ids = pairs if on_host else gpu.ids(pairs)
    fro, to = (torch.from_numpy(pairs[:, side].copy()).to(gpu.device) for side in (0, 1))

    def poison() -> None:
        target.fill_(0xAA)

    def check(_: object) -> None:
        expected = torch.full_like(target, 0xAA)
        expected[1] = source[2]
        require(torch.equal(target, expected), "pages differ")

    def contender(who: str, call: Call) -> Contender:
        return gpu.contender(who, call, calls=_calls(gpu), check=check, prepare=poison, on=clock)

    peers = [
        contender("torch index_copy_", lambda _: target.index_copy_(0, to, source.index_select(0, fro))),
        contender("torch copy_, numbers known", lambda _: target[1].copy_(source[2])),
    ]
    return Case(
        name=name,
        measure=cost("µs", 1e-6),
        work=1,
        ours=contender("infer-accel", lambda _: copying.page_copy([source], [target], ids, axis=0)),
        peers=peers,
    )


def _calls(gpu: Gpu) -> int:
    return _CALLS if gpu.is_real else 1


def _merge(gpu: Gpu, name: str, clock: Clock, layers: int) -> Case:
    """Merge one tile of each layer; a sample adds the same adapter again and again."""
    rows, columns = (64, 128) if gpu.is_real else (8, 24)
    dtype = torch.bfloat16
    base = gpu.random(rows, columns, dtype=dtype, seed=0)
    a = gpu.random(_RANK, columns, dtype=dtype, seed=1, size=0.1)
    b = gpu.random(rows, _RANK, dtype=dtype, seed=2, size=0.1)
    weights = [base.clone() for _ in range(layers)]
    adapters = [(a, b, 0.5)] * layers
    # Many layers are a call of milliseconds; two of them are enough.
    calls = _calls(gpu) if layers == 1 else 2
    wanted = base.cpu().clone()
    for _ in range(calls):
        lora.merge_weights(wanted, a.cpu(), b.cpu(), scaling=0.5)

    def restore() -> None:
        for weight in weights:
            weight.copy_(base)

    def equal(_: object) -> None:
        require(all(torch.equal(weight.cpu(), wanted) for weight in weights), "weights differ")

    def near(_: object) -> None:
        aim = wanted.float()
        bound = calls * 2.0**-6 * (aim.abs() + 0.1)
        is_near = ((weight.cpu().float() - aim).abs() <= bound for weight in weights)
        require(all(bool(found.all()) for found in is_near), "weights are too far off")

    def ours(_: int) -> None:
        if layers == 1:
            merging.merge_weights(weights[0], a, b, scaling=0.5)
        else:
            merging.merge_many(weights, adapters)

    def added(_: int) -> None:
        for weight in weights:
            weight.addmm_(b, a, alpha=0.5)

    return Case(
        name=name,
        measure=cost("µs", 1e-6),
        work=1,
        ours=gpu.contender("infer-accel", ours, calls=calls, check=equal, prepare=restore, on=clock),
        peers=[gpu.contender("torch addmm_", added, calls=calls, check=near, prepare=restore, on=clock)],
    )


def _apply(gpu: Gpu, name: str, clock: Clock, form: str) -> Case:
    side = 128 if gpu.is_real else 24
    dtype = torch.bfloat16
    x = gpu.random(1, side, dtype=dtype, seed=0)
    a = gpu.random(_RANK, side, dtype=dtype, seed=1, size=0.1)
    b = gpu.random(side, _RANK, dtype=dtype, seed=2, size=0.1)
    stack = CudaStack([[(a, b, 0.5)]], [0], None)
    ids = gpu.ids(np.zeros(1, np.int64))
    calls = _calls(gpu)
    # Each call adds to a target of its own, so that none is rounded more than once.
    outs = [torch.zeros(1, side, dtype=dtype, device=gpu.device) for _ in range(calls)]

    def restore() -> None:
        for out in outs:
            out.zero_()

    def check(_: object) -> None:
        exact = 0.5 * ((x.double() @ a.double().T) @ b.double().T)
        sizes = 0.5 * ((x.double().abs() @ a.double().abs().T) @ b.double().abs().T)
        for out in outs:
            distance = (out.double() - exact).abs()
            require(bool((distance <= 2.0**-6 * (sizes + exact.abs())).all()), "outputs are too far off")

    def ours(turn: int) -> None:
        if form == "apply_adapter":
            applying.apply_adapter(x, a, b, scaling=0.5, out=outs[turn])
        else:
            applying.apply_adapters(x, stack, ids, out=outs[turn])

    def added(turn: int) -> None:
        outs[turn].addmm_(x @ a.T, b.T, alpha=0.5)

    def contender(who: str, call: Call) -> Contender:
        return gpu.contender(who, call, sets=calls, calls=calls, check=check, prepare=restore, on=clock)

    return Case(
        name=name,
        measure=cost("µs", 1e-6),
        work=1,
        ours=contender("infer-accel", ours),
        peers=[contender("torch addmm_", added)],
    )
