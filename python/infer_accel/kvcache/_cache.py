"""Pages in host memory in front of pages on disk, or on another machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from infer_accel import _backend
from infer_accel.kvcache._front import HostFront
from infer_accel.kvcache._tier import DiskTier

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    import numpy as np
    import numpy.typing as npt

    from infer_accel._typing import Tensor
    from infer_accel.kvcache._protocol import Tier

_implementation = _backend.load("kvcache")


@dataclass(frozen=True, slots=True)
class CacheStats:
    """What a :class:`TieredCache` holds, and what it has done since it was made."""

    #: The fields that only ever grow.
    COUNTERS: ClassVar[frozenset[str]] = frozenset(
        {
            "host_hits",
            "disk_hits",
            "misses",
            "stored_pages",
            "refused_pages",
            "written_pages",
            "failed_writes",
            "prefetched_pages",
        }
    )

    #: Pages in host memory.
    host_pages: int
    #: Most of them.
    host_capacity: int
    #: Pages that wait to be written, or are being written.
    queued_writes: int
    #: Pages that wait to be brought, or are being brought.
    queued_prefetches: int
    #: Pages delivered from host memory.
    host_hits: int
    #: Pages delivered from disk.
    disk_hits: int
    #: Pages not delivered.
    misses: int
    #: Pages taken in.
    stored_pages: int
    #: Pages not taken in, because the disk is too slow.
    refused_pages: int
    #: Pages written to disk.
    written_pages: int
    #: Pages that the disk did not take; they stay in host memory until they are evicted.
    failed_writes: int
    #: Pages brought ahead.
    prefetched_pages: int


class TieredCache:
    """Host memory in front of a :class:`DiskTier` or another tier: stores return at once, prefetches come behind.

    What is stored lies in host memory, and a thread of the cache writes it to disk. What is prefetched is brought
    from disk by another. Both have queues of bounded length: a :meth:`store` that is faster than the disk waits for
    a place, or after `store_deadline` goes without; a :meth:`prefetch` for which there is no place is dropped.

    What is promised: :meth:`load` delivers the bytes that were stored under a key, or nothing. After a
    :meth:`flush` or :meth:`close` that returned, every page that a store before it took is durable on disk, until
    the disk evicts it.

    "Disk" is whatever tier stands behind. One that is no :class:`DiskTier` is asked by threads of Python, and
    whether a prefetch finds anything shows when it is brought.

    Caches may be shared by threads. After a fork the child's copy refuses to work.

    Parameters
    ----------
    disk
        The tier behind; it stays usable by itself, and is not closed with the cache. A :class:`DiskTier`, or anything
        else that is a :class:`Tier`, such as :class:`infer_accel.integrations.redis.RedisTier`.
    host_pages
        Pages in host memory, at least 2. The least recently used one that is on disk makes room.
    queued_writes
        Most pages that are not on disk yet; ``None`` for half of the host's, which is also the most.
    queued_prefetches
        Most pages that are asked for and not brought yet.
    store_deadline
        Seconds that a store waits for a place; ``None`` for as long as it takes.

    Raises
    ------
    ArgumentError
        A number that is out of range.
    StorageError
        No memory for the host's pages; the disk tier is closed.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from infer_accel.kvcache import DiskTier
    >>> folder = tempfile.TemporaryDirectory()
    >>> disk = DiskTier(folder.name, capacity_bytes=1 << 20, page_bytes=1024, fingerprint=b"my model")
    >>> with disk, TieredCache(disk, host_pages=4) as cache:
    ...     keys = [bytes([number]) for number in range(6)]
    ...     pages = np.arange(6, dtype=np.uint8).repeat(1024).reshape(6, 1024)
    ...     taken = cache.store(keys, pages)
    ...     cache.flush()
    ...     out = np.zeros_like(pages)
    ...     found = cache.load(keys, out)
    >>> bool(taken.all()), bool(found.all()), bool((out == pages).all())
    (True, True, True)
    >>> folder.cleanup()
    """

    def __init__(
        self,
        disk: Tier,
        *,
        host_pages: int,
        queued_writes: int | None = None,
        queued_prefetches: int = 64,
        store_deadline: float | None = None,
    ) -> None:
        make: Any = HostFront
        behind: object = disk
        if isinstance(disk, DiskTier):
            make, behind = _implementation.TieredCache, disk._tier  # noqa: SLF001 - the same package
        self._cache = make(
            behind,
            host_pages=host_pages,
            queued_writes=queued_writes,
            queued_prefetches=queued_prefetches,
            store_deadline=store_deadline,
        )

    def store(self, keys: Tensor | Sequence[bytes], pages: Tensor) -> npt.NDArray[np.bool_]:
        """Take pages in.

        Parameters
        ----------
        keys, pages
            As for :meth:`DiskTier.store`. The pages are copied: they may change when this returns.

        Returns
        -------
        numpy.ndarray
            bool of shape ``[n]``: which pages were taken. One that was not found no place in time, or all of the
            host's pages were in use.

        Raises
        ------
        ShapeError
            Not one page of the right size for each key.
        StorageError
            The cache is closed, or was made before a fork. What the disk refuses, :meth:`flush` reports.
        """
        taken: npt.NDArray[np.bool_] = self._cache.store(keys, pages)
        return taken

    def load(
        self, keys: Tensor | Sequence[bytes], out: Tensor, *, num_threads: int | None = None
    ) -> npt.NDArray[np.bool_]:
        """Load pages from host memory, or else from disk.

        Parameters
        ----------
        keys, out, num_threads
            As for :meth:`DiskTier.load`.

        Returns
        -------
        numpy.ndarray
            bool of shape ``[n]``: which pages were delivered. What came from disk stays in host memory.
        """
        found: npt.NDArray[np.bool_] = self._cache.load(keys, out, num_threads=num_threads)
        return found

    def prefetch(self, keys: Tensor | Sequence[bytes]) -> int:
        """Ask for pages to be brought from disk to host memory, and return at once.

        Returns
        -------
        int
            How many were asked for: those that are on disk, not in host memory, and found a place in the queue.
        """
        asked: int = self._cache.prefetch(keys)
        return asked

    def wait_for_prefetches(self) -> None:
        """Return when all that was asked for before has been brought."""
        self._cache.wait_for_prefetches()

    def contains(self, keys: Tensor | Sequence[bytes]) -> npt.NDArray[np.bool_]:
        """Return which pages are in host memory or known to be on disk."""
        found: npt.NDArray[np.bool_] = self._cache.contains(keys)
        return found

    def flush(self) -> None:
        """Return when every page that was taken before is durable on disk.

        Raises
        ------
        StorageError
            Some of them are not: the disk is full, or fails. They are in host memory still; storing them again tries
            again.
        """
        self._cache.flush()

    def stats(self) -> CacheStats:
        """Return what the cache holds and has done."""
        return CacheStats(**dict(self._cache.stats()))

    def close(self) -> None:
        """Flush, and end the threads. A second call does nothing; any other is a StorageError."""
        self._cache.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
