"""The block manager against its specification, and under threads, forks and hostile calls."""

from __future__ import annotations

import random
import threading
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule
from tests.soak import repeats
from tests.test_kvcache_pool import outcome, run_after_fork

from infer_accel import errors, kvcache, reference
from infer_accel._backend import native

KEYS: list[Any] = [None, ((("lora", "a", "/a"), ("cache_salt", "s")), (("lora", "a", "/a"),))]


class ManagerMachine(RuleBasedStateMachine):
    """The same calls on both; results, errors, tables, slots, events and statistics must be the same."""

    sequences = Bundle("sequences")

    @initialize(
        num_blocks=st.integers(2, 40),
        block_size=st.integers(1, 5),
        algorithm=st.sampled_from(["sha256_cbor", "xxhash_cbor", "sha256"]),
        pool=st.fixed_dictionaries({"eviction": st.sampled_from(["lru", "priority"])}),
        manager=st.fixed_dictionaries(
            {
                "groups": st.sampled_from([[None], [None], [3], [None, 4], [1, None, 9]]),
                "scrub": st.booleans(),
                "watermark": st.sampled_from([0.0, 0.2]),
            }
        ),
        target=sequences,
    )
    def make(self, num_blocks: int, block_size: int, algorithm: str, pool: Any, manager: Any) -> Any:
        self.both_ways = []
        first = native().kvcache.none_hash(algorithm)
        for module in (native().kvcache, reference.kvcache):
            blocks = module.BlockPool(num_blocks, algorithm=algorithm, event_bytes=1 << 20, **pool)
            sequences = module.BlockManager(blocks, block_size=block_size, **manager)
            if module is reference.kvcache:
                sequences._none_hash = first  # xxhash begins at random in each implementation
            self.both_ways.append((blocks, sequences))
        self.num_groups = len(manager["groups"])
        self.algorithm, self.block_size = algorithm, block_size
        return multiple(0, -1, 1, 1 << 32, 5)

    def both(self, name: str, *arguments: object, on_pool: bool = False, **options: object) -> Any:
        targets = [pair[0 if on_pool else 1] for pair in self.both_ways]
        mine, model = (outcome(partial(getattr(target, name), *arguments, **options)) for target in targets)
        assert mine == model
        return mine[1] if mine[0] == "done" else None

    # Few different tokens, so that prompts begin alike.
    @rule(
        tokens=st.lists(st.integers(0, 1), max_size=24),
        keys=st.sampled_from(KEYS),
        limit=st.none() | st.integers(0, 9),
        kept=st.sampled_from([{}, {}, {"priority": 3}, {"seconds": 2.0}, {"seconds": 0.0}]),
        target=sequences,
    )
    def admit(self, tokens: list[int], keys: Any, limit: int | None, kept: Any) -> Any:
        admitted = self.both("admit", tokens, prompt_keys=keys, limit=limit, **kept)
        return multiple() if admitted is None else admitted[0]

    @rule(sequences=st.lists(sequences, max_size=5, unique=True), data=st.data())
    def step(self, sequences: list[int], data: st.DataObject) -> None:
        counts = data.draw(st.none() | st.lists(st.integers(0, 4), min_size=len(sequences), max_size=5))
        total = len(sequences) if counts is None else sum(counts)
        tokens = data.draw(st.lists(st.integers(0, 1), min_size=total, max_size=total))
        self.both("step", sequences, tokens, counts)

    @rule(data=st.data())
    def step_all(self, data: st.DataObject) -> None:
        running = sorted(self.both_ways[1][1]._sequences)
        tokens = data.draw(st.lists(st.integers(0, 1), min_size=len(running), max_size=len(running)))
        self.both("step", running, tokens)

    @rule(sequence=sequences, count=st.integers(-1, 3), target=sequences)
    def fork(self, sequence: int, count: int) -> Any:
        return multiple(*(self.both("fork", sequence, count) or []))

    @rule(sequences=st.lists(sequences, max_size=4))
    def release(self, sequences: list[int]) -> None:
        self.both("release", sequences)

    @rule(sequence=sequences)
    def release_one(self, sequence: int) -> None:
        self.both("release", [sequence])

    @rule(tokens=st.lists(st.integers(0, 1), max_size=24), keys=st.sampled_from(KEYS))
    def cached_blocks(self, tokens: list[int], keys: Any) -> None:
        if self.algorithm == "xxhash_cbor":
            return  # begins at random in each implementation
        keys = None if self.algorithm == "sha256" else keys  # pickle knows no keys here
        self.both("cached_blocks", tokens, block_size=self.block_size, keys=keys, on_pool=True)

    @rule(seconds=st.floats(0, 1))
    def advance(self, seconds: float) -> None:
        self.now = getattr(self, "now", 0.0) + seconds
        self.both("advance", self.now, on_pool=True)

    @rule()
    def reset(self) -> None:
        if random.Random(len(self.both_ways[1][1]._sequences)).random() < 0.1:
            self.both("reset", on_pool=True)

    @rule()
    def drain(self) -> None:
        self.both("take_scrubs")
        self.both("drain_events_msgpack", 0.5, 7, "bytes", on_pool=True)

    @rule()
    def drain_objects(self) -> None:
        self.both("drain_events", on_pool=True)

    @rule(
        sequences=st.lists(sequences, max_size=5),
        width=st.integers(0, 30),
        dtype=st.sampled_from([np.int32, np.int64]),
        group=st.integers(-1, 3),
    )
    def tables_and_slots(self, sequences: list[int], width: int, dtype: Any, group: int) -> None:
        for name, shape in (("block_tables", (5, width)), ("slot_mapping", (3 * width,))):
            written = []
            for _, manager in self.both_ways:
                out = np.full(shape, 77, dtype)
                done = outcome(partial(getattr(manager, name), sequences, out, group=group))
                written.append((done, out.tolist()))
            assert written[0] == written[1]

    @invariant()
    def books_are_right(self) -> None:
        if hasattr(self, "both_ways"):
            self.both("check_invariants")
            self.both("stats")
            self.both("stats", on_pool=True)
            running = sorted(self.both_ways[1][1]._sequences)
            self.both("num_tokens", running)
            for group in range(self.num_groups):
                tables = []
                for _, manager in self.both_ways:
                    out = np.zeros((len(running), 200), np.int64)
                    manager.block_tables(running, out, group=group)
                    tables.append(out.tolist())
                assert tables[0] == tables[1]


