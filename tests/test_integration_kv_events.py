"""Events of a pool on ZeroMQ: what a subscriber sees, and who asks again. Dynamo's indexer is in `tests/serve`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

zmq = pytest.importorskip("zmq")

from infer_accel.errors import ArgumentError  # noqa: E402
from infer_accel.integrations.kv_events import KvEventPublisher  # noqa: E402
from infer_accel.kvcache import BlockManager, BlockPool  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

END = b"\xff" * 8


class Sockets:
    """Sockets of a test, all of which are closed behind it."""

    def __init__(self) -> None:
        self._context: Any = zmq.Context()
        self._made: list[Any] = []

    def socket(self, kind: int) -> Any:
        self._made.append(self._context.socket(kind))
        return self._made[-1]

    def close(self) -> None:
        for socket in self._made:
            socket.close(linger=0)
        self._context.term()


@pytest.fixture
def context() -> Iterator[Sockets]:
    made = Sockets()
    yield made
    made.close()


def managed(**options: Any) -> BlockManager:
    return BlockManager(BlockPool(64, block_size=4, event_bytes=1 << 20, **options))


def subscriber(context: Sockets, endpoint: str, topic: bytes = b"") -> Any:
    socket = context.socket(zmq.SUB)
    socket.connect(endpoint)
    socket.setsockopt(zmq.SUBSCRIBE, topic)
    # A subscription takes a moment to arrive, and what is published before is for others.
    time.sleep(0.3)
    return socket


def received(socket: Any) -> list[bytes]:
    assert socket.poll(10_000), "nothing came"
    frames: list[bytes] = socket.recv_multipart()
    return frames


def replayed(context: Sockets, endpoint: str, first: int) -> list[tuple[int, bytes]]:
    # A dealer: the answers are several messages, of which a REQ socket would take one.
    answers: list[tuple[int, bytes]] = []
    dealer = context.socket(zmq.DEALER)
    dealer.connect(endpoint)
    dealer.send_multipart([b"", first.to_bytes(8, "big")])
    while True:
        assert dealer.poll(10_000)
        _, _, number, batch = dealer.recv_multipart()
        if number == END:
            return answers
        answers.append((int.from_bytes(number, "big"), batch))


def test_a_subscriber_reads_what_the_pool_says(context: Sockets) -> None:
    told, twin = managed(), managed()
    with KvEventPublisher(told, "tcp://127.0.0.1:0", topic="kv", data_parallel_rank=0) as publisher:
        socket = subscriber(context, publisher.endpoint, b"kv")
        for manager in (told, twin):
            manager.admit(range(10))
        topic, number, batch = received(socket)
        assert (topic, number) == (b"kv", (0).to_bytes(8, "big"))
        # The time of the batch is the one thing that differs.
        expected = twin.drain_events_msgpack(timestamp=0.0, data_parallel_rank=0)
        assert batch[:2] == expected[:2]
        assert batch[10:] == expected[10:]
        told.admit(range(100, 110))
        assert received(socket)[1] == (1).to_bytes(8, "big")
        assert publisher.messages == 2


def test_nothing_is_sent_where_nothing_happened(context: Sockets) -> None:
    with KvEventPublisher(managed(), "tcp://127.0.0.1:0") as publisher:
        socket = subscriber(context, publisher.endpoint)
        assert not socket.poll(200)
        assert publisher.flush() == 0


def test_who_has_missed_some_asks_again(context: Sockets) -> None:
    manager = managed()
    options = {"replay_endpoint": "tcp://127.0.0.1:0", "buffer_steps": 3}
    with KvEventPublisher(manager, "tcp://127.0.0.1:0", **options) as publisher:  # type: ignore[arg-type]
        assert publisher.replay_endpoint is not None
        for place in range(5):
            manager.admit(range(place * 100, place * 100 + 8))
            publisher.flush()
        assert [number for number, _ in replayed(context, publisher.replay_endpoint, 0)] == [2, 3, 4]
        assert [number for number, _ in replayed(context, publisher.replay_endpoint, 4)] == [4]
        assert replayed(context, publisher.replay_endpoint, 9) == []


def test_a_question_of_another_form_is_not_answered_and_hurts_nobody(
    context: Sockets, caplog: pytest.LogCaptureFixture
) -> None:
    manager = managed()
    replay = "tcp://127.0.0.1:0"
    with KvEventPublisher(manager, "tcp://127.0.0.1:0", replay_endpoint=replay) as publisher:
        assert publisher.replay_endpoint is not None
        dealer = context.socket(zmq.DEALER)
        dealer.connect(publisher.replay_endpoint)
        for frames in ([b"x"], [b"", b"12"], [b"", b"", b"", b""]):
            dealer.send_multipart(frames)
        manager.admit(range(8))
        publisher.flush()
        assert [number for number, _ in replayed(context, publisher.replay_endpoint, 0)] == [0]
        assert not dealer.poll(0)
    assert len(caplog.records) == 3


def test_what_waits_is_sent_before_the_end(context: Sockets) -> None:
    manager = managed()
    publisher = KvEventPublisher(manager, "tcp://127.0.0.1:0", interval=60.0)
    socket = subscriber(context, publisher.endpoint)
    manager.admit(range(8))
    publisher._stop.set()
    publisher.close()
    assert received(socket)[1] == (0).to_bytes(8, "big")
    publisher.close()
    with pytest.raises(ArgumentError, match="closed") as caught:
        publisher.flush()
    assert caught.value.code == "argument.events"


def test_ranks_have_ports_of_their_own() -> None:
    with KvEventPublisher(managed(), "tcp://127.0.0.1:0") as first:
        port = int(first.endpoint.rpartition(":")[2])
        if port < 65_500:
            with KvEventPublisher(managed(), f"tcp://127.0.0.1:{port}", data_parallel_rank=3) as other:
                assert other.endpoint == f"tcp://127.0.0.1:{port + 3}"
        with pytest.raises(ArgumentError, match="cannot be bound") as caught:
            KvEventPublisher(managed(), first.endpoint)
        assert caught.value.code == "argument.endpoint"


@pytest.mark.parametrize("endpoint", ["nonsense", "tcp://nowhere", "tcp://256.0.0.1:5557"])
def test_an_endpoint_that_cannot_be(endpoint: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        KvEventPublisher(managed(), endpoint)
    assert caught.value.code == "argument.endpoint"
    with pytest.raises(ArgumentError, match=r"with ranks|cannot be bound"):
        KvEventPublisher(managed(), endpoint, data_parallel_rank=1)


def test_a_pool_without_events_is_told() -> None:
    with pytest.raises(ArgumentError, match="event_bytes") as caught:
        KvEventPublisher(BlockPool(8))
    assert caught.value.code == "argument.events"


@pytest.mark.parametrize(
    "options",
    [
        {"interval": 0},
        {"interval": float("nan")},
        {"interval": float("inf")},
        {"buffer_steps": -1},
        {"buffer_steps": 1 << 70},
        {"hashes": "hex"},
        {"data_parallel_rank": -1},
        {"data_parallel_rank": 1 << 40},
    ],
    ids=str,
)
def test_what_would_end_the_thread_is_refused_at_once(options: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match=next(iter(options))) as caught:
        KvEventPublisher(managed(), "tcp://127.0.0.1:0", **options)
    assert caught.value.code == "argument.events"


def test_a_closed_publisher_still_names_its_endpoints() -> None:
    publisher = KvEventPublisher(managed(), "tcp://127.0.0.1:0", replay_endpoint="tcp://127.0.0.1:0")
    publisher.close()
    assert publisher.endpoint.startswith("tcp://127.0.0.1:")
    assert publisher.replay_endpoint is not None
