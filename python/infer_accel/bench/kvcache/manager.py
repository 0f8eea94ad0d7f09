"""Rows of the block manager: admission, decode steps, eviction with events, a trace of requests."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from infer_accel import kvcache, reference
from infer_accel.bench.harness import Bench, Case, Contender, cost, rate
from infer_accel.bench.kvcache import vllm_rival

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt

    Ids = npt.NDArray[np.int32]

__all__ = ["cases"]

_BLOCK_SIZE = 16
_VOCABULARY = 128_256
_POOL_BLOCKS = 20_000
_RUNNING = 256
_PROMPT = 1000


def cases(bench: Bench, ids: Ids) -> Iterator[Case]:
    """Yield the rows of the manager; `ids` are those of a long prompt."""
    yield _admission(bench, ids)
    yield _decode_step(bench)
    yield _eviction(bench, ids)
    yield _trace(bench)


def _manager(num_blocks: int, *, events: bool = False) -> kvcache.BlockManager:
    # sha256 is vLLM's default, and the fairer rival: its CBOR is three times slower than its pickle.
    pool = kvcache.BlockPool(
        num_blocks, block_size=_BLOCK_SIZE, algorithm="sha256", event_bytes=64 << 20 if events else 0
    )
    return kvcache.BlockManager(pool)


# --- Admission ---------------------------------------------------------------------------------------------


def _admission(bench: Bench, ids: Ids) -> Case:
    """Build the row of a prompt that is cached but for its last block, from ids to release."""
    expected = (len(ids) - 1) // _BLOCK_SIZE * _BLOCK_SIZE
    manager = _manager(_POOL_BLOCKS)

    def run() -> object:
        admitted = manager.admit(ids)
        manager.release([admitted.sequence])
        return admitted.cached_tokens

    def check(cached: object) -> None:
        np.testing.assert_equal(cached, expected, "cached tokens")

    run()
    peers = []
    if (vllm := vllm_rival.load(bench)) is not None:
        theirs, tokens, names = (
            vllm_rival.manager_of(_POOL_BLOCKS, _BLOCK_SIZE),
            ids.tolist(),
            itertools.count(),
        )

        def run_theirs() -> object:
            request = vllm_rival.request_of(str(next(names)), tokens, _BLOCK_SIZE)
            found, cached, *_ = theirs.get_computed_blocks(request)
            theirs.allocate_slots(request, len(tokens) - cached, cached, found)
            theirs.free(request)
            return cached

        run_theirs()
        peers.append(Contender(f"vLLM {vllm.__version__}", run_theirs, check))
    return Case(
        name=f"BlockManager admit + release, cached prompt of {len(ids)} tokens, sha256 included",
        measure=cost("µs", 1e-6),
        work=1,
        ours=Contender("infer-accel", run, check),
        peers=peers,
    )


# --- Decode step -------------------------------------------------------------------------------------------


@dataclass
class _Batch:
    """Tables and slots of the running sequences, as a model runner has them."""

    blocks: int
    slots: npt.NDArray[np.int64] = field(init=False)
    tables: npt.NDArray[np.int32] = field(init=False)
    lengths: npt.NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        self.slots = np.zeros(_RUNNING, np.int64)
        self.tables = np.zeros((_RUNNING, self.blocks), np.int32)
        self.lengths = np.full(_RUNNING, _PROMPT, np.int64)

    def check(self, _: object) -> None:
        """Every slot is the one that the table names for the last token, and no two are the same."""
        last = self.lengths - 1
        expected = self.tables[np.arange(_RUNNING), last // _BLOCK_SIZE] * _BLOCK_SIZE + last % _BLOCK_SIZE
        np.testing.assert_array_equal(self.slots, expected)
        np.testing.assert_equal(len(set(self.slots.tolist())), _RUNNING, "slots that differ")
        filled = (self.tables != 0).sum(axis=1)
        np.testing.assert_array_equal(filled, last // _BLOCK_SIZE + 1)


def _decode_step(bench: Bench) -> Case:
    """Build the row of one token for each of 256 sequences of 1000 tokens and more: blocks, tables, slots."""
    blocks_each = 300
    chance = np.random.default_rng(2)
    prompts = chance.integers(0, _VOCABULARY, (_RUNNING, _PROMPT), dtype=np.int32)
    # The null block is one of the pool's.
    manager, batch = _manager(_RUNNING * blocks_each + 1), _Batch(blocks_each)
    sequences = np.array([manager.admit(prompt).sequence for prompt in prompts], np.int64)
    tokens = chance.integers(0, _VOCABULARY, _RUNNING, dtype=np.int32)
    room = steps_left = blocks_each * _BLOCK_SIZE - _PROMPT

    def run() -> None:
        nonlocal steps_left
        if steps_left == 0:
            # Thousands of calls fill the tables; the sample in which they begin anew is one of many.
            manager.release(sequences)
            sequences[:] = [manager.admit(prompt).sequence for prompt in prompts]
            batch.lengths[:] = _PROMPT
            steps_left = room
        steps_left -= 1
        manager.step(sequences, tokens)
        manager.block_tables(sequences, out=batch.tables)
        manager.slot_mapping(sequences, out=batch.slots)
        batch.lengths += 1

    peers = [_reference_decode(prompts, tokens, blocks_each)]
    if (vllm := vllm_rival.load(bench)) is not None:
        peers.append(_decode_of_vllm(f"vLLM {vllm.__version__}", prompts, tokens, blocks_each))
    return Case(
        name=f"BlockManager decode step, {_RUNNING} sequences, tables and slots written",
        measure=cost("µs", 1e-6),
        work=1,
        ours=Contender("infer-accel", run, batch.check),
        peers=peers,
    )


def _reference_decode(prompts: Ids, tokens: Ids, blocks_each: int) -> Contender:
    pool = reference.kvcache.BlockPool(_RUNNING * blocks_each + 1, algorithm="sha256")
    manager = reference.kvcache.BlockManager(pool, block_size=_BLOCK_SIZE, groups=[None])
    sequences = [manager.admit(prompt)[0] for prompt in prompts]
    batch = _Batch(blocks_each)

    def run() -> None:
        manager.step(sequences, tokens)
        manager.block_tables(sequences, batch.tables)
        manager.slot_mapping(sequences, batch.slots)
        batch.lengths += 1

    return Contender("Python reference", run, batch.check)


def _decode_of_vllm(name: str, prompts: Ids, tokens: Ids, blocks_each: int) -> Contender:
    """Return what its scheduler does for each request, and what its runner does for the batch.

    The runner appends new blocks to the rows of its table and computes all slots in a few calls of numpy.
    """
    manager, batch = vllm_rival.manager_of(_RUNNING * blocks_each, _BLOCK_SIZE), _Batch(blocks_each)
    requests = []
    filled = np.zeros(_RUNNING, np.int64)
    rows = np.arange(_RUNNING)

    def append(row: int, blocks: Any) -> None:  # noqa: ANN401 - the rival's class
        ids = blocks.get_block_ids()[0]
        start = filled[row]
        batch.tables[row, start : start + len(ids)] = ids
        filled[row] += len(ids)

    for row, prompt in enumerate(prompts.tolist()):
        request = vllm_rival.request_of(str(row), prompt, _BLOCK_SIZE)
        append(row, manager.allocate_slots(request, len(prompt)))
        request.num_computed_tokens = len(prompt)
        requests.append(request)
    new = tokens.tolist()

    def run() -> None:
        manager.new_step_starts()
        for row, (request, token) in enumerate(zip(requests, new, strict=True)):
            request.append_output_token_ids(token)
            given = manager.allocate_slots(request, 1)
            if given.blocks[0]:
                append(row, given)
            request.num_computed_tokens += 1
        batch.lengths += 1
        last = batch.lengths - 1
        blocks = batch.tables[rows, last // _BLOCK_SIZE]
        np.add(blocks * _BLOCK_SIZE, last % _BLOCK_SIZE, out=batch.slots)

    return Contender(name, run, batch.check)


# --- Eviction ----------------------------------------------------------------------------------------------


def _eviction(bench: Bench, ids: Ids) -> Case:
    """Build the row of a new prompt in a pool full of cached blocks: as many are evicted as it takes."""
    num_blocks = len(ids) // _BLOCK_SIZE
    # Eight prompts take turns in a pool of half their size, so that each finds nothing of itself.
    prompts = [(ids + turn) % _VOCABULARY for turn in range(8)]
    hashed = [kvcache.hash_blocks(prompt, block_size=_BLOCK_SIZE, algorithm="sha256") for prompt in prompts]
    manager = _manager(4 * num_blocks + 1, events=True)
    turns = itertools.cycle(zip(prompts, hashed, strict=True))

    def run() -> object:
        prompt, hashes = next(turns)
        evicted = manager.pool.stats().evictions
        admitted = manager.admit(prompt, hashes=hashes)
        manager.release([admitted.sequence])
        manager.drain_events_msgpack()
        return manager.pool.stats().evictions - evicted

    def check(evicted: object) -> None:
        np.testing.assert_equal(evicted, num_blocks, "evicted blocks")

    for _ in range(5):
        run()
    peers = []
    if (vllm := vllm_rival.load(bench)) is not None:
        peers.append(_eviction_of_vllm(f"vLLM {vllm.__version__}", prompts, hashed, check))
    return Case(
        name=f"BlockManager evict {num_blocks} blocks for a new prompt, with events, hashes given",
        measure=cost("ns/block", 1e-9),
        work=num_blocks,
        ours=Contender("infer-accel", run, check),
        peers=peers,
    )


def _eviction_of_vllm(
    name: str, prompts: list[Ids], hashed: list[npt.NDArray[np.uint8]], check: Callable[[object], None]
) -> Contender:
    """Return the same by vLLM. Its events stay objects (it encodes them in another thread), ours become bytes."""
    num_blocks = len(hashed[0])
    manager = vllm_rival.manager_of(4 * num_blocks + 1, _BLOCK_SIZE, events=True)
    turns = itertools.cycle(
        [
            (prompt.tolist(), [row.tobytes() for row in rows])
            for prompt, rows in zip(prompts, hashed, strict=True)
        ]
    )
    names = itertools.count()
    waiting: list[Any] = []

    def prepare() -> None:
        tokens, hashes = next(turns)
        waiting[:] = [vllm_rival.request_of(str(next(names)), tokens, _BLOCK_SIZE, hashes=hashes)]

    def run() -> object:
        (request,) = waiting
        found, cached, *_ = manager.get_computed_blocks(request)
        manager.allocate_slots(request, request.num_tokens - cached, cached, found)
        manager.free(request)
        events = manager.take_events()
        return sum(type(event).__name__ == "BlockRemoved" for event in events)

    for _ in range(5):
        prepare()
        run()
    return Contender(name, run, check, prepare)


# --- A trace of requests -----------------------------------------------------------------------------------


def _conversations(count: int) -> list[tuple[list[int], list[int]]]:
    """Return prompts and answers: system prompts that many share, and conversations that go on."""
    chance = random.Random(1)  # noqa: S311 - a workload, not a secret

    def tokens(number: int) -> list[int]:
        return [chance.randrange(_VOCABULARY) for _ in range(number)]

    systems = [tokens(1024) for _ in range(8)]
    whole: list[list[int]] = []
    turns = []
    for _ in range(count):
        if whole and chance.random() < 0.6:
            prompt = chance.choice(whole[-64:]) + tokens(chance.randrange(50, 600))
        else:
            prompt = chance.choice(systems) + tokens(chance.randrange(100, 3000))
        answer = tokens(chance.randrange(20, 200))
        whole.append(prompt + answer)
        turns.append((prompt, answer))
    return turns


def _trace(bench: Bench) -> Case:
    """Build the row of 600 requests, 32 at a time, each decoded token by token, in a pool of 12,000 blocks."""
    count, at_once, num_blocks = (150, 32, 12_000) if bench.quick else (600, 32, 12_000)
    turns = _conversations(count)
    arrays = [(np.array(prompt, np.int32), answer) for prompt, answer in turns]

    def run() -> object:
        manager = _manager(num_blocks)
        waiting = iter(arrays)
        running: dict[int, Iterator[int]] = {}
        cached = 0
        while True:
            for prompt, answer in itertools.islice(waiting, at_once - len(running)):
                admitted = manager.admit(prompt)
                cached += admitted.cached_tokens
                running[admitted.sequence] = iter(answer)
            if not running:
                return cached
            new = {sequence: next(answer, None) for sequence, answer in running.items()}
            done = [sequence for sequence, token in new.items() if token is None]
            if done:
                manager.release(done)
                for sequence in done:
                    del running[sequence], new[sequence]
            manager.step(list(new), list(new.values()))  # type: ignore[arg-type]

    expected = run()

    def check(cached: object) -> None:
        np.testing.assert_equal(cached, expected, "cached tokens")

    peers = []
    if (vllm := vllm_rival.load(bench)) is not None:
        peers.append(_trace_of_vllm(f"vLLM {vllm.__version__}", turns, at_once, num_blocks, check))
    return Case(
        name=f"BlockManager trace of {count} requests, {at_once} at once, decoded token by token",
        measure=rate("requests/s", 1),
        work=count,
        ours=Contender("infer-accel", run, check),
        peers=peers,
    )


def _trace_of_vllm(
    name: str,
    turns: list[tuple[list[int], list[int]]],
    at_once: int,
    num_blocks: int,
    check: Callable[[object], None],
) -> Contender:
    def run() -> object:
        manager = vllm_rival.manager_of(num_blocks, _BLOCK_SIZE)
        waiting = iter(enumerate(turns))
        running: list[tuple[Any, Iterator[int]]] = []
        cached = 0
        while True:
            manager.new_step_starts()
            for number, (prompt, answer) in itertools.islice(waiting, at_once - len(running)):
                request = vllm_rival.request_of(str(number), prompt, _BLOCK_SIZE)
                found, hit, *_ = manager.get_computed_blocks(request)
                manager.allocate_slots(request, len(prompt) - hit, hit, found)
                request.num_computed_tokens = len(prompt)
                cached += hit
                running.append((request, iter(answer)))
            if not running:
                return cached
            # First those that are done, as ours does it: the order decides what is evicted.
            still: list[tuple[Any, Iterator[int]]] = []
            for request, rest in running:
                if (token := next(rest, None)) is None:
                    manager.free(request)
                else:
                    request.append_output_token_ids(token)
                    still.append((request, rest))
            for request, _ in still:
                manager.allocate_slots(request, 1)
                request.num_computed_tokens += 1
            running = still

    return Contender(name, run, check)
