"""A pool's events on ZeroMQ, as vLLM publishes its own: for routers that send a prompt to where it is cached.

Dynamo's KV router and indexer, llm-d's and others subscribe to it. It needs ``pyzmq``.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from typing import TYPE_CHECKING, Literal, Self

try:
    import zmq
except ImportError as error:
    _message = f"events go over ZeroMQ, which is not installed: pip install pyzmq ({error})"
    raise ModuleNotFoundError(_message, name="zmq") from error

from infer_accel.errors import ArgumentError, InferAccelError
from infer_accel.kvcache import BlockPool

if TYPE_CHECKING:
    from types import TracebackType

    from infer_accel.kvcache import BlockManager

__all__ = ["KvEventPublisher"]

_log = logging.getLogger("infer_accel")

#: What vLLM ends an answer to a replay with.
_END = (-1).to_bytes(8, "big", signed=True)
#: Of seconds between two looks, and of ranks and messages kept.
_LONGEST_INTERVAL, _MOST = 3600.0, 2**31 - 1


class KvEventPublisher:
    """Publishes what a pool stores and removes, in a thread of its own.

    A message has three frames, as vLLM's: the topic, a number that rises by one (eight bytes, big-endian), and the
    MessagePack of an ``EventBatch``. Who has missed some asks the replay endpoint for all from a number on.

    Parameters
    ----------
    source
        A pool that was made with `event_bytes`, or a manager on one. Whoever else drains it takes events away.
    endpoint
        Where subscribers connect, such as ``"tcp://127.0.0.1:5557"``, ``"tcp://*:5557"`` for all interfaces, or
        ``"ipc:///run/kv"``. Port 0 takes a free one, which :attr:`endpoint` names.
    replay_endpoint
        Where they ask for what they missed; ``None`` for nowhere.
    topic
        The first frame.
    data_parallel_rank
        Of this server, if there are several: it is in every batch, and added to both ports.
    interval
        Seconds between two looks at the pool.
    buffer_steps
        Messages that are kept for replays.
    hashes
        As for :meth:`BlockPool.drain_events_msgpack`.

    Raises
    ------
    ArgumentError
        A pool without events, an endpoint that cannot be bound, a number out of range.

    Notes
    -----
    Nothing waits for subscribers: one that is too slow misses messages, which it sees by their numbers. A pool whose
    log overflowed says that everything was cleared, and goes on. Anyone who can connect reads which tokens are cached.

    Examples
    --------
    >>> from infer_accel.kvcache import BlockManager, BlockPool
    >>> manager = BlockManager(BlockPool(64, block_size=4, event_bytes=1 << 20))
    >>> with KvEventPublisher(manager, "tcp://127.0.0.1:0") as publisher:
    ...     admission = manager.admit(range(10))
    ...     publisher.flush()
    1
    """

    def __init__(
        self,
        source: BlockPool | BlockManager,
        endpoint: str = "tcp://127.0.0.1:5557",
        *,
        replay_endpoint: str | None = None,
        topic: str = "",
        data_parallel_rank: int | None = None,
        interval: float = 0.01,
        buffer_steps: int = 10_000,
        hashes: Literal["integer", "bytes"] = "integer",
    ) -> None:
        pool = source if isinstance(source, BlockPool) else source.pool
        if not pool.keeps_events:
            message = "this pool keeps no events: make it with BlockPool(…, event_bytes=1 << 24)"
            raise ArgumentError(message, code="argument.events")
        _check(interval, buffer_steps, data_parallel_rank, hashes)
        self._pool, self._topic, self._rank, self._hashes = pool, topic.encode(), data_parallel_rank, hashes
        self._interval = interval
        self._sent: deque[tuple[int, bytes]] = deque(maxlen=buffer_steps)
        self._next = 0
        # Sockets belong to one thread at a time.
        self._lock = threading.Lock()
        self._stop = threading.Event()
        rank = data_parallel_rank or 0
        addresses = [
            None if address is None else _of_rank(address, rank) for address in (endpoint, replay_endpoint)
        ]
        self._context = zmq.Context()
        try:
            self._publisher = self._bound(zmq.PUB, addresses[0] or endpoint)
            self._replay = None if addresses[1] is None else self._bound(zmq.ROUTER, addresses[1])
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            message = f"{endpoint!r} and {replay_endpoint!r} came, and cannot be bound: {error}"
            raise ArgumentError(message, code="argument.endpoint") from error
        # A socket that is closed cannot tell any more.
        self._endpoint = _name_of(self._publisher)
        self._replay_endpoint = None if self._replay is None else _name_of(self._replay)
        self._thread = threading.Thread(target=self._run, name="infer-accel-kv-events", daemon=True)
        self._thread.start()

    @property
    def endpoint(self) -> str:
        """Where subscribers connect."""
        return self._endpoint

    @property
    def replay_endpoint(self) -> str | None:
        """Where they ask for what they missed."""
        return self._replay_endpoint

    @property
    def messages(self) -> int:
        """How many messages were published: the number of the next one."""
        return self._next

    def flush(self) -> int:
        """Publish what waits in the pool, without waiting for the thread; returns :attr:`messages`.

        Raises
        ------
        ArgumentError
            The publisher is closed.
        """
        with self._lock:
            if self._context.closed:
                message = "the publisher is closed"
                raise ArgumentError(message, code="argument.events")
            self._publish()
        return self._next

    def close(self) -> None:
        """Publish what waits, and end the thread. A second call does nothing."""
        self._stop.set()
        self._thread.join()
        with self._lock:
            if self._context.closed:
                return
            try:
                self._publish()
            finally:
                # A subscriber that is there gets what was sent, one that is not holds nobody up.
                self._context.destroy(linger=1000)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _bound(self, kind: int, endpoint: str) -> zmq.Socket[bytes]:
        socket: zmq.Socket[bytes] = self._context.socket(kind)
        socket.set_hwm(100_000)
        socket.bind(endpoint)
        return socket

    def _run(self) -> None:
        while not self._stop.wait(self._interval):
            with self._lock:
                try:
                    self._publish()
                    self._answer()
                except (zmq.ZMQError, InferAccelError):
                    _log.exception("events of the KV cache could not be published")

    def _publish(self) -> None:
        if self._pool.waiting_events == 0:
            return
        batch = self._pool.drain_events_msgpack(data_parallel_rank=self._rank, hashes=self._hashes)
        number = self._next
        self._next += 1
        self._sent.append((number, batch))
        self._publisher.send_multipart([self._topic, number.to_bytes(8, "big"), batch])

    def _answer(self) -> None:
        """Answer who asks for what they missed."""
        while self._replay is not None and self._replay.poll(0):
            frames = self._replay.recv_multipart()
            if len(frames) != 3 or len(frames[2]) != 8:
                _log.warning("a replay was asked for in a form that is not vLLM's, and is not answered")
                continue
            client, first = frames[0], int.from_bytes(frames[2], "big")
            for number, batch in self._sent:
                if number >= first:
                    self._replay.send_multipart([client, b"", self._topic, number.to_bytes(8, "big"), batch])
            self._replay.send_multipart([client, b"", b"", _END, b""])


def _name_of(socket: zmq.Socket[bytes]) -> str:
    return str(socket.getsockopt_string(zmq.LAST_ENDPOINT))


def _check(interval: float, buffer_steps: int, rank: int | None, hashes: str) -> None:
    """Refuse here what would end the thread, where nobody sees it."""
    if not 0 < interval <= _LONGEST_INTERVAL or not 0 <= buffer_steps <= _MOST:
        message = (
            f"interval={interval} and buffer_steps={buffer_steps} came; above 0 and up to {_LONGEST_INTERVAL:g}, and "
            f"0 to {_MOST} are allowed"
        )
        raise ArgumentError(message, code="argument.events")
    if rank is not None and not 0 <= rank <= _MOST:
        message = f"data_parallel_rank={rank} came; None and 0 to {_MOST} are allowed"
        raise ArgumentError(message, code="argument.events")
    if hashes not in {"integer", "bytes"}:
        message = f'hashes={hashes!r} came; allowed: "integer", "bytes"'
        raise ArgumentError(message, code="argument.events")


def _of_rank(endpoint: str, rank: int) -> str:
    """Return the endpoint of a data-parallel rank, as vLLM counts them."""
    if rank == 0:
        return endpoint
    if endpoint.startswith("inproc"):
        return f"{endpoint}_dp{rank}"
    address, _, port = endpoint.rpartition(":")
    if not endpoint.startswith("tcp") or not port.isdigit():
        message = f"{endpoint!r} came for rank {rank}; tcp://host:port or inproc://name is allowed with ranks"
        raise ArgumentError(message, code="argument.endpoint")
    return endpoint if port == "0" else f"{address}:{int(port) + rank}"
