"""The block pool against its specification, and under threads, forks and hostile handles."""

from __future__ import annotations

import multiprocessing
import random
import threading
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule
from tests.soak import repeats

from infer_accel import errors, kvcache, reference
from infer_accel._backend import native

if TYPE_CHECKING:
    from collections.abc import Callable

HASHES = [bytes([i]) + bytes(31) for i in range(10)]
#: Extra keys of a prompt's first block and of the others: none, a tenant's salt, an adapter, both.
PROMPT_KEYS: list[Any] = [
    (None, None),
    ((("cache_salt", "s"),), None),
    ((("lora", "a", "/a"),), (("lora", "a", "/a"),)),
    ((("lora", "b", "/b"), ("cache_salt", "s")), (("lora", "b", "/b"),)),
]
#: Few different tokens, so that prompts begin alike, and lengths that leave a block unfilled.
PROMPTS = st.lists(st.integers(0, 1), max_size=9)


def outcome(call: Callable[[], Any]) -> tuple[str, Any]:
    """What a call did: its result, or the class and code of its error."""
    try:
        result = call()
    except errors.InferAccelError as error:
        return type(error).__name__, error.code
    return "done", plain(result)


def plain(result: Any) -> Any:
    """Lists in place of arrays, also within a tuple."""
    if isinstance(result, tuple):
        return tuple(map(plain, result))
    return result.tolist() if isinstance(result, np.ndarray) else result


