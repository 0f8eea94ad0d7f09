"""The worst that anybody can do to a contender with 100 KB of text."""

from __future__ import annotations

import random
import time
from functools import cache
from typing import TYPE_CHECKING, Any

from infer_accel.bench.harness import Case, Contender, cost
from infer_accel.bench.tokenize import shapes

if TYPE_CHECKING:
    from collections.abc import Callable

    from infer_accel.bench.tokenize.contenders import Field, Way

__all__ = ["case", "texts"]

_BYTES = 100_000

#: Units that are repeated: what regular expressions go back over, and what merges in long chains.
_UNITS = (
    "a",
    "A",
    "aA",
    "ab",
    " ",
    "\n",
    "\r\n",
    " \n",
    " a",
    "1",
    "'",
    "'s",
    "^",
    "=-",
    "_",
    "/",
    "\0",
    "é",
    "e\u0301",
    "\u0301",
    "ſ",
    "漢",
    "かな",
    "ア・",
    "क्षि",
    "ๆ",
    "\u3000",
    "👩\u200d👧",
    "\U0010ffff",
)


@cache
def texts(number: int) -> list[str]:
    """Return texts of 100 KB: one unit again and again, one long word, characters from everywhere.

    No two numbers have a text in common: whoever means harm sends something new each time, and a contender that keeps
    what it met would otherwise show how fast it finds it again.
    """
    repeated = [(unit * (_BYTES // len(unit.encode())))[number:] for unit in _UNITS]
    generator = random.Random(number)  # noqa: S311 - the same texts at every run
    alphabets = [
        [chr(code) for code in range(ord("a"), ord("z") + 1)],
        [chr(code) for code in range(0x20, 0x7F)],
        [chr(code) for code in range(0x4E00, 0x9FA0)],
        [chr(code) for code in range(0x100, 0x11_0000) if not 0xD800 <= code < 0xE000],
    ]
    chosen = ("".join(generator.choices(alphabet, k=_BYTES)) for alphabet in alphabets)
    return repeated + [text.encode()[:_BYTES].decode(errors="ignore") for text in chosen]


def case(name: str, entrants: Field) -> Case:
    """Time each text alone; the row is the slowest one of each contender, which need not be the same."""
    oracle = cache(lambda number: [entrants.oracle(text) for text in texts(number)])

    def make(way: Way, call: Callable[[Any], Any]) -> Contender:
        number, slowest = [0], [0.0]

        def renew() -> None:
            number[0] += 1
            texts(number[0])

        def run() -> list[Any]:
            results, slowest[0] = [], 0.0
            for text in texts(number[0]):
                busy, start = time.process_time(), time.perf_counter()
                result = call(text)
                took = time.perf_counter() - start
                # As in other rows of one thread: who takes a second one is charged for both.
                charged = time.process_time() - busy if way.takes_threads else took
                slowest[0] = max(slowest[0], took, charged)
                results.append(result)
            return results

        def check(results: Any) -> None:  # noqa: ANN401 - a list of what each contender returns
            for text, result, ids in zip(texts(number[0]), results, oracle(number[0]), strict=True):
                try:
                    shapes.check_ids(result, ids)
                except AssertionError as error:
                    raise AssertionError(f"{error}: {text[:8]!r} …") from error

        return Contender(way.name, run, check=check, prepare=renew, meter=lambda: slowest[0])

    contender, peers = shapes.contenders("encode_list", entrants, make)
    return Case(f"the worst 100 KB to a list, {name}", cost("ms", 1e-3), 1, contender, peers)
