"""Three clocks: of a device that is given calls one by one, of one that replays a graph, of the host that gives them.

Before each sample of the first two the device is kept busy for as long as the host takes to give it everything: what
is timed then is the device alone, and none of its waiting for the host. That has rows of its own, by the third clock.
"""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING

import torch

from infer_accel.bench.harness import Contender

if TYPE_CHECKING:
    from collections.abc import Callable

    Call = Callable[[int], object]
    Check = Callable[[object], None] | None
    Prepare = Callable[[], None] | None

__all__ = ["by_one", "by_the_host", "in_a_graph", "seconds"]

#: Seconds that the host needs at least to give a device one thing to do, and at most where it is waited for.
_LEAST_START, _MOST_START = 1e-4, 0.05
#: More than any device's clock makes in a second, so that it is kept busy a little longer than it is said to.
_CYCLES = 2_500_000_000


def seconds(device: torch.device, calls: Callable[[], object], *, start: float = _LEAST_START) -> float:
    """Return how long a device works on what `calls` gives it; the CPU's own seconds in a rehearsal.

    `start` seconds are spent on nothing before, while the host gives it everything.
    """
    if device.type != "cuda":
        begin = time.perf_counter()
        calls()
        return time.perf_counter() - begin
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    torch.cuda._sleep(int(min(max(start, _LEAST_START), _MOST_START) * _CYCLES))  # noqa: SLF001 - nothing else waits
    first.record()
    calls()
    last.record()
    last.synchronize()
    return float(first.elapsed_time(last)) / 1e3


def by_one(
    device: torch.device,
    name: str,
    call: Call,
    *,
    calls: int,
    sets: int,
    check: Check,
    prepare: Prepare = None,
) -> Contender:
    """Return a contender whose samples are `calls` calls on the device's clock, which take turns with `sets` inputs."""
    turns = itertools.cycle(range(sets))
    measured = held = 0.0

    def run() -> int:
        nonlocal measured, held
        last = 0

        def all_calls() -> None:
            nonlocal held, last
            begin = time.perf_counter()
            for _ in range(calls):
                last = next(turns)
                call(last)
            held = time.perf_counter() - begin

        # The host is no faster than it was; where it was held by compiling, the bound takes care of that.
        measured = seconds(device, all_calls, start=1.5 * held) / calls
        return last

    return Contender(name, run, check=check, prepare=prepare, meter=lambda: measured, by_the_clock=True)


def in_a_graph(
    device: torch.device, name: str, call: Call, *, sets: int, check: Check, prepare: Prepare = None
) -> Contender:
    """Return a contender that captures a call with each of `sets` inputs, and replays them all on the device's clock.

    What cannot be captured fails at the first run: a rival is left out then, with the reason.
    """
    replays: list[Callable[[], object]] = []
    measured = 0.0

    def calls() -> None:
        for turn in range(sets):
            call(turn)

    def run() -> int:
        nonlocal measured
        if not replays:
            replays.append(_captured(device, calls))
            if prepare is not None:  # the rehearsal of the capture has made its calls
                prepare()
        measured = seconds(device, replays[0]) / sets
        return sets - 1

    return Contender(name, run, check=check, prepare=prepare, meter=lambda: measured, by_the_clock=True)


def _captured(device: torch.device, calls: Callable[[], None]) -> Callable[[], object]:
    """Return what replays the calls, which are made once before: what compiles, uploads or allocates does so there."""
    if device.type != "cuda":
        calls()
        return calls
    aside = torch.cuda.Stream(device)
    aside.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(aside):
        calls()
    torch.cuda.current_stream(device).wait_stream(aside)
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        calls()
    replay: Callable[[], object] = graph.replay
    return replay


def by_the_host(
    device: torch.device,
    name: str,
    call: Call,
    *,
    calls: int,
    sets: int,
    check: Check,
    prepare: Prepare = None,
) -> Contender:
    """Return a contender timed by the host's clock: how long a call holds its caller, while the device works later.

    `calls` of them must fit into a stream's queue, which holds a thousand launches, or the device is what is timed.
    """
    turns = itertools.cycle(range(sets))
    measured = 0.0

    def run() -> int:
        nonlocal measured
        last = 0
        _wait(device)
        begin = time.perf_counter()
        for _ in range(calls):
            last = next(turns)
            call(last)
        measured = (time.perf_counter() - begin) / calls
        _wait(device)
        return last

    return Contender(name, run, check=check, prepare=prepare, meter=lambda: measured, by_the_clock=True)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
