"""Three clocks: of a device that is given calls one by one, of one that replays a graph, of the host that gives them.

Before each sample of the first two the device is kept busy for as long as the host takes to give it everything: what
is timed then is the device alone, and none of its waiting for the host. That has rows of its own, by the third clock.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from infer_accel.bench.harness import Contender

if TYPE_CHECKING:
    from collections.abc import Callable

    Call = Callable[[int], object]
    Check = Callable[[object], None] | None
    Prepare = Callable[[], None] | None

__all__ = ["Timed", "by_one", "by_the_host", "in_a_graph", "seconds"]

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


@dataclass(frozen=True, slots=True)
class Timed:
    """What one of the clocks times: calls on a device that take turns with inputs.

    Parameters
    ----------
    device, name
        Where, and whose row.
    call
        Takes the number of an input.
    check, prepare
        As for :class:`~infer_accel.bench.harness.Contender`.
    sets
        How many inputs there are.
    count
        Calls of one sample; a graph has one for each of the inputs.
    """

    device: torch.device
    name: str
    call: Call
    check: Check
    prepare: Prepare = None
    sets: int = 1
    count: int = 1

    def contender(self, run: Callable[[], int], meter: Callable[[], float]) -> Contender:
        """Return a contender whose samples `run` takes and `meter` tells."""
        return Contender(
            self.name, run, check=self.check, prepare=self.prepare, meter=meter, by_the_clock=True
        )


def by_one(timed: Timed) -> Contender:
    """Return a contender whose samples are calls on the device's clock."""
    turns = itertools.cycle(range(timed.sets))
    measured = held = 0.0

    def run() -> int:
        nonlocal measured, held
        last = 0

        def all_calls() -> None:
            nonlocal held, last
            begin = time.perf_counter()
            for _ in range(timed.count):
                last = next(turns)
                timed.call(last)
            held = time.perf_counter() - begin

        # The host is no faster than it was; where it was held by compiling, the bound takes care of that.
        measured = seconds(timed.device, all_calls, start=1.5 * held) / timed.count
        return last

    return timed.contender(run, lambda: measured)


def in_a_graph(timed: Timed) -> Contender:
    """Return a contender that captures a call with each of the inputs, and replays them all on the device's clock.

    What cannot be captured fails at the first run: a rival is left out then, with the reason.
    """
    replays: list[Callable[[], object]] = []
    measured = 0.0

    def calls() -> None:
        for turn in range(timed.sets):
            timed.call(turn)

    def run() -> int:
        nonlocal measured
        if not replays:
            replays.append(_captured(timed.device, calls))
            if timed.prepare is not None:  # the rehearsal of the capture has made its calls
                timed.prepare()
        measured = seconds(timed.device, replays[0]) / timed.sets
        return timed.sets - 1

    return timed.contender(run, lambda: measured)


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


def by_the_host(timed: Timed) -> Contender:
    """Return a contender timed by the host's clock: how long a call holds its caller, while the device works later.

    The calls of a sample must fit into a stream's queue, of a thousand launches, or the device is what is timed.
    """
    turns = itertools.cycle(range(timed.sets))
    measured = 0.0

    def run() -> int:
        nonlocal measured
        last = 0
        _wait(timed.device)
        begin = time.perf_counter()
        for _ in range(timed.count):
            last = next(turns)
            timed.call(last)
        measured = (time.perf_counter() - begin) / timed.count
        _wait(timed.device)
        return last

    return timed.contender(run, lambda: measured)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
