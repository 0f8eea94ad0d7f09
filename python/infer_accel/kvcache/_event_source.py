"""Draining the events of a pool, as objects and as bytes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Literal

from infer_accel.kvcache._events import event_of

if TYPE_CHECKING:
    from infer_accel.kvcache._events import Event


class EventSource:
    """What has a pool with events: the pool itself, and the managers on it."""

    #: The pool of the native core.
    _native_pool: Any

    def drain_events(self) -> list[Event]:
        """Return what was stored and removed since the last drain, the oldest first.

        Returns
        -------
        list
            :class:`BlockStored`, :class:`BlockRemoved`, :class:`AllBlocksCleared`; always empty where the pool
            was made without `event_bytes`.

        Examples
        --------
        >>> from infer_accel.kvcache import BlockPool
        >>> pool = BlockPool(4, event_bytes=1 << 20)
        >>> pool.cache(pool.alloc(1), [bytes(32)])
        1
        >>> [type(event).__name__ for event in pool.drain_events()]
        ['BlockStored']
        """
        return [event_of(fields) for fields in self._native_pool.drain_events()]

    def drain_events_msgpack(
        self,
        *,
        timestamp: float | None = None,
        data_parallel_rank: int | None = None,
        hashes: Literal["integer", "bytes"] = "integer",
    ) -> bytes:
        """Return the same as vLLM publishes it: MessagePack of an ``EventBatch``.

        Parameters
        ----------
        timestamp
            Seconds since 1970; ``None`` for now.
        data_parallel_rank
            Of this server, if there are several.
        hashes
            How hashes are written: the last eight bytes as an integer (vLLM's default), or all bytes.

        Returns
        -------
        bytes
            What ``msgspec.msgpack.Decoder(type=KVEventBatch)`` of a subscriber reads.

        Raises
        ------
        ArgumentError
            Another form of `hashes`.
        """
        now = time.time() if timestamp is None else timestamp
        batch: bytes = self._native_pool.drain_events_msgpack(now, data_parallel_rank, hashes)
        return batch

    @property
    def waiting_events(self) -> int:
        """Events that wait to be drained."""
        waiting: int = self._native_pool.event_counts()[0]
        return waiting

    @property
    def lost_events(self) -> int:
        """Events that were given up because nobody drained them in time."""
        lost: int = self._native_pool.event_counts()[1]
        return lost
