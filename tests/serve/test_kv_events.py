"""Events of a pool read by those they are for: vLLM's own decoder, and the indexer of Dynamo's KV router."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

zmq = pytest.importorskip("zmq")

from tests.serve import supervised  # noqa: E402
from tests.serve.server import free_port, started  # noqa: E402

from infer_accel.integrations.kv_events import KvEventPublisher  # noqa: E402
from infer_accel.kvcache import BlockManager, BlockPool  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BLOCK = 16
ROOT = Path(__file__).resolve().parents[2]


def managed(num_blocks: int = 64) -> BlockManager:
    return BlockManager(BlockPool(num_blocks, block_size=BLOCK, event_bytes=1 << 20))


def test_vllm_decodes_what_is_published() -> None:
    msgspec = pytest.importorskip("msgspec")
    pytest.importorskip("vllm", exc_type=ImportError)
    kv_events = pytest.importorskip("vllm.distributed.kv_events", exc_type=ImportError)
    manager = managed(8)
    context = zmq.Context()
    with KvEventPublisher(manager, "tcp://127.0.0.1:0", data_parallel_rank=0, topic="kv") as publisher:
        subscriber = context.socket(zmq.SUB)
        subscriber.connect(publisher.endpoint)
        subscriber.setsockopt(zmq.SUBSCRIBE, b"kv")
        time.sleep(0.3)
        first = manager.admit(range(3 * BLOCK))
        manager.release([first.sequence])
        second = manager.admit(range(1000, 1000 + 6 * BLOCK))
        publisher.flush()
        manager.release([second.sequence])
        topic, number, payload = subscriber.recv_multipart()
    subscriber.close(linger=0)
    context.term()
    batch = msgspec.msgpack.Decoder(type=kv_events.KVEventBatch).decode(payload)
    assert (topic, int.from_bytes(number, "big"), batch.data_parallel_rank) == (b"kv", 0, 0)
    stored = [event for event in batch.events if isinstance(event, kv_events.BlockStored)]
    removed = [event for event in batch.events if isinstance(event, kv_events.BlockRemoved)]
    assert stored[0].token_ids == list(range(3 * BLOCK))
    assert stored[0].block_size == BLOCK
    gone = {name for event in removed for name in event.block_hashes}
    assert gone
    assert gone <= set(stored[0].block_hashes)


@contextlib.contextmanager
def indexer(workers: str, log: Path) -> Iterator[Callable[[str, dict[str, Any]], Any]]:
    """Start Dynamo's indexer, subscribed to workers; gives what asks it.

    It listens on all interfaces, which no option changes, as long as the test takes: it knows no tokens but these.
    """
    port = free_port()
    command = [sys.executable, "-m", "dynamo.indexer", "--block-size", str(BLOCK), "--threads", "1"]
    command += ["--port", str(port), "--workers", workers]

    def ask(path: str, asked: dict[str, Any] | None) -> Any:
        data = None if asked is None else json.dumps(asked).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}{path}", data, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            text = answer.read().decode()
        return json.loads(text) if text.startswith(("{", "[")) else text

    with started(command, log, lambda: ask("/health", None), {}):
        yield ask


def until_scores(
    ask: Callable[[str, dict[str, Any]], Any], tokens: list[int], wanted: dict[str, int]
) -> None:
    """Wait until a prompt has these blocks at these workers."""
    found: Any = None
    for _ in range(100):
        found = ask("/query", {"token_ids": tokens, "model_name": "default"})
        # Scores are tokens, of each data-parallel rank.
        scores = {name: ranks["0"] // BLOCK for name, ranks in found["scores"].items() if ranks["0"]}
        if scores == wanted:
            return
        time.sleep(0.1)
    pytest.fail(f"wanted {wanted}, found {found}")


def test_dynamo_routes_by_what_is_published(tmp_path: Path) -> None:
    if importlib.util.find_spec("dynamo") is None or importlib.util.find_spec("dynamo.indexer") is None:
        pytest.skip("Dynamo's runtime is not installed: make test-serve")
    prompt, other = list(range(100, 100 + 5 * BLOCK)), list(range(500, 500 + 3 * BLOCK))
    ones, twos = managed(12), managed(64)
    with contextlib.ExitStack() as stack:
        first, second = (
            stack.enter_context(
                KvEventPublisher(manager, f"tcp://127.0.0.1:{free_port()}", data_parallel_rank=0)
            )
            for manager in (ones, twos)
        )
        ask = stack.enter_context(indexer(f"1={first.endpoint},2={second.endpoint}", tmp_path / "log"))
        # Its subscriptions take a moment to arrive.
        time.sleep(2)
        running = ones.admit(prompt)
        twos.admit(prompt[: 2 * BLOCK])
        until_scores(ask, prompt, {"1": 5, "2": 2})
        twos.admit(other)
        until_scores(ask, other, {"2": 3})
        until_scores(ask, [*prompt[: 3 * BLOCK], 7], {"1": 3, "2": 2})
        # What one worker evicts is no longer there.
        ones.release([running.sequence])
        ones.admit(range(2000, 2000 + 10 * BLOCK))
        until_scores(ask, prompt, {"1": 1, "2": 2})


def test_the_example_runs() -> None:
    done = supervised.run(
        [sys.executable, str(ROOT / "examples/kv_events.py")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "published" in done.stdout
