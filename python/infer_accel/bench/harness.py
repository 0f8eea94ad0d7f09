"""Validate, then time ours and the rivals' side by side, in the same run.

A part is a module ``infer_accel.bench.<part>`` with one generator, ``cases``. It builds the input of a row,
yields the row, and lets go of the input when it is resumed, so that one row's arrays are alive at a time::

    import numpy as np

    from infer_accel import kvcache, reference
    from infer_accel.bench.harness import Bench, Case, Contender, Floor, cost, rate


    def cases(bench: Bench) -> Iterator[Case]:
        source = np.random.default_rng(0).integers(0, 255, (4096, 32768), dtype=np.uint8)
        target = np.empty_like(source)
        mapping = np.random.default_rng(1).permutation(4096).astype(np.int64)
        pairs = np.stack([np.arange(4096), mapping], axis=1)
        expected = reference.page_copy(source, np.zeros_like(target), pairs)

        def poison() -> None:            # before every call, not timed
            target.fill(0xAA)

        def check(result: object) -> None:       # AssertionError = the row does not exist
            np.testing.assert_array_equal(target, expected)

        peers = [Contender("numpy", lambda: target.__setitem__(mapping, source), prepare=poison, check=check)]
        if (torch := bench.rival("torch")) is not None:      # None is remembered, and said below the table
            to, fro = torch.from_numpy(target), torch.from_numpy(source)
            index = torch.from_numpy(mapping)
            peers.append(Contender("torch", lambda: to.__setitem__(index, fro), prepare=poison, check=check))

        moved = 2 * source.nbytes                            # read and written
        yield Case(
            name="page_copy 32 KiB pages, 1 thread",         # shape, dtype, threads: the key of comparisons
            measure=rate("GB/s", 1e9),                       # or cost("ns/block", 1e-9)
            work=moved,                                      # of one call, in the unit's thing: bytes, blocks
            ours=Contender("infer-accel", lambda: kvcache.page_copy(source, target, pairs, num_threads=1),
                           prepare=poison, check=check),
            peers=peers,
            floor=Floor("copy bandwidth", moved / bench.limits.copy_bandwidth(threads=1)),  # seconds, at best
            threads=1,
        )

Rules
- ``check`` gets what ``run`` returned. Ours is checked before timing and once more after it; a
  failure there is an error of the whole run. A rival that fails its check is left out, and the table says so.
  ``check=None`` for a rival means "not comparable bit for bit, by its own design": say why in a comment.
- Calls of microseconds: leave ``prepare`` out where a repeated call does the same work, and the harness
  repeats the call inside one sample (20 microseconds of clock and loop would otherwise be measured).
- Where caches must not help, each call takes the next part of the input, and ``fresh_calls`` says how many parts
  there are: no more calls are made than that, and none is repeated inside a sample.
- A rival that is much slower may do a part of the work: give it its own ``work``.
- ``bench.quick`` asks for fewer cases and smaller input, not for a different kind of input: a part should
  take at most 30 seconds then, imports and oracles included.
- Never print. Never import a rival at the top of the file: ``bench.rival`` does, and knows what is missing.
"""

from __future__ import annotations

import gc
import random
import statistics
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from infer_accel.bench.limits import Limits
from infer_accel.bench.rivals import Rivals
from infer_accel.bench.threads import limited_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import ModuleType

    from infer_accel.bench.rows import Json

__all__ = [
    "Bench",
    "Case",
    "CaseSource",
    "Contender",
    "Floor",
    "Measure",
    "Measured",
    "Planned",
    "ValidationError",
    "cost",
    "describe",
    "measure_case",
    "rate",
]

Better = Literal["higher", "lower"]


class ValidationError(Exception):
    """Ours did not agree with its oracle: there is nothing to time."""


@dataclass(frozen=True, slots=True)
class Measure:
    """How seconds and work become the number of a row."""

    unit: str
    scale: float
    better: Better

    def value(self, work: float, seconds: float) -> float:
        """Return the row's number for `work` done in `seconds`."""
        if self.better == "higher":
            return work / seconds / self.scale
        return seconds / work / self.scale


def rate(unit: str, scale: float) -> Measure:
    """Measure work a second, in units of `scale`: ``rate("GB/s", 1e9)``. Higher is better."""
    return Measure(unit, scale, "higher")


