"""The shapes of calls that rows of tokenize time: long texts, messages, batches, ids."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from infer_accel.bench.harness import Case, Contender, cost, rate
from infer_accel.bench.tokenize.contenders import THREADS, Field, Way

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["batch", "check_ids", "cold", "contenders", "cut", "decode", "decode_batch", "long", "short"]


@dataclass
class _Turns:
    """Hands out the next input at every call, and remembers it for the check."""

    inputs: Sequence[Any]
    current: Any = None
    _order: Iterator[Any] = field(default_factory=lambda: iter(()))

    def __post_init__(self) -> None:
        self._order = itertools.cycle(self.inputs)

    def next(self) -> Any:  # noqa: ANN401 - texts or lists of texts
        self.current = next(self._order)
        return self.current


def cut(text: str, characters: int) -> list[str]:
    """Return the parts of a text, each of so many characters; what is left over is left out."""
    return [text[at : at + characters] for at in range(0, len(text) - characters, characters)]


def contenders(
    work: str, entrants: Field, make: Callable[[Way, Callable[[Any], Any]], Contender]
) -> tuple[Contender, list[Contender]]:
    """Return the contenders that have a way to do this work, ours and the others."""
    made = [make(way, call) for way in entrants.ways if (call := getattr(way, work)) is not None]
    return made[0], made[1:]


def long(name: str, work: str, texts: list[str], entrants: Field, *, repeated: bool = False) -> Case:
    """Time one long text a call, each of them unseen unless `repeated`."""

    def make(way: Way, call: Callable[[Any], Any]) -> Contender:
        turns = _Turns([text[: int(len(text) * way.share)] for text in texts])
        return Contender(
            way.name,
            lambda: call(turns.next()),
            check=lambda result: check_ids(result, entrants.oracle(turns.current)),
            work=sum(len(text.encode()) for text in turns.inputs) / len(turns.inputs),
            takes_threads=way.takes_threads,
        )

    contender, peers = contenders(work, entrants, make)
    fresh = None if repeated else len(texts)
    return Case(name, rate("MB/s", 1e6), contender.work or 0.0, contender, peers, fresh_calls=fresh)


def cold(name: str, text: str, entrants: Field) -> Case:
    """Time the first text that a new instance encodes; making the instance is not timed."""

    def make(way: Way, call: Callable[[Any], Any]) -> Contender:
        part = text[: int(len(text) * way.share)]
        current = [call]

        def renew() -> None:
            if way.fresh is not None:
                current[0] = way.fresh().encode or call

        return Contender(
            way.name,
            lambda: current[0](part),
            check=lambda result: check_ids(result, entrants.oracle(part)),
            prepare=renew,
            work=len(part.encode()),
            takes_threads=way.takes_threads,
        )

    contender, peers = contenders("encode", entrants, make)
    return Case(name, rate("MB/s", 1e6), contender.work or 0.0, contender, peers)


def short(name: str, work: str, texts: list[str], entrants: Field) -> Case:
    """Time one message a call, thousands of them in turn."""

    def make(way: Way, call: Callable[[Any], Any]) -> Contender:
        turns = _Turns(texts)
        return Contender(
            way.name,
            lambda: call(turns.next()),
            check=lambda result: check_ids(result, entrants.oracle(turns.current)),
        )

    contender, peers = contenders(work, entrants, make)
    return Case(name, cost("µs", 1e-6), 1, contender, peers)


def batch(name: str, work: str, batches: list[list[str]], entrants: Field) -> Case:
    """Time a batch of messages a call, on two threads."""
    agree = _check_counts if work == "count_batch" else _check_lists

    def make(way: Way, call: Callable[[Any], Any]) -> Contender:
        turns = _Turns(batches)

        def check(result: object) -> None:
            agree(result, [entrants.oracle(text) for text in turns.current])

        return Contender(way.name, lambda: call(turns.next()), check=check)

    contender, peers = contenders(work, entrants, make)
    return Case(name, rate("MB/s", 1e6), _mean_size(batches), contender, peers, threads=THREADS)


def decode(name: str, texts: list[str], entrants: Field) -> Case:
    """Time the ids of one message a call."""
    pairs = [(entrants.oracle(text), text) for text in texts]

    def make(way: Way, call: Callable[[Any], Any]) -> Contender:
        turns = _Turns([(_as_taken(way, ids), text) for ids, text in pairs])

        def check(result: object) -> None:
            if result != turns.current[1]:
                raise AssertionError("the text that came back is another one")

        return Contender(way.name, lambda: call(turns.next()[0]), check=check)

    contender, peers = contenders("decode", entrants, make)
    return Case(name, cost("µs", 1e-6), 1, contender, peers)


def decode_batch(name: str, batches: list[list[str]], entrants: Field) -> Case:
    """Time the ids of many messages a call, on two threads; the work is the text that comes out."""
    ids = [[entrants.oracle(text) for text in texts] for texts in batches]

    def make(way: Way, call: Callable[[Any], Any]) -> Contender:
        taken = [[_as_taken(way, numbers) for numbers in many] for many in ids]
        turns = _Turns(list(zip(taken, batches, strict=True)))

        def check(result: object) -> None:
            if result != turns.current[1]:
                raise AssertionError("the texts that came back are others")

        return Contender(way.name, lambda: call(turns.next()[0]), check=check)

    contender, peers = contenders("decode_batch", entrants, make)
    return Case(name, rate("MB/s", 1e6), _mean_size(batches), contender, peers, threads=THREADS)


def _as_taken(way: Way, ids: list[int]) -> Any:  # noqa: ANN401 - a list or an array
    return ids if way.takes_lists else np.array(ids, dtype=np.uint32)


def _mean_size(batches: list[list[str]]) -> float:
    return sum(len(text.encode()) for texts in batches for text in texts) / len(batches)


def check_ids(result: Any, expected: list[int]) -> None:  # noqa: ANN401 - a count, a list or an array, by contender
    """Raise where a contender's ids, or its count of them, are not the oracle's."""
    if isinstance(result, int):
        if result != len(expected):
            raise AssertionError(f"{result} tokens instead of {len(expected)}")
    elif list(result) != expected:
        raise AssertionError("the ids differ from the reference's")


def _check_counts(result: Any, expected: list[list[int]]) -> None:  # noqa: ANN401 - a list or an array
    if [int(count) for count in result] != list(map(len, expected)):
        raise AssertionError("the counts differ from the reference's")


def _check_lists(result: Any, expected: list[list[int]]) -> None:  # noqa: ANN401 - each contender has its own kind
    if isinstance(result, tuple):  # toktok and fastokens: all ids, and where each text's begin
        ids, offsets = (np.asarray(part) for part in result[:2])
        result = [ids[int(start) : int(end)] for start, end in itertools.pairwise(offsets)]
    if [np.asarray(ids).tolist() for ids in result] != expected:
        raise AssertionError("the ids differ from the reference's")
