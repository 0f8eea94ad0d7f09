"""The books behind transformers' batches, beside an engine whose memory remembers what was written to each row."""

from __future__ import annotations

import random

import numpy as np
import pytest
from tests.soak import repeats

from infer_accel.errors import ArgumentError
from infer_accel.integrations._transformers.books import BatchBooks, Geometry, Portion

#: Rows of keys and values lie behind each other, as for a model of one layer.
SMALL = Geometry(num_blocks=12, block_size=4, stride=8, first_block=2, spare_row=8)


class Engine:
    """Computes nothing: a row of its memory is all tokens up to the one whose keys and values it would hold."""

    def __init__(self, geometry: Geometry = SMALL, *, sharing: bool = True) -> None:
        self.geometry = geometry
        self.books = BatchBooks(geometry, sharing=sharing)
        rows = (geometry.first_block + geometry.num_blocks) * geometry.stride
        self.memory: list[object] = [None] * rows
        self.tokens: dict[str, list[int]] = {}

    def step(self, wanted: dict[str, list[int]]) -> list[str]:
        """Compute what has room of the new tokens of requests; returns which those are."""
        portions = []
        for name, new in wanted.items():
            past = self.tokens.setdefault(name, [])
            if not past and (found := self.books.match(name, new)):
                assert found % self.geometry.block_size == 0
                assert found < len(new)
                past.extend(new[:found])
                del new[:found]
            if self.books.plan(name, len(past), len(new)):
                portions.append(Portion(name, list(new), len(past)))
        for source, target in self.books.begin(portions).tolist():
            size, stride = self.geometry.block_size, self.geometry.stride
            block = self.memory[source * stride : source * stride + size]
            self.memory[target * stride : target * stride + size] = block
        self._write(portions)
        self._read(portions)
        for portion in portions:
            self.books.computed(portion.name)
        self.books.check_invariants()
        return [portion.name for portion in portions]

    def _write(self, portions: list[Portion]) -> None:
        rows = np.zeros(sum(len(portion.token_ids) for portion in portions) + 3, np.int64)
        count = self.books.write_rows(rows)
        assert count == len(rows) - 3
        at = 0
        for name, token_ids, _ in portions:
            for token in token_ids:
                self.tokens[name].append(token)
                row = int(rows[at])
                if row != self.geometry.spare_row:
                    assert row // self.geometry.stride >= self.geometry.first_block
                    assert row % self.geometry.stride < self.geometry.block_size
                    self.memory[row] = tuple(self.tokens[name])
                at += 1

    def _read(self, portions: list[Portion]) -> None:
        count = self.books.num_tokens
        rows = np.zeros(count + 2, np.int64)
        assert self.books.read_rows(rows) == count
        at = 0
        tables = self.books.tables()
        for portion, table in zip(portions, tables, strict=True):
            tokens = self.tokens[portion.name]
            for position in range(len(tokens)):
                assert self.memory[int(rows[at])] == tuple(tokens[: position + 1]), portion.name
                block, offset = divmod(int(rows[at]), self.geometry.stride)
                assert (block, offset) == (
                    table[position // self.geometry.block_size],
                    position % self.geometry.block_size,
                )
                at += 1
        assert at == count

    def free(self, name: str) -> None:
        self.books.free(name)
        del self.tokens[name]


@pytest.mark.parametrize("sharing", [True, False])
@pytest.mark.parametrize("seed", range(repeats(8, 400)))
def test_every_row_is_what_was_written_for_it(seed: int, *, sharing: bool) -> None:
    drawn = random.Random(seed)
    engine = Engine(sharing=sharing)
    waiting: dict[str, list[int]] = {}
    made = 0
    for _ in range(60):
        if drawn.random() < 0.4 and len(engine.tokens) < 5:
            # Few tokens, so that prompts begin alike.
            prompt = [drawn.randrange(2) for _ in range(drawn.randrange(1, 18))]
            waiting[f"r{made}"] = prompt
            made += 1
        if engine.tokens and drawn.random() < 0.15:
            name = drawn.choice(sorted(engine.tokens))
            if name not in waiting and engine.tokens[name]:
                new = [f"r{made}", f"r{made + 1}"]
                made += 2
                count = engine.books.fork(name, new)
                for other in new[:count]:
                    engine.tokens[other] = list(engine.tokens[name])
        wanted = {}
        for name in sorted(set(engine.tokens) | set(waiting)):
            if drawn.random() < 0.3:
                continue
            if name in waiting:
                chunk = drawn.randrange(1, 10)
                wanted[name] = waiting[name][:chunk]
                waiting[name] = waiting[name][chunk:]
                if not waiting[name]:
                    del waiting[name]
            elif engine.tokens[name]:
                wanted[name] = [drawn.randrange(2)]
        done = set(engine.step({name: list(new) for name, new in wanted.items()}))
        for name in list(engine.tokens):
            # What had no room is given up, as is now and then one that had.
            if (name in wanted and name not in done) or drawn.random() < 0.1:
                engine.free(name)
                waiting.pop(name, None)
    for name in list(engine.tokens):
        engine.free(name)
    assert engine.books.free_blocks == SMALL.num_blocks


def test_a_prompt_that_was_seen_before_is_found() -> None:
    engine = Engine()
    engine.step({"first": list(range(10))})
    engine.free("first")
    assert engine.books.match("second", list(range(10))) == 8
    assert engine.books.match("second", list(range(10))) == 0, "it holds its blocks already"
    assert engine.books.match("third", [*range(5), 9, 9]) == 4
    assert engine.books.match("fourth", [9, *range(9)]) == 0


def test_requests_of_one_batch_share() -> None:
    engine = Engine()
    engine.step({"a": list(range(10)), "b": list(range(10)), "c": list(range(20, 27))})
    assert engine.books.free_blocks == SMALL.num_blocks - 6
    engine.step({"a": [1], "b": [2], "c": [3]})


def test_nothing_of_a_failed_batch_is_found_again() -> None:
    books = BatchBooks(SMALL)
    assert books.plan("a", 0, 8)
    books.begin([Portion("a", list(range(8)), 0)])
    books.free("a")
    assert books.match("b", list(range(10))) == 0


def test_a_batch_beyond_the_memory_is_not_planned() -> None:
    books = BatchBooks(SMALL)
    assert books.plan("a", 0, 44)
    assert not books.plan("b", 0, 5)
    assert books.plan("b", 0, 4, only_ask=True)
    assert books.fitting([1, 0, 1]) == 2
    assert books.plan("b", 0, 4)
    assert not books.plan("c", 0, 1)


def test_what_is_cached_is_not_held_where_it_was_planned_for_others() -> None:
    engine = Engine()
    engine.step({"a": list(range(40))})
    engine.free("a")
    assert engine.books.plan("b", 0, 44)
    assert engine.books.match("c", list(range(41))) == 0
    assert engine.books.free_blocks == SMALL.num_blocks
    engine.books.begin([Portion("b", list(range(60, 104)), 0)])


def test_who_goes_on_where_nothing_ends_is_told() -> None:
    books = BatchBooks(SMALL)
    with pytest.raises(ArgumentError, match="4 tokens, of which none is here") as caught:
        books.begin([Portion("a", [1], 4)])
    assert caught.value.code == "argument.request"
    books.begin([Portion("a", [1, 2], 0)])
    with pytest.raises(ArgumentError, match="behind 3 tokens; 2 are here"):
        books.begin([Portion("a", [1], 3)])