def cost(unit: str, scale: float) -> Measure:
    """Measure seconds a unit of work, in units of `scale`: ``cost("ns/block", 1e-9)``. Lower is better."""
    return Measure(unit, scale, "lower")


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to do the work of a case.

    Parameters
    ----------
    name
        "infer-accel", or the rival's name as a reader knows it ("torch addmm_").
    run
        The call that is timed.
    check
        Compares what `run` returned, or left in place, with the oracle; raises AssertionError if it differs.
    prepare
        Runs before every call, untimed: undoes the last call, poisons the output.
    work
        What this contender does in a call where that is less than the case's work.
    meter
        Reads, after a call, what is measured instead of seconds: bytes of memory, for instance.
    by_the_clock
        Whether what `meter` reads is only a part of the time that a call takes, as where a call asks a device
        for many: then the host's clock says how many rounds there is time for.
    takes_threads
        Whether it takes more threads than a row of one thread has, and cannot be told not to: it is charged the
        processor time of the whole process where that is more than the time that passes.
    """

    name: str
    run: Callable[[], object]
    check: Callable[[object], None] | None = None
    prepare: Callable[[], None] | None = None
    work: float | None = None
    meter: Callable[[], float] | None = None
    by_the_clock: bool = False
    takes_threads: bool = False


@dataclass(frozen=True, slots=True)
class Floor:
    """The fewest seconds in which this machine could do the work of a case, by the limit `name`."""

    name: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Case:
    """A row before it is measured: see the module's own documentation for an example."""

    name: str
    measure: Measure
    work: float
    ours: Contender
    peers: Sequence[Contender] = ()
    floor: Floor | None = None
    threads: int = 1
    #: Calls of each contender that meet input it has not seen, checks included; None where input may repeat.
    fresh_calls: int | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """Medians of a case: seconds a call by contender, ours first, and the rivals left out with the reason."""

    seconds: dict[str, float]
    left_out: dict[str, str]
    rounds: int
    spread: float


@dataclass(frozen=True, slots=True)
class Planned:
    """A row that is built only when it is to be measured, as its input fills a device or takes long to make.

    What goes wrong while it is built concerns this row alone, and a run that is resumed builds no row that it has.
    """

    name: str
    build: Callable[[], Case]


class CaseSource(Protocol):
    """What a part offers: the function `cases` of its module."""

    def __call__(self, bench: Bench) -> Iterator[Case | Planned]:
        """Yield the part's cases, one at a time."""


@dataclass(slots=True)
class Bench:
    """What a part may ask for while it builds its cases."""

    quick: bool = False
    limits: Limits = field(default_factory=Limits)
    rivals: Rivals = field(default_factory=Rivals)
    #: Seconds of timed calls that one case may take; validation and preparation come on top.
    seconds_a_case: float = 4.0
    #: What a record says of the GPU that is measured; None where the processor is.
    gpu: dict[str, Json] | None = None

    def rival(self, name: str) -> ModuleType | None:
        """Return the rival's module, or None where it is not installed (which the report then says)."""
        return self.rivals.load(name)


#: A sample shorter than this is mostly clock: calls are repeated inside a sample until it is that long.
_SHORTEST_SAMPLE = 1e-3
_ROUNDS_AT_LEAST = 5
_ROUNDS_AT_MOST = 101
#: No time is zero, whatever a coarse clock says.
_CLOCK_STEP = 1e-9
#: Who takes longer than this for one call is asked three times only: a rival may be a thousand times slower.
_SLOW_CALL = 0.5
_ROUNDS_OF_THE_SLOW = 3
#: Who takes longer than this is asked once: a whole model merged the slow way takes half a minute.
_ENDLESS_CALL = 8.0
#: Two checks and a rehearsal.
_CALLS_BESIDE_ROUNDS = 3


def measure_case(case: Case, *, seconds: float, progress: Callable[[str], None] | None = None) -> Measured:
    """Check every contender of a case, then time them round by round in turn.

    Parameters
    ----------
    case
        What is measured.
    seconds
        Roughly how long the timed calls may take, shared equally; five rounds are made whatever it says, and
        three of a rival whose call takes longer than half a second.
    progress
        Called with a short text at each stage.

    Returns
    -------
    Measured
        The median seconds of a call of each contender, and the rivals that were left out.

    Raises
    ------
    ValidationError
        Ours differs from its oracle, before the timing or after it.
    """
    say = progress or (lambda _: None)
    if case.ours.check is None:
        raise ValidationError(f"{case.name}: no oracle was given; a row must be checked before it is timed")
    with limited_threads(case.threads):
        say("checking")
        _validate(case, "before timing")
        rivals, left_out = _fit_rivals(case)
        contenders = [case.ours, *rivals]
        say("timing")
        samples = _time(contenders, seconds, case.fresh_calls)
        _validate(case, "after timing")
    medians = {who.name: statistics.median(times) for who, times in zip(contenders, samples, strict=True)}
    return Measured(medians, left_out, len(samples[0]), _spread(samples[0]))