ManagerMachine.TestCase.settings = settings(
    max_examples=repeats(120, 1200), stateful_step_count=40, deadline=None
)
TestManager = ManagerMachine.TestCase


def test_the_typed_face() -> None:
    pool = kvcache.BlockPool(64, block_size=4, event_bytes=1 << 16)
    manager = kvcache.BlockManager(pool, groups=[kvcache.CacheGroup(), kvcache.CacheGroup(8)])
    assert manager.pool is pool
    assert manager.groups[1].window == 8
    first = manager.admit(torch.arange(22), salt="tenant", adapter=("name", "/path"))
    assert first == (0, 0, 22)
    again = manager.admit(np.arange(22), salt="tenant", adapter=("name", "/path"))
    assert again.cached_tokens == 20
    assert manager.admit(np.arange(22)).cached_tokens == 0
    tables = torch.full((2, 7), -1, dtype=torch.int32)
    manager.block_tables([first.sequence, again.sequence], out=tables, group=1)
    assert tables[:, 5:].tolist() == [[12, 0], [14, 0]]
    assert tables[1, :4].tolist() == [0, 0, 0, int(tables[0, 3])]
    assert manager.num_tokens([first.sequence]).tolist() == [22]
    events = manager.drain_events()
    assert [type(event).__name__ for event in events] == ["BlockStored"] * 4
    stored = events[0]
    assert isinstance(stored, kvcache.BlockStored)
    assert (stored.lora_name, stored.block_size, stored.kv_cache_spec_kind) == ("name", 4, "full_attention")
    assert stored.extra_keys == (("name", "tenant"), *[("name",)] * 4)
    assert stored.token_ids == tuple(range(20))
    assert manager.drain_events_msgpack(timestamp=0.0)[-2:] == b"\x90\xc0"
    manager.release([first.sequence, again.sequence])
    assert manager.stats().cached_tokens == 20
    assert "1 sequences, 22 tokens" in repr(manager)
    manager.check_invariants()


