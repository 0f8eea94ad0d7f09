"""A tier on a server that speaks Redis' protocol: Redis, Valkey and their like.

Needs the package ``redis``: ``pip install 'infer-accel[redis]'``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import redis
from redis.backoff import NoBackoff
from redis.exceptions import OutOfMemoryError, RedisError
from redis.retry import Retry

from infer_accel.errors import ArgumentError
from infer_accel.integrations._shared.address import without_secrets
from infer_accel.integrations._shared.engine import EngineFullError
from infer_accel.integrations._shared.stats import SharedTierStats
from infer_accel.integrations._shared.tier import SharedTier

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from infer_accel.kvcache import PageLayout

__all__ = ["RedisTier", "SharedTierStats"]

#: What is asked for or written at once: what came lies in the processor's cache when it is checked, and a server that
#: does one thing at a time is not held up. Loads of 64 KiB pages in 8 MiB calls took half as long again, and two calls
#: of one load at once twice as long: their threads fight for the interpreter's lock (benches/scale.py).
_BATCH_BYTES = 1 << 20
#: Seconds that a server may be silent where the tier's own deadlines are endless.
_LONGEST_SILENCE = 60.0


class RedisTier(SharedTier):
    """Pages on a server that many machines share, by Redis' protocol: bounded there, checked here.

    The same calls as :class:`infer_accel.kvcache.DiskTier`, and the same promise: a load delivers the bytes that were
    stored under the key, or nothing. A page lies behind a header with its key, the fingerprint of its layout and a
    check of its bytes; what does not fit (a flipped bit, a page of another model) is a miss, a figure in
    :meth:`stats`, and removed.

    The server is a cache: how much it holds and what it forgets is set there (``maxmemory``,
    ``maxmemory-policy allkeys-lru``), as is who may ask it. Opening asks nothing, so a server that is down keeps
    nobody from starting.

    A call waits for the server no longer than its deadline. A server that was late or failed is left alone for
    `retry_seconds`; calls are answered at once then, loads with misses, and a thread asks whether it is back.

    Tiers may be shared by threads. After a fork the child's copy refuses to work: open a tier there.

    Parameters
    ----------
    url
        ``redis://host:port/database``, ``rediss://`` for TLS, ``unix://path``.
    page_bytes
        Bytes of every page, at most 1 GiB; a server takes 512 MiB unless it was told otherwise.
    fingerprint
        What the pages hold: bytes that are equal for all who may read each other's pages (model, layout, dtype),
        or a :class:`~infer_accel.kvcache.PageLayout`. Pages of others have other names, and are refused if they turn
        up under ours.
    secret
        Bytes that all who store and load have, and nobody else: the check is then HMAC-SHA-256, which who can write
        to the server cannot forge. Without it the check is XXH3, ten times as fast, which finds every accident.
    deadline
        Seconds that a :meth:`load` takes at most; what is not there by then is a miss. ``None`` waits for ever.
    write_deadline
        Seconds that a :meth:`store` waits for the server to take anything; then it raises ``storage.late``.
    retry_seconds
        How long a server that failed is left alone.
    expire_seconds
        When the server forgets a page, counted from its store; ``None`` for what its policy says.
    prefix
        What the names on the server begin with.
    threads
        Threads and connections: as many callers are served at once.
    options
        More for ``redis.Redis.from_url``: ``password``, ``ssl_ca_certs``, …

    Raises
    ------
    ArgumentError
        A size or time that is out of range, or a URL or an option that the client does not take.

    Notes
    -----
    A load is one MGET for each MiB of pages, a store one pipeline of SETs for each MiB, after one of EXISTS.
    Memory: a few of these for each caller, and 144 bytes a page on the server beside the page.

    Examples
    --------
    A server that is not there is a miss:

    >>> import numpy as np
    >>> with RedisTier("redis://127.0.0.1:1", page_bytes=4096, fingerprint=b"my model") as tier:
    ...     found = tier.load([b"some block"], np.zeros((1, 4096), np.uint8))
    ...     stats = tier.stats()
    >>> found.tolist(), stats.misses, stats.up
    ([False], 1, 0)
    """

    def __init__(
        self,
        url: str,
        *,
        page_bytes: int,
        fingerprint: bytes | PageLayout,
        secret: bytes | None = None,
        deadline: float | None = 2.0,
        write_deadline: float | None = 10.0,
        retry_seconds: float = 5.0,
        expire_seconds: int | None = None,
        prefix: str = "infer-accel/",
        threads: int = 2,
        options: Mapping[str, object] | None = None,
    ) -> None:
        if expire_seconds is not None and expire_seconds < 1:
            message = f"expire_seconds={expire_seconds} came; pass 1 or more, or None"
            raise ArgumentError(message, code="argument.deadline")
        silences = [value for value in (deadline, write_deadline) if value is not None] or [_LONGEST_SILENCE]
        settings: dict[str, object] = {
            "socket_connect_timeout": min(silences),
            "socket_timeout": max(silences),
            "max_connections": threads,
            "protocol": 2,
            "retry": Retry(NoBackoff(), 0),
        }
        try:
            client = redis.Redis.from_url(url, **(settings | dict(options or {})))
            pool = client.connection_pool
            pool.connection_class(**pool.connection_kwargs)  # looks at the options, and does not connect
        except (ValueError, TypeError) as error:
            message = (
                f"the client of Redis does not take url={without_secrets(url)!r} with these options: {error}"
            )
            raise ArgumentError(message, code="argument.shared_tier") from error
        super().__init__(
            _RedisEngine(client, prefix, expire_seconds),
            page_bytes=page_bytes,
            fingerprint=fingerprint,
            secret=secret,
            deadline=deadline,
            write_deadline=write_deadline,
            retry_seconds=retry_seconds,
            threads=threads,
            batch_bytes=_BATCH_BYTES,
        )


class _RedisEngine:
    """Strings of a server."""

    def __init__(self, client: redis.Redis, prefix: str, expire_seconds: int | None) -> None:
        self._client, self._prefix, self._expire_seconds = client, prefix, expire_seconds

    def fetch(self, names: Sequence[str]) -> list[bytes | None]:
        values: list[bytes | None] = self._client.mget(self._full(names))
        return values

    def put(self, entries: Sequence[tuple[str, bytes]]) -> None:
        calls = self._client.pipeline(transaction=False)
        for name, value in entries:
            calls.set(self._prefix + name, value, ex=self._expire_seconds)
        # A call among them that fails leaves the others standing.
        answers = calls.execute(raise_on_error=False)
        errors = [answer for answer in answers if isinstance(answer, Exception)]
        full = [error for error in errors if isinstance(error, OutOfMemoryError)]
        if full:
            raise EngineFullError(str(full[0]), len(answers) - len(errors))
        if errors:
            raise errors[0]

    def exist(self, names: Sequence[str]) -> list[bool]:
        calls = self._client.pipeline(transaction=False)
        for name in self._full(names):
            calls.exists(name)
        return [bool(answer) for answer in calls.execute()]

    def remove(self, names: Sequence[str]) -> None:
        self._client.unlink(*self._full(names))

    def ping(self) -> None:
        if not self._client.ping():
            raise RedisError("no answer to PING")

    def hang_up(self) -> None:
        self._client.connection_pool.disconnect()

    def close(self) -> None:
        self._client.close()

    def _full(self, names: Sequence[str]) -> list[str]:
        return [self._prefix + name for name in names]
