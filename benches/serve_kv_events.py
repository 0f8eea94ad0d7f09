"""Times KV events from the cache to a subscriber: by vLLM's own manager and publisher, and by ours.

Runs in the environment of `make test-serve`; `benches/engine_bench.py` says how.

New prompts, their hashes given, take turns in a cache that holds a part of them, so that each stores its blocks and
evicts others; one message a prompt goes over a socket to another process. Before a figure is believed, that process has
decoded all messages of both with vLLM's classes: hashes, parents, tokens and removed blocks are the same.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benches")]

import engine_bench  # noqa: E402 - found by the line above
from tests.serve import supervised  # noqa: E402

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

#: Tokens of a block, blocks of a prompt, prompts, prompts that the cache holds.
BLOCK, HELD = 16, 16
CASES = ((8, 1024), (128, 192))
WAYS = ("vllm", "ours")


def table(record: dict) -> str:
    """Return a record as it stands in the documentation."""
    where = record["machine"]
    place = f"vLLM {where['vllm']}, {where['cores']} cores of {where['cpu']}, {where['date'][:10]}"
    lines = [
        f"{place}; blocks of {BLOCK} tokens, each stored once and evicted once; medians:",
        "",
        "| | | vLLM | infer-accel | ratio |",
        "|---|---|--:|--:|--:|",
    ]
    for row in record["rows"]:
        first = f"prompts of {row['blocks']} blocks"
        for part, name in (
            ("without", "manager alone, ns of processor a block"),
            ("with", "with events published, ns of processor a block"),
            ("added", "**what events add, ns a block**"),
        ):
            own, ours = (row[way][part] * 1e9 for way in WAYS)
            lines.append(f"| {first} | {name} | {own:,.0f} | {ours:,.0f} | ×{own / ours:.1f} |")
            first = ""
        own, ours = (row[way]["rate"] / 1e6 for way in WAYS)
        lines.append(
            f"| {first} | blocks a second at the subscriber, in millions | {own:.2f} | {ours:.2f} | ×{ours / own:.1f} |"
        )
    return "\n".join(lines) + "\n"


BENCH = engine_bench.Bench(
    __file__, __doc__, "kv-events", "docs/integrations/kv-events.md", table, {"turns": 5}
)


def listen(arguments: list[str]) -> None:
    """Receive messages, then say what was in them: in a process of its own."""
    endpoint, messages = arguments[0], int(arguments[1])
    import msgspec
    import zmq

    context = zmq.Context()
    subscriber = context.socket(zmq.SUB)
    subscriber.set_hwm(0)
    subscriber.connect(endpoint)
    subscriber.setsockopt(zmq.SUBSCRIBE, b"")
    print("ready", flush=True)
    received = [subscriber.recv_multipart() for _ in range(messages)]
    print("received", flush=True)
    if sys.stdin.readline() == "decode\n":
        from vllm.distributed.kv_events import BlockRemoved, BlockStored, KVEventBatch

        decoder = msgspec.msgpack.Decoder(type=KVEventBatch)
        stored, removed = hashlib.sha256(), set()
        numbers = [0, 0]
        for place, (_, number, payload) in enumerate(received):
            assert int.from_bytes(number, "big") == place
            for event in decoder.decode(payload).events:
                if isinstance(event, BlockStored):
                    facts = (event.block_hashes, event.parent_block_hash, event.token_ids, event.block_size)
                    stored.update(repr(facts).encode())
                    numbers[0] += len(event.block_hashes)
                elif isinstance(event, BlockRemoved):
                    removed |= set(event.block_hashes)
                    numbers[1] += len(event.block_hashes)
        gone = hashlib.sha256(repr(sorted(removed)).encode()).hexdigest()
        print(json.dumps([numbers, stored.hexdigest(), gone]), flush=True)
    subscriber.close(linger=0)
    context.term()


@contextlib.contextmanager
def subscribed(endpoint: str, messages: int) -> Iterator[subprocess.Popen[str]]:
    """Start a subscriber, and wait until its subscription has arrived."""
    command = [sys.executable, __file__, "--child", endpoint, str(messages)]
    process = supervised.start(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.5)
        yield process
    finally:
        supervised.end(process)


def prompts_of(blocks: int, prompts: int) -> tuple[list[Any], list[Any]]:
    """Return prompts and the hashes of their blocks."""
    import numpy as np

    from infer_accel import kvcache

    drawn = np.random.default_rng(0)
    tokens = [drawn.integers(0, 128_000, blocks * BLOCK) for _ in range(prompts)]
    return tokens, [kvcache.hash_blocks(one, block_size=BLOCK, algorithm="sha256") for one in tokens]


def steps_of(way: str, blocks: int, prompts: int, endpoint: str | None) -> tuple[Any, Any, Any]:
    """Return what is done for a prompt, all of them in turn, and what ends it."""
    from infer_accel.bench.kvcache import vllm_rival
    from infer_accel.integrations.kv_events import KvEventPublisher
    from infer_accel.kvcache import BlockManager, BlockPool

    tokens, hashes = prompts_of(blocks, prompts)
    num_blocks = HELD * blocks + 1
    if way == "ours":
        # A pool counts its blocks without the empty one that vLLM keeps.
        pool = BlockPool(
            num_blocks, block_size=BLOCK, algorithm="sha256", event_bytes=1 << 24 if endpoint else 0
        )
        manager = BlockManager(pool)
        publisher = None if endpoint is None else KvEventPublisher(manager, endpoint, data_parallel_rank=0)

        def admit(turn: int) -> None:
            admitted = manager.admit(tokens[turn], hashes=hashes[turn])
            manager.release([admitted.sequence])
            if publisher is not None:
                publisher.flush()

        return admit, range(prompts), publisher.close if publisher else lambda: None

    from vllm.distributed.kv_events import KVEventBatch, ZmqEventPublisher

    rival = vllm_rival.manager_of(num_blocks, BLOCK, events=endpoint is not None)
    own = None if endpoint is None else ZmqEventPublisher(0, endpoint)
    requests = [
        vllm_rival.request_of(str(turn), one.tolist(), BLOCK, hashes=[row.tobytes() for row in rows])
        for turn, (one, rows) in enumerate(zip(tokens, hashes, strict=True))
    ]

    def schedule(turn: int) -> None:
        request = requests[turn]
        found, cached, *_ = rival.get_computed_blocks(request)
        rival.allocate_slots(request, request.num_tokens - cached, cached, found)
        rival.free(request)
        if own is not None:
            own.publish(KVEventBatch(ts=time.time(), events=rival.take_events()))

    return schedule, range(prompts), own.shutdown if own else lambda: None


def measure(way: str, blocks: int, prompts: int, *, decode: bool = False) -> tuple[dict[str, float], Any]:
    """Return seconds of processor and blocks a second, and what was decoded."""
    work = blocks * prompts
    step, turns, end = steps_of(way, blocks, prompts, None)
    start = time.process_time()
    for turn in turns:
        step(turn)
    without = time.process_time() - start
    end()
    with tempfile.TemporaryDirectory() as folder:
        endpoint = f"ipc://{folder}/events"
        step, turns, end = steps_of(way, blocks, prompts, endpoint)
        with subscribed(endpoint, prompts) as subscriber:
            begin, start = time.perf_counter(), time.process_time()
            for turn in turns:
                step(turn)
            assert subscriber.stdout is not None
            assert subscriber.stdin is not None
            assert subscriber.stdout.readline() == "received\n"
            seconds, used = time.perf_counter() - begin, time.process_time() - start
            subscriber.stdin.write("decode\n" if decode else "\n")
            subscriber.stdin.flush()
            decoded = json.loads(subscriber.stdout.readline()) if decode else None
        end()
    figures = {"without": without, "with": used, "added": used - without}
    return {name: value / work for name, value in figures.items()} | {"rate": work / seconds}, decoded


def phases(options: argparse.Namespace) -> dict[str, Callable[[], Iterator[dict]]]:
    """Return what is measured: each length of prompts."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

    def times(blocks: int, prompts: int) -> Iterator[dict]:
        told = {way: measure(way, blocks, prompts, decode=True)[1] for way in WAYS}
        assert told["vllm"] == told["ours"], told
        taken = engine_bench.in_turns(WAYS, options.turns, lambda way: measure(way, blocks, prompts)[0])
        yield {"blocks": blocks, "prompts": prompts, "validated": True, **taken}

    return {str(blocks): functools.partial(times, blocks, prompts) for blocks, prompts in CASES}


if __name__ == "__main__":
    BENCH.run(phases, lambda _: engine_bench.machine("vllm", "pyzmq", "msgspec"), child=listen)