def test_hashes_that_are_known_already() -> None:
    manager = kvcache.BlockManager(kvcache.BlockPool(32, block_size=4))
    ids = np.arange(19)
    hashes = kvcache.hash_blocks(ids, block_size=4)
    manager.admit(ids)
    for known in (hashes, [row.tobytes() for row in hashes]):
        assert manager.admit(ids, hashes=known).cached_tokens == 16
    wrong: list[tuple[Any, str]] = [
        (hashes[:-1], "shape.hash_count"),
        (hashes[:, :16].copy(), "shape.hashes"),
        (hashes.astype(np.int8), "dtype.bytes"),
    ]
    for known, code in wrong:
        with pytest.raises(errors.InferAccelError) as caught:
            manager.admit(ids, hashes=known)
        assert caught.value.code == code


def test_a_chunked_prompt_is_a_prompt() -> None:
    whole, chunked = (kvcache.BlockManager(kvcache.BlockPool(64, block_size=4)) for _ in range(2))
    ids = np.arange(30) % 7
    whole.admit(ids)
    first = chunked.admit(ids, limit=6)
    assert (first.cached_tokens, first.num_tokens) == (0, 6)
    chunked.step([first.sequence], ids[6:17], [11])
    chunked.step([first.sequence], ids[17:], [13])
    for manager in (whole, chunked):
        assert manager.admit(ids).cached_tokens == 28
    assert chunked.admit(ids, limit=1).num_tokens == 29


def test_a_fork_writes_into_a_copy() -> None:
    manager = kvcache.BlockManager(kvcache.BlockPool(32, block_size=4))
    parent = manager.admit(range(6)).sequence
    children = manager.fork(parent, 2)
    everyone = [parent, *children]
    copies = manager.step(everyone, [10, 11, 12])
    assert copies.tolist() == [[2, 3], [2, 4]]
    tables = np.zeros((3, 2), np.int64)
    manager.block_tables(everyone, out=tables)
    assert tables.tolist() == [[1, 3], [1, 4], [1, 2]]
    pages = np.arange(32)[:, None].repeat(4, axis=1)
    kvcache.page_copy(pages, pages, copies)
    assert pages[[3, 4]].tolist() == [[2] * 4] * 2
    manager.check_invariants()
    manager.release(everyone)
    assert manager.pool.stats().free_blocks == 31


def test_running_out_changes_nothing() -> None:
    pool = kvcache.BlockPool(6, block_size=2)
    manager = kvcache.BlockManager(pool)
    sequences = [manager.admit([1, 2, 3]).sequence for _ in range(2)]
    manager.fork(sequences[0], 1)
    pool.alloc(2)
    before = (pool.stats(), manager.num_tokens(sequences).tolist())
    with pytest.raises(errors.OutOfBlocksError) as caught:
        manager.step(sequences, [4, 4])
    assert (caught.value.needed, caught.value.free) == (1, 0)
    with pytest.raises(errors.OutOfBlocksError):
        manager.admit([9])
    assert (pool.stats(), manager.num_tokens(sequences).tolist()) == before
    assert manager.stats().refusals == 2
    manager.check_invariants()


