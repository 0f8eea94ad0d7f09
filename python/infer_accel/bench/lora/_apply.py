"""Applying: the adapter of some tokens, added to what the layer computed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from infer_accel import lora, reference
from infer_accel.bench.harness import Case, Contender, Floor, cost
from infer_accel.bench.lora._arrays import SCALING, close, random, tensor, wide

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType
    from typing import Any

    from numpy.typing import NDArray

    from infer_accel.bench.harness import Bench

__all__ = ["cases"]


def cases(bench: Bench) -> Iterator[Case]:
    """Yield the rows of applying."""
    formats = bench.rival("ml_dtypes")  # numpy has no name for bfloat16
    if formats is not None:
        for tokens in (1, 64):
            yield from _case(bench, formats, tokens, 16)


def _case(bench: Bench, formats: ModuleType, tokens: int, rank: int) -> Iterator[Case]:
    """Yield the row of one adapter applied to the tokens of a step."""
    width, dtype = 4096, "bfloat16"
    rng = np.random.default_rng(tokens)
    x = random(rng, (tokens, width), 1.0, dtype)
    a = random(rng, (rank, width), 0.02, dtype)
    b = random(rng, (width, rank), 0.01, dtype)
    before = random(rng, (tokens, width), 1.0, dtype)
    exact = before.copy()
    reference.lora.apply_adapter(
        *(array.view(formats.bfloat16) for array in (x, a, b)),
        scaling=SCALING,
        out=exact.view(formats.bfloat16),
    )
    out = before.copy()
    views = tuple(array.view(formats.bfloat16) for array in (x, a, b))
    target = out.view(formats.bfloat16)

    # A call takes microseconds, so calls are repeated and add up; the checks begin from where they should.
    def ours() -> None:
        lora.apply_adapter(*views, scaling=SCALING, out=target, num_threads=1)

    def check(_: object) -> None:
        out[...] = before
        ours()
        np.testing.assert_array_equal(out, exact)

    peers = []
    if (torch := bench.rival("torch")) is not None:
        peers = _torch_applies(torch, (x, a, b, before), exact)
    macs = 2 * tokens * width * rank
    yield Case(
        name=f"apply {width}→{width} bfloat16, rank {rank}, {tokens} token{'s' * (tokens > 1)}, 1 thread",
        measure=cost("µs", 1e-6),
        work=1,
        ours=Contender("infer-accel", ours, check=check),
        peers=peers,
        floor=Floor("FMA rate", 2 * macs / bench.limits.fma_rate("f32", threads=1)),
    )


def _torch_applies(
    torch: ModuleType, arrays: tuple[NDArray[Any], ...], exact: NDArray[Any]
) -> list[Contender]:
    """Return the ways that torch has: two products and a sum, or the sum within the second product."""
    x, a, b, before = (tensor(torch, array, "bfloat16") for array in arrays)
    out = before.clone()
    down, up = a.T, b.T

    def add() -> None:
        out.add_((x @ down) @ up, alpha=SCALING)

    def addmm() -> None:
        out.addmm_(x @ down, up, alpha=SCALING)

    def check_of(run: Callable[[], None]) -> Callable[[object], None]:
        def check(_: object) -> None:
            out.copy_(before)
            run()
            # What lies between torch's products has eight bits, which shows where the sum is small.
            bits = out.view(torch.int16).numpy().view(np.uint16)
            close(bits, wide(exact, "bfloat16"), "bfloat16", slack=0.02)

        return check

    return [
        Contender("torch two matmuls", add, check=check_of(add)),
        Contender("torch addmm_", addmm, check=check_of(addmm)),
    ]