class PoolMachine(RuleBasedStateMachine):
    """The same calls on both; results, errors and statistics must be the same."""

    handles = Bundle("handles")

    @initialize(
        num_blocks=st.integers(2, 20),
        options=st.fixed_dictionaries(
            {"eviction": st.sampled_from(["lru", "priority"]), "pin_blocks": st.integers(0, 4)}
        ),
        target=handles,
    )
    def make(self, num_blocks: int, options: dict[str, Any]) -> Any:
        self.pool = native().kvcache.BlockPool(num_blocks, event_bytes=1 << 20, **options)
        self.model = reference.kvcache.BlockPool(num_blocks, event_bytes=1 << 20, **options)
        self.now = 0.0
        # Handles that never were: the null block, negative, out of range, of a later generation.
        return multiple(0, -1, num_blocks, 1, 1 << 32 | 1, (1 << 63) - 1, -(1 << 63))

    def both(self, name: str, *arguments: object, **options: object) -> Any:
        got = outcome(lambda: getattr(self.pool, name)(*arguments, **options))
        assert got == outcome(lambda: getattr(self.model, name)(*arguments, **options))
        return got[1] if got[0] == "done" else []

    @rule(count=st.integers(-1, 8), target=handles)
    def alloc(self, count: int) -> Any:
        return multiple(*self.both("alloc", count))

    @rule(handles=st.lists(handles, max_size=6))
    def retain(self, handles: list[int]) -> None:
        self.both("retain", handles)

    @rule(handles=st.lists(handles, max_size=6))
    def free(self, handles: list[int]) -> None:
        self.both("free", handles)

    @rule(handle=handles)
    def free_one(self, handle: int) -> None:
        self.both("free", [handle])

    @rule(handles=st.lists(handles, max_size=6))
    def ids(self, handles: list[int]) -> None:
        self.both("ids", handles)

    @rule(
        pairs=st.lists(st.tuples(handles, st.sampled_from(HASHES)), max_size=5),
        priority=st.none() | st.integers(-1, 101),
        seconds=st.none() | st.sampled_from([-1.0, 0.05, 1.0, 3.0, float("inf")]),
    )
    def cache(self, pairs: list[tuple[int, bytes]], priority: int | None, seconds: float | None) -> None:
        handles, rows = [handle for handle, _ in pairs], [row for _, row in pairs]
        self.both("cache", handles, rows, priority=priority, seconds=seconds)

    @rule(pairs=st.lists(st.tuples(handles, st.sampled_from(HASHES)), max_size=5))
    def cache_plainly(self, pairs: list[tuple[int, bytes]]) -> None:
        self.both("cache", [handle for handle, _ in pairs], [row for _, row in pairs])

    @rule(rows=st.lists(st.sampled_from(HASHES), max_size=5), seconds=st.none() | st.floats(-0.5, 5))
    def pin(self, rows: list[bytes], seconds: float | None) -> None:
        self.both("pin", rows, seconds=seconds)

    @rule(rows=st.lists(st.sampled_from(HASHES), max_size=5))
    def unpin(self, rows: list[bytes]) -> None:
        self.both("unpin", rows)

    @rule(rows=st.lists(st.sampled_from(HASHES), max_size=2))
    def forget(self, rows: list[bytes]) -> None:
        self.both("forget", rows)

    @rule(step=st.floats(-0.1, 2))
    def advance(self, step: float) -> None:
        self.now += step
        self.both("advance", self.now)
        self.now = max(self.now, 0.0)

    @rule(block=st.integers(-1, 40))
    def look(self, block: int) -> None:
        self.both("state_of", block)
        self.both("free_order")

    @rule()
    def drain_events(self) -> None:
        self.both("drain_events")

    @rule(form=st.sampled_from(["integer", "bytes", "hex"]))
    def drain_events_as_bytes(self, form: str) -> None:
        self.both("drain_events_msgpack", 1.25, None, form)

    @rule(dice=st.integers(0, 9))
    def reset(self, dice: int) -> None:
        if dice == 0:
            self.both("reset")

    @rule(rows=st.lists(st.sampled_from(HASHES), max_size=5), target=handles)
    def lookup(self, rows: list[bytes]) -> Any:
        self.both("cached_prefix", rows)
        self.both("peek", rows)
        return multiple(*self.both("lookup", rows))

    @rule(
        tokens=PROMPTS,
        keys=st.sampled_from(PROMPT_KEYS),
        block_size=st.sampled_from([2, 2, 2, 3]),
        seconds=st.none() | st.sampled_from([0.3, 2.0]),
        target=handles,
    )
    def cache_prompt(self, tokens: list[int], keys: Any, block_size: int, seconds: float | None) -> Any:
        count = len(tokens) // block_size
        extra_keys = [keys[0], *[keys[1]] * count][:count]
        rows = native().kvcache.hash_blocks(tokens, block_size=block_size, extra_keys=extra_keys)
        blocks = self.both("alloc", count)
        if blocks:
            self.both("cache", blocks, rows, seconds=seconds)
        return multiple(*blocks)

    @rule(tokens=PROMPTS, keys=st.sampled_from(PROMPT_KEYS), block_size=st.sampled_from([2, 2, 2, 3]))
    def cached_blocks(self, tokens: list[int], keys: Any, block_size: int) -> None:
        # Twice: what the first call has learnt must not change what the second one says.
        for _ in range(2):
            self.both("cached_blocks", tokens, block_size=block_size, keys=keys)

    @invariant()
    def books_are_right(self) -> None:
        if hasattr(self, "pool"):
            self.pool.check_invariants()
            self.model.check_invariants()
            assert self.pool.stats() == self.model.stats()


PoolMachine.TestCase.settings = settings(
    max_examples=repeats(150, 1500), stateful_step_count=50, deadline=None
)
TestPool = PoolMachine.TestCase


def test_the_typed_face() -> None:
    pool = kvcache.BlockPool(8, block_size=4, algorithm="sha256")
    assert (pool.block_size, pool.algorithm) == (4, "sha256")
    hashes = kvcache.hash_blocks(range(12), block_size=4, algorithm="sha256")
    blocks = pool.alloc(3)
    assert blocks.dtype == np.int64
    assert pool.ids(blocks).dtype == np.int32
    assert pool.cache(blocks, hashes) == 3
    assert pool.cache(torch.from_numpy(blocks), torch.from_numpy(hashes)) == 0
    pool.retain(blocks[:1])
    pool.free(blocks[::-1])
    assert pool.stats() == kvcache.PoolStats(8, 6, 1, 3, 0, 3, 0, 0, 0)
    assert pool.cached_prefix(list(map(bytes, hashes))) == 3
    assert pool.ids(pool.lookup(hashes)).tolist() == [1, 2, 3]
    assert "4 free, 3 cached" in repr(pool)


