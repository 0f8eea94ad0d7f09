"""A tier on object storage: S3 and what speaks like it, Google's, Azure's, or a directory.

Needs the package ``obstore``: ``pip install 'infer-accel[object-store]'``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import obstore
from obstore.exceptions import BaseError as ObstoreError
from obstore.store import from_url

from infer_accel.errors import ArgumentError
from infer_accel.integrations._shared.address import without_secrets
from infer_accel.integrations._shared.engine import EngineFullError
from infer_accel.integrations._shared.stats import SharedTierStats
from infer_accel.integrations._shared.tier import SharedTier

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from obstore.store import ObjectStore

    from infer_accel.kvcache import PageLayout

__all__ = ["ObjectStoreTier", "SharedTierStats"]

#: What stores without room say: a file system, a quota of it, an HTTP server (507).
_FULL = ("No space left", "StorageFull", "Insufficient Storage", "quota exceeded", "QuotaExceeded")


class ObjectStoreTier(SharedTier):
    """Pages in object storage that many machines share: one object a page, checked on arrival.

    The same calls and promises as :class:`~infer_accel.integrations.redis.RedisTier`. Storage of this kind has no
    bound of its own: let a lifecycle rule of the bucket expire what is old.

    Tiers may be shared by threads. After a fork the child's copy refuses to work: open a tier there.

    Parameters
    ----------
    store
        A URL (``s3://bucket/prefix``, ``gs://…``, ``az://…``, ``file:///directory``, ``memory:///``), or a store of
        ``obstore.store``, with whatever credentials and retries it was given.
    page_bytes, fingerprint, secret, deadline, write_deadline, retry_seconds
        As for :class:`~infer_accel.integrations.redis.RedisTier`.
    threads
        Requests that are under way at once.
    config
        With a URL: settings of the store, such as ``{"region": "eu-west-1", "endpoint": …}``. What is not there
        comes from the environment (``AWS_ACCESS_KEY_ID``, …).
    client_options
        With a URL: settings of the HTTP client, such as ``{"timeout": "10s", "allow_http": True}``.

    Raises
    ------
    ArgumentError
        A size or time that is out of range, or a URL or setting that `obstore` does not take.

    Notes
    -----
    A load is a GET, a store a HEAD and a PUT for each page; requests of a call run on `threads` threads.

    Examples
    --------
    >>> import numpy as np
    >>> pages = np.arange(2 * 4096, dtype=np.uint16).astype(np.uint8).reshape(2, 4096)
    >>> with ObjectStoreTier("memory:///", page_bytes=4096, fingerprint=b"my model") as tier:
    ...     stored = tier.store([b"first block", b"other block"], pages)
    ...     out = np.zeros_like(pages)
    ...     found = tier.load([b"other block", b"no such one"], out)
    >>> stored, found.tolist(), bool((out[0] == pages[1]).all())
    (2, [True, False], True)
    """

    def __init__(
        self,
        store: str | ObjectStore,
        *,
        page_bytes: int,
        fingerprint: bytes | PageLayout,
        secret: bytes | None = None,
        deadline: float | None = 5.0,
        write_deadline: float | None = 30.0,
        retry_seconds: float = 5.0,
        threads: int = 8,
        config: Mapping[str, str] | None = None,
        client_options: Mapping[str, object] | None = None,
    ) -> None:
        if isinstance(store, str):
            try:
                store = from_url(store, config=dict(config or {}), client_options=dict(client_options or {}))
            except (ObstoreError, ValueError, TypeError) as error:
                # Its text goes on with the whole URL in pieces, and so does the error itself.
                reason = without_secrets(next(iter(str(error).splitlines()), ""))
                message = f"obstore does not take {without_secrets(store)!r} with these settings: {reason}"
                raise ArgumentError(message, code="argument.shared_tier") from None
        super().__init__(
            _ObjectEngine(store),
            page_bytes=page_bytes,
            fingerprint=fingerprint,
            secret=secret,
            deadline=deadline,
            write_deadline=write_deadline,
            retry_seconds=retry_seconds,
            threads=threads,
            batch_bytes=1,  # an object a request: more of them in one call would only wait for each other
            names_in_a_call=1,
            calls_at_once=threads,
        )


class _ObjectEngine:
    """Objects of a store."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def fetch(self, names: Sequence[str]) -> list[bytes | None]:
        return [self._get(name) for name in names]

    def put(self, entries: Sequence[tuple[str, bytes]]) -> None:
        for stored, (name, value) in enumerate(entries):
            try:
                # One request, which puts all of the object there or nothing.
                obstore.put(self._store, name, value, use_multipart=False)
            except Exception as error:
                if any(sign in str(error) for sign in _FULL):
                    raise EngineFullError(str(error), stored) from error
                raise

    def exist(self, names: Sequence[str]) -> list[bool]:
        return [self._has(name) for name in names]

    def remove(self, names: Sequence[str]) -> None:
        for name in names:
            try:
                obstore.delete(self._store, name)
            except FileNotFoundError:
                continue

    def ping(self) -> None:
        self._has("ping")

    def hang_up(self) -> None:
        """Do nothing: the store's own timeouts end its requests."""

    def close(self) -> None:
        """Do nothing: a store has no end but its last reference's."""

    def _get(self, name: str) -> bytes | None:
        try:
            value: bytes = obstore.get(self._store, name).bytes().to_bytes()
        except FileNotFoundError:
            return None
        return value

    def _has(self, name: str) -> bool:
        try:
            obstore.head(self._store, name)
        except FileNotFoundError:
            return False
        return True