def _validate(case: Case, when: str) -> None:
    """Run ours once, from a prepared state, and compare with the oracle."""
    ours = case.ours
    try:
        if ours.prepare is not None:
            ours.prepare()
        result = ours.run()
    except Exception as error:
        raise ValidationError(f"{case.name}: the call failed {when}: {describe(error)}") from error
    try:
        if ours.check is not None:
            ours.check(result)
    except Exception as error:
        raise ValidationError(f"{case.name}: wrong {when}: {describe(error)}") from error


def _fit_rivals(case: Case) -> tuple[list[Contender], dict[str, str]]:
    """Return the rivals that run and agree, and for the others why they do not."""
    fit: list[Contender] = []
    left_out: dict[str, str] = {}
    for peer in case.peers:
        try:
            if peer.prepare is not None:
                peer.prepare()
            result = peer.run()
            if peer.check is not None:
                peer.check(result)
        except Exception as error:  # noqa: BLE001 - a rival may fail in any way; the run goes on without it
            left_out[peer.name] = describe(error)
        else:
            fit.append(peer)
    return fit, left_out


def _time(contenders: Sequence[Contender], seconds: float, fresh_calls: int | None) -> list[list[float]]:
    """Return each contender's seconds a call in the rounds that it took part in."""
    share = seconds / len(contenders)
    paces = [_Pace.of(who, share, fresh_calls) for who in contenders]
    rounds = max(pace.rounds for pace in paces)
    samples = [[pace.first] if pace.rounds == 0 else [] for pace in paces]
    collecting = gc.isenabled()
    gc.disable()
    try:
        order = list(range(len(contenders)))
        # Whoever follows the same neighbour every time inherits the same caches, and threads that are not asleep yet:
        # so the order is another one in each round, and the same in each run.
        shuffle = random.Random(0).shuffle  # noqa: S311 - no secret
        for turn in range(rounds):
            shuffle(order)
            for index in order:
                if paces[index].takes_part(turn, rounds):
                    samples[index].append(_sample(contenders[index], paces[index].repeats))
    finally:
        if collecting:
            gc.enable()
    return samples


@dataclass(frozen=True, slots=True)
class _Pace:
    """How many calls make a sample, and how many samples a contender's share of the time allows.

    No round at all means that the first call was the only one.
    """

    repeats: int
    rounds: int
    first: float

    @classmethod
    def of(cls, who: Contender, share: float, fresh_calls: int | None) -> _Pace:
        count = 1
        start = time.perf_counter()
        seconds = _sample(who, count)
        took = time.perf_counter() - start if who.by_the_clock else seconds
        if took > _ENDLESS_CALL:
            return cls(count, 0, seconds)
        # A call that must be prepared, or meets fresh input, cannot be repeated inside a sample.
        repeatable = who.prepare is None and fresh_calls is None and who.meter is None
        while repeatable and seconds * count < _SHORTEST_SAMPLE:
            count = max(2 * count, min(1 << 20, int(_SHORTEST_SAMPLE / max(seconds, 1e-9))))
            took = seconds = _sample(who, count)
        at_least = _ROUNDS_AT_LEAST if took < _SLOW_CALL else _ROUNDS_OF_THE_SLOW
        at_most = _ROUNDS_AT_MOST if fresh_calls is None else fresh_calls - _CALLS_BESIDE_ROUNDS
        rounds = max(at_least, int(share / (took * count)))
        return cls(count, max(1, min(at_most, rounds)), seconds)

    def takes_part(self, turn: int, rounds: int) -> bool:
        """Whether `turn` of `rounds` is one of this contender's, which lie evenly among them."""
        return turn * self.rounds // rounds != (turn - 1) * self.rounds // rounds


def _sample(who: Contender, count: int) -> float:
    """Return the seconds of one of `count` calls in a row."""
    if who.prepare is not None:
        who.prepare()
    run = who.run
    if who.meter is not None:
        run()
        return max(who.meter(), _CLOCK_STEP)
    clock = time.perf_counter
    busy = time.process_time() if who.takes_threads else 0.0
    if count == 1:
        start = clock()
        run()
        seconds = clock() - start
    else:
        turns = range(count)
        start = clock()
        for _ in turns:
            run()
        seconds = clock() - start
    if who.takes_threads:
        seconds = max(seconds, time.process_time() - busy)
    return max(seconds, _CLOCK_STEP) / count


def _spread(samples: Sequence[float]) -> float:
    """Return half the distance between the quartiles as a share of the median."""
    if len(samples) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(samples, n=4)
    return (high - low) / 2 / middle if middle else 0.0


def describe(error: Exception) -> str:
    """Return the kind of an error and the first two lines of its text: what fits into a report."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    kind = type(error).__name__
    return f"{kind}: {'; '.join(lines[:2])}" if lines else kind