def test_cached_blocks_are_evicted_last_and_least_recently_used_first() -> None:
    pool = kvcache.BlockPool(9)
    hashes = kvcache.hash_blocks(range(64), block_size=16)
    old, new, plain = pool.alloc(2), pool.alloc(2), pool.alloc(2)
    pool.cache(old, hashes[:2])
    pool.cache(new, hashes[2:])
    pool.free(old[::-1])
    pool.free(new[::-1])
    pool.free(plain)
    # The old prefix is used again, so the other one is now the least recently used.
    pool.free(pool.lookup(hashes[:2])[::-1])
    assert pool.ids(pool.alloc(8)).tolist() == [5, 6, 7, 8, 4, 3, 2, 1]
    assert pool.stats().evictions == 4


def test_handles_do_not_outlive_their_block() -> None:
    pool = kvcache.BlockPool(2)
    first = pool.alloc(1)
    pool.free(first)
    second = pool.alloc(1)
    assert pool.ids(second).tolist() == [1]
    assert first[0] != second[0]
    for call in (pool.free, pool.retain, pool.ids):
        with pytest.raises(errors.StaleBlockError, match="stale"):
            call(first)
    with pytest.raises(errors.StaleBlockError):
        pool.cache(first, np.zeros((1, 32), np.uint8))
    pool.free(second)
    with pytest.raises(errors.StaleBlockError):
        pool.free(second)


def test_running_out_takes_nothing() -> None:
    pool = kvcache.BlockPool(4)
    pool.alloc(2)
    for count in (2, 1 << 40, (1 << 64) - 1):
        with pytest.raises(errors.OutOfBlocksError) as caught:
            pool.alloc(count)
        assert (caught.value.needed, caught.value.free) == (count, 1)
    assert isinstance(caught.value, MemoryError)
    assert pool.stats().free_blocks == 1
    assert pool.alloc(0).shape == (0,)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ({"num_blocks": 0}, "argument.num_blocks"),
        ({"num_blocks": 1}, "argument.num_blocks"),
        ({"num_blocks": -5}, "argument.count"),
        ({"num_blocks": 1 << 40}, "argument.num_blocks"),
        ({"num_blocks": 1 << 80}, "argument.count"),
        ({"num_blocks": 8, "block_size": 0}, "argument.block_size"),
        ({"num_blocks": 8, "block_size": (1 << 24) + 1}, "argument.block_size"),
        ({"num_blocks": 8, "algorithm": "md5"}, "argument.algorithm"),
        ({"num_blocks": 8, "eviction": "fifo"}, "argument.eviction"),
    ],
)
def test_pools_that_cannot_be(arguments: dict[str, Any], code: str) -> None:
    with pytest.raises(errors.ArgumentError) as caught:
        kvcache.BlockPool(**arguments)
    assert caught.value.code == code


def test_a_block_size_is_a_whole_number() -> None:
    with pytest.raises(TypeError):
        kvcache.BlockPool(8, block_size=2.5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("handles", "code"),
    [
        ([-1], "id.block"),
        ([8], "id.block"),
        ([1 << 62], "stale_block.handle"),
        ([1 << 70], "id.range"),
        (np.array([1 << 63], np.uint64), "id.range"),
        ([[1]], "shape.handles"),
        ([1.0], "dtype.ids"),
        (np.array([1.5]), "dtype.ids"),
        (["1"], "dtype.unknown"),
        (None, "dtype.ids"),
    ],
)
def test_hostile_handles(handles: Any, code: str) -> None:
    pool = kvcache.BlockPool(8)
    held = pool.alloc(2)
    pool.cache(held[:1], [HASHES[0]])
    before = pool.stats()
    calls: list[Callable[[Any], object]] = [
        pool.free,
        pool.retain,
        pool.ids,
        lambda bad: pool.cache(bad, [HASHES[1]]),
    ]
    for call in calls:
        if handles == [1 << 62]:
            handles = [1 << 62 | 1]
        with pytest.raises(errors.InferAccelError) as caught:
            call(handles)
        if handles is not None:
            assert caught.value.code == code
    # A good handle in front of a bad one is left alone, too.
    for bad in (-1, 8, 7):
        with pytest.raises(errors.InferAccelError):
            pool.free([int(held[0]), int(held[1]), bad])
    assert pool.stats() == before
    pool.check_invariants()