def test_scrubs_name_what_was_used_before() -> None:
    manager = kvcache.BlockManager(kvcache.BlockPool(4, block_size=2), scrub=True)
    first = manager.admit([1, 2, 3]).sequence
    assert manager.take_scrubs().tolist() == []
    manager.release([first])
    second = manager.admit([7, 8, 9]).sequence
    assert manager.take_scrubs().tolist() == [2]
    (fork,) = manager.fork(second)
    manager.step([fork], [5])
    assert manager.take_scrubs().tolist() == [], "a copy overwrites the whole page"


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"groups": []}, "argument.groups"),
        ({"groups": [kvcache.CacheGroup()] * 9}, "argument.groups"),
        ({"groups": [kvcache.CacheGroup(0)]}, "argument.groups"),
        ({"groups": [kvcache.CacheGroup(-1)]}, "argument.count"),
        ({"watermark": 1.0}, "argument.watermark"),
        ({"watermark": -0.1}, "argument.watermark"),
        ({"watermark": float("nan")}, "argument.watermark"),
    ],
)
def test_managers_that_cannot_be(options: dict[str, Any], code: str) -> None:
    with pytest.raises(errors.ArgumentError) as caught:
        kvcache.BlockManager(kvcache.BlockPool(8), **options)
    assert caught.value.code == code
    with pytest.raises(errors.ArgumentError):
        kvcache.BlockManager(kvcache.BlockPool(8, block_size=1 << 60))


@pytest.mark.parametrize(
    ("call", "error", "code"),
    [
        (lambda m, s: m.step([s, s], [1, 1]), errors.IdError, "id.repeated_sequence"),
        (lambda m, s: m.step([s + 1], [1]), errors.IdError, "id.sequence"),
        (lambda m, s: m.step([-1], [1]), errors.IdError, "id.sequence"),
        (lambda m, s: m.step([s | 1 << 32], [1]), errors.IdError, "id.sequence"),
        (lambda m, s: m.step([s], [1, 2]), errors.ShapeError, "shape.step_tokens"),
        (lambda m, s: m.step([s], [1], [1, 1]), errors.ShapeError, "shape.step_counts"),
        (lambda m, s: m.step([s], [1], [-1]), errors.ArgumentError, "argument.count"),
        (lambda m, s: m.step([s], [1, 1], [1 << 62]), errors.ShapeError, "shape.step_tokens"),
        (lambda m, s: m.step([s], [-1]), errors.IdError, "id.token"),
        (lambda m, s: m.step([[s]], [1]), errors.ShapeError, "shape.sequences"),
        (lambda m, s: m.release([s, s]), errors.IdError, "id.repeated_sequence"),
        (lambda m, s: m.release([s, 99]), errors.IdError, "id.sequence"),
        (lambda m, s: m.fork(99, 1), errors.IdError, "id.sequence"),
        (lambda m, s: m.fork(s, 1 << 40), errors.ArgumentError, "argument.count"),
        (lambda m, s: m.admit([1, -5]), errors.IdError, "id.token"),
        (lambda m, s: m.admit([1] * 8, extra_keys=[None]), errors.ShapeError, "shape.extra_keys"),
        (lambda m, s: m.admit([1], priority=5), errors.ArgumentError, "argument.priority"),
        (lambda m, s: m.admit([1], adapter=("a",)), errors.ArgumentError, "argument.adapter"),
        (lambda m, s: m.block_tables([s], np.zeros((1, 0), np.int32)), errors.ShapeError, "shape.out"),
        (lambda m, s: m.block_tables([s], np.zeros((0, 9), np.int32)), errors.ShapeError, "shape.out"),
        (lambda m, s: m.block_tables([s], np.zeros(9, np.int32)), errors.ShapeError, "shape.integer_target"),
        (lambda m, s: m.block_tables([s], np.zeros((1, 9))), errors.DTypeError, "dtype.integer_target"),
        (
            lambda m, s: m.block_tables([s], np.zeros((1, 9), np.int32)[:, ::2]),
            errors.LayoutError,
            "layout.integer_target",
        ),
        (
            lambda m, s: m.block_tables([s], np.zeros((1, 9), np.int32), group=1),
            errors.ArgumentError,
            "argument.groups",
        ),
        (
            lambda m, s: m.slot_mapping([s], np.frombuffer(bytes(64), np.int32)),
            errors.ReadOnlyError,
            "read_only",
        ),
        (lambda m, s: m.slot_mapping([s], np.zeros(2, np.int64)), errors.ShapeError, "shape.out"),
    ],
)
def test_hostile_calls(call: Any, error: Any, code: str) -> None:
    manager = kvcache.BlockManager(kvcache.BlockPool(16, block_size=4))
    sequence = manager.admit([1, 2, 3]).sequence
    before = (manager.stats(), manager.pool.stats())
    with pytest.raises(error) as caught:
        call(manager, sequence)
    assert caught.value.code == code
    assert (manager.stats(), manager.pool.stats()) == before
    manager.check_invariants()


