"""Merging and applying adapters on a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from infer_accel import lora
from infer_accel.bench.cuda.device import require
from infer_accel.bench.harness import Case, Floor, cost
from infer_accel.kernels import apply_adapters as applying
from infer_accel.kernels import merge_weights as merging
from infer_accel.kernels._stack import CudaStack

if TYPE_CHECKING:
    from collections.abc import Iterator

    from infer_accel.bench.cuda.device import Gpu
    from infer_accel.bench.harness import Bench

__all__ = ["cases"]

#: Of a layer of an 8B Llama: outputs, inputs.
_SHAPES = (
    (4096, 4096),
    (1024, 4096),
    (1024, 4096),
    (4096, 4096),
    (14336, 4096),
    (14336, 4096),
    (4096, 14336),
)
_LAYERS = 32
_SCALING = 0.5
_BATCHES = ((1, 1), (8, 8), (8, 256), (64, 64), (64, 256))
#: Adapter stacks that take turns: together far more than a second-level cache.
_CACHE_BYTES = 256 << 20


def cases(bench: Bench, gpu: Gpu) -> Iterator[Case]:
    """Yield merges of a model's layers, and mixed batches of one layer."""
    for rank in (16,) if bench.quick else (8, 16, 32, 64):
        yield _merge(bench, gpu, rank)
    for adapters, tokens in _BATCHES[1 : 3 if gpu.is_real else 2] if bench.quick else _BATCHES:
        yield _apply(bench, gpu, adapters, tokens, rank=16)


def _merge(bench: Bench, gpu: Gpu, rank: int) -> Case:
    layers = 2 if bench.quick else _LAYERS
    shapes = list(_SHAPES) * layers if gpu.is_real else [(20, 24), (5, 8)]
    dtype = torch.bfloat16
    weights = [gpu.random(*shape, dtype=dtype, seed=i, size=0.02) for i, shape in enumerate(shapes)]
    adapters = [
        (
            gpu.random(rank, shape[1], dtype=dtype, seed=1000 + i, size=0.02),
            gpu.random(shape[0], rank, dtype=dtype, seed=2000 + i, size=0.02),
            _SCALING,
        )
        for i, shape in enumerate(shapes)
    ]
    bases = [weight.clone() for weight in weights]
    # A call adds the adapter to what the last one left; a sample begins at the base. The CPU's kernel is the oracle.
    wanted, (a, b, scaling) = bases[1].cpu().clone(), adapters[1]
    for _ in range(gpu.calls):
        lora.merge_weights(wanted, a.cpu(), b.cpu(), scaling=scaling)

    def restore() -> None:
        for weight, base in zip(weights, bases, strict=True):
            weight.copy_(base)

    def near(_: object) -> None:
        found, aim = weights[1].cpu().double(), wanted.double()
        # Both round once in each call: half a unit of bfloat16.
        bound = 2 * gpu.calls * 2.0**-8 * (aim.abs() + 0.01)
        require(bool(((found - aim).abs() <= bound).all()), "weights are too far off")

    def equal(_: object) -> None:
        require(torch.equal(weights[1].cpu(), wanted), "the bits are not those of the CPU")

    is_exact = rank <= merging.EXACT_RANK

    def added(_: int) -> None:
        for weight, (a, b, scaling) in zip(weights, adapters, strict=True):
            weight.addmm_(b, a, alpha=scaling)

    def twice_rounded(_: int) -> None:
        for weight, (a, b, scaling) in zip(weights, adapters, strict=True):
            weight.add_((b @ a) * scaling)

    moved = 2 * sum(weight.nbytes for weight in weights)
    return Case(
        name=f"cuda: merge {len(weights)} layers of an 8B model, bfloat16, rank {rank}",
        measure=cost("ms", 1e-3),
        work=1,
        ours=gpu.contender(
            "infer-accel",
            lambda _: merging.merge_many(weights, adapters),
            sets=1,
            check=equal if is_exact else near,
            prepare=restore,
        ),
        peers=[
            gpu.contender("torch addmm_", added, sets=1, check=near, prepare=restore),
            # Its way is two roundings a call: it may be further off than the bound allows.
            gpu.contender(
                "PEFT's way: weight += (B @ A) * s", twice_rounded, sets=1, check=None, prepare=restore
            ),
        ],
        floor=Floor("device copy", moved / gpu.copy_rate(bench.limits)),
    )


def _apply(bench: Bench, gpu: Gpu, adapters: int, tokens: int, *, rank: int) -> Case:
    """Apply a mixed batch to a layer of 4096 by 4096; stacks take turns, so that adapters come from memory."""
    side = 4096 if gpu.is_real else 40
    dtype = torch.bfloat16
    bytes_ = adapters * 2 * side * rank * 2
    sets = max(2, _CACHE_BYTES // bytes_) if gpu.is_real else 2
    products = [
        [
            (
                gpu.random(rank, side, dtype=dtype, seed=100 * turn + i, size=0.05),
                gpu.random(side, rank, dtype=dtype, seed=100 * turn + i + 50, size=0.05),
                _SCALING,
            )
            for i in range(adapters)
        ]
        for turn in range(sets)
    ]
    stacks = [CudaStack([[product] for product in listed], range(adapters), None) for listed in products]
    ids = np.random.default_rng(0).permutation(np.arange(tokens) % adapters)
    x = gpu.random(tokens, side, dtype=dtype, seed=7)
    out = torch.zeros(tokens, side, dtype=dtype, device=gpu.device)
    places = [torch.from_numpy(np.flatnonzero(ids == i)).to(gpu.device) for i in range(adapters)]
    ids_on_device = torch.from_numpy(ids.astype(np.int32)).to(gpu.device) if gpu.is_real else ids

    def clear() -> None:
        out.zero_()

    def ours(turn: int) -> None:
        out.zero_()
        applying.apply_adapters(x, stacks[turn], ids_on_device, out=out)

    def one_by_one(turn: int) -> None:
        out.zero_()
        for (a, b, scaling), index in zip(products[turn], places, strict=True):
            out.index_add_(0, index, (x[index] @ a.T) @ b.T, alpha=scaling)

    def check(turn: object) -> None:
        if not isinstance(turn, int):
            raise TypeError(turn)
        for (a, b, scaling), index in zip(products[turn], places, strict=True):
            wanted = scaling * ((x[index].double() @ a.double().T) @ b.double().T)
            sizes = scaling * ((x[index].double().abs() @ a.double().abs().T) @ b.double().abs().T)
            # Rivals round what lies between the products to bfloat16.
            distance = (out[index].double() - wanted).abs()
            require(bool((distance <= 2.0**-6 * sizes + 1e-6).all()), "outputs are too far off")

    return Case(
        name=f"cuda: apply {adapters} adapters to {tokens} tokens, {side} x {side}, bfloat16, rank {rank}",
        measure=cost("µs", 1e-6),
        work=1,
        ours=gpu.contender("infer-accel", ours, sets=sets, check=check, prepare=clear),
        peers=[gpu.contender("torch, adapter by adapter", one_by_one, sets=sets, check=check, prepare=clear)],
        # Read once: a copy of as many bytes would write them as well.
        floor=Floor("adapters at the rate of a device copy", bytes_ / gpu.copy_rate(bench.limits)),
    )