@pytest.mark.parametrize(
    ("hashes", "code"),
    [
        (np.zeros((1, 31), np.uint8), "shape.hashes"),
        (np.zeros(32, np.uint8), "shape.hashes"),
        (np.zeros((1, 32), np.int8), "dtype.bytes"),
        (np.zeros((1, 32)), "dtype.bytes"),
        ([b"short"], "shape.hashes"),
        ([b"\0" * 32, b"\0" * 16], "dtype.bytes"),
        (["a" * 32], "dtype.bytes"),
        ([None], "dtype.bytes"),
        (np.zeros((1, 64), np.uint8)[:, ::2], "layout.bytes"),
        (np.zeros((2, 32), np.uint8), "shape.hash_count"),
        (np.ones((1, 32), np.uint8), "argument.hash_conflict"),
    ],
)
def test_hostile_hashes(hashes: Any, code: str) -> None:
    pool = kvcache.BlockPool(4)
    held = pool.alloc(1)
    pool.cache(held, [HASHES[0]])
    with pytest.raises(errors.InferAccelError) as caught:
        pool.cache(held, hashes)
    assert caught.value.code == code
    if not code.startswith(("shape.hash_count", "argument")):
        with pytest.raises(errors.InferAccelError):
            pool.lookup(hashes)
    assert pool.stats().cached_blocks == 1


def test_threads_share_a_pool() -> None:
    pool = kvcache.BlockPool(400)
    hashes = [bytes([i, j]) + bytes(30) for i in range(8) for j in range(8)]
    problems: list[BaseException] = []
    owned: list[list[int]] = [[] for _ in range(12)]

    def work(number: int) -> None:
        chance = random.Random(number)
        held = owned[number]
        try:
            for _ in range(1500):
                act = chance.randrange(5)
                if act == 0:
                    fresh = pool.alloc(chance.randrange(5)).tolist()
                    held.extend(fresh)
                    pool.cache(fresh, chance.sample(hashes, len(fresh)))
                elif act == 1:
                    held.extend(pool.lookup(chance.sample(hashes, 2)).tolist())
                elif act == 2 and held:
                    pool.retain(held[-1:])
                    held.append(held[-1])
                elif held:
                    pool.free([held.pop(chance.randrange(len(held)))])
                while len(held) > 25:
                    pool.free([held.pop()])
        except Exception as problem:  # noqa: BLE001 - told to the main thread
            problems.append(problem)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    pool.check_invariants()
    for held in owned:
        pool.free(held)
    pool.check_invariants()
    assert pool.stats().free_blocks == 399


def in_child(work: Callable[[Any], None], pipe: Any) -> None:
    try:
        work(pipe)
    except BaseException as problem:
        pipe.send(repr(problem))
        raise
    pipe.send("done")


def run_after_fork(work: Callable[[Any], None]) -> Any:
    """What a forked child says when it is done; a child that hangs is an error."""
    here, there = multiprocessing.Pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of any fork beside threads
        child = multiprocessing.get_context("fork").Process(target=in_child, args=(work, there))
        child.start()
    assert here.poll(60), "the child hangs"
    said = here.recv()
    child.join(60)
    return said


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
def test_everything_works_after_a_fork() -> None:
    pool = kvcache.BlockPool(1000)
    held = pool.alloc(5)
    source = np.arange(1 << 22, dtype=np.uint8).reshape(64, -1)
    pairs = [[i, 63 - i] for i in range(64)]
    ids = np.arange(1 << 16)
    hashes = kvcache.hash_blocks(ids, block_size=16)
    kvcache.page_copy(source, np.zeros_like(source), pairs, num_threads=2)
    stop = threading.Event()

    def disturb() -> None:
        while not stop.is_set():
            pool.free(pool.alloc(100))

    threads = [threading.Thread(target=disturb) for _ in range(4)]
    for thread in threads:
        thread.start()

    def work(_: Any) -> None:
        pool.check_invariants()
        pool.free(held)
        pool.alloc(10)
        pool.check_invariants()
        assert (kvcache.hash_blocks(ids, block_size=16) == hashes).all()
        target = np.zeros_like(source)
        kvcache.page_copy(source, target, pairs, num_threads=2)
        assert (target[::-1] == source).all()

    try:
        said = [run_after_fork(work) for _ in range(5)]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert said == ["done"] * 5
    pool.free(held)  # the parent's books are its own
    pool.check_invariants()