def test_rows_with_space_between_them() -> None:
    manager = kvcache.BlockManager(kvcache.BlockPool(16, block_size=2))
    sequence = manager.admit([1, 2, 3]).sequence
    wide = np.full((4, 6), 9, np.int64)
    manager.block_tables([sequence, sequence], out=wide[::2, 1:4])
    assert wide.tolist() == [[9, 1, 2, 0, 9, 9], [9] * 6, [9, 1, 2, 0, 9, 9], [9] * 6]
    upside_down = np.full((2, 3), 9, np.int32)
    manager.block_tables([sequence], out=upside_down[::-1])
    assert upside_down.tolist() == [[9] * 3, [1, 2, 0]]
    overlapping = np.lib.stride_tricks.as_strided(np.zeros(9, np.int64), (2, 3), (8, 8), writeable=True)
    with pytest.raises(errors.LayoutError):
        manager.block_tables([sequence], out=overlapping)


def test_foreign_frees_break_nothing_but_the_books() -> None:
    pool = kvcache.BlockPool(8, block_size=2)
    manager = kvcache.BlockManager(pool)
    sequence = manager.admit([1, 2, 3]).sequence
    pool.free([1])  # a handle that was guessed
    with pytest.raises(errors.InternalError):
        manager.check_invariants()
    manager.release([sequence])
    assert pool.stats().used_blocks == 0


def test_threads_share_a_manager() -> None:
    pool = kvcache.BlockPool(3000, block_size=4, event_bytes=1 << 16)
    manager = kvcache.BlockManager(pool)
    problems: list[BaseException] = []

    def work(number: int) -> None:
        chance = random.Random(number)
        mine: list[int] = []
        try:
            for _ in range(repeats(150, 3000)):
                act = chance.randrange(5)
                if act == 0 and len(mine) < 8:
                    length = chance.choice([3, 20, 600])
                    mine.append(manager.admit(np.arange(length) % chance.randrange(1, 9)).sequence)
                elif act == 1 and mine:
                    manager.release([mine.pop(chance.randrange(len(mine)))])
                elif act == 2 and 0 < len(mine) < 8:
                    mine += manager.fork(mine[0]).tolist()
                elif act == 3:
                    manager.drain_events()
                elif mine:
                    manager.step(mine, [number] * len(mine))
                    tables = np.zeros((len(mine), 1000), np.int32)
                    manager.block_tables(mine, out=tables)
                    assert (tables[:, 0] > 0).all()
            manager.release(mine)
        except BaseException as problem:  # noqa: BLE001 - told to the main thread
            problems.append(problem)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    manager.check_invariants()
    assert manager.stats().sequences == 0
    assert pool.stats().used_blocks == 0


def test_a_child_has_a_copy() -> None:
    manager = kvcache.BlockManager(kvcache.BlockPool(4000, block_size=4))
    held = manager.admit(range(30)).sequence
    stop = threading.Event()

    def disturb() -> None:
        while not stop.is_set():
            manager.release([manager.admit(np.arange(4000)).sequence])

    threads = [threading.Thread(target=disturb) for _ in range(3)]
    for thread in threads:
        thread.start()

    def work(_: Any) -> None:
        manager.step([held], [1])
        assert manager.admit(range(30)).cached_tokens == 28
        manager.release([held])

    try:
        said = [run_after_fork(work) for _ in range(4)]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert said == ["done"] * 4
    manager.step([held], [1])
    manager.check_invariants()
