"""A tier that may be down, and the tiers of this process by their directories."""

from __future__ import annotations

import atexit
import logging
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from infer_accel.errors import ArgumentError, InferAccelError
from infer_accel.kvcache import DiskTier, TieredCache

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy.typing as npt

    from infer_accel.integrations._connector.counters import Counters
    from infer_accel.integrations._connector.options import ConnectorOptions

_log = logging.getLogger("infer_accel")

_Answer = TypeVar("_Answer")

#: Fewest pages in host memory: a cache needs two, and one that is written while the next comes wants more.
_FEWEST_HOST_PAGES = 4
#: Seconds between two looks for what other processes have stored.
_REFRESH_INTERVAL = 0.5
#: Seconds between two lines about a tier that fails.
_LOG_INTERVAL = 10.0


@dataclass(frozen=True, slots=True)
class Place:
    """A directory of pages, and what they hold."""

    path: Path
    fingerprint: bytes
    page_bytes: int


class PageStore:
    """Pages by key, in host memory and on disk: what fails is a miss, a line in the log and a number in the metrics.

    It is opened by a thread, so that a device which hangs does not keep a server from starting, and tried again
    where that failed.

    Parameters
    ----------
    place
        Where the pages lie.
    options
        The connector's.
    counters
        Where errors are counted.
    in_memory
        Whether there is host memory in front of the disk; without it, the store is there to be asked.

    Raises
    ------
    ArgumentError
        Options that no tier can have: the capacity is too small for these pages, for one.
    """

    def __init__(
        self, place: Place, options: ConnectorOptions, counters: Counters, *, in_memory: bool = True
    ) -> None:
        self.place = place
        self._options, self._counters, self._in_memory = options, counters, in_memory
        self._lock = threading.Lock()
        self._tier: DiskTier | None = None
        self._cache: TieredCache | None = None
        self._refused: ArgumentError | None = None
        self._opener: threading.Thread | None = None
        self._retry_at = 0.0
        self._ended = threading.Event()
        self._logged_at = float("-inf")
        self._refreshing = False
        self._refreshed_at = time.monotonic()
        self._start_opening()
        self.is_up(wait=options.open_deadline)
        if self._refused is not None:
            raise self._refused

    def is_up(self, *, wait: float = 0.0) -> bool:
        """Return whether the tier is open, after at most `wait` seconds; one that is not is tried again later."""
        opener = self._opener
        if opener is not None and wait:
            opener.join(wait)
        if self._tier is not None:
            return True
        if not self._ended.is_set() and self._refused is None and time.monotonic() >= self._retry_at:
            self._start_opening()
        return False

    def contains(self, keys: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
        """Return which pages there are; asks no device."""
        nothing = np.zeros(len(keys), np.bool_)
        if not len(keys) or not self.is_up():
            return nothing
        found = self._try("contains", lambda: self._asked().contains(keys), nothing)
        if not found.all():
            self.refresh_soon()
        return found

    def load(self, keys: npt.NDArray[np.uint8], out: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
        """Load pages; returns which arrived. The rows of the others hold anything."""
        nothing = np.zeros(len(keys), np.bool_)
        if not len(keys) or not self.is_up():
            return nothing
        return self._try("load", lambda: self._asked().load(keys, out), nothing)

    def store(self, keys: npt.NDArray[np.uint8], pages: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
        """Take pages in; returns which were taken."""
        nothing = np.zeros(len(keys), np.bool_)
        cache = self._cache if self.is_up() else None
        if cache is None or not len(keys):
            return nothing
        return self._try("store", lambda: cache.store(keys, pages), nothing)

    def flush(self) -> bool:
        """Wait until what was taken is durable; returns whether it is."""
        cache = self._cache
        if cache is None:
            return False

        def all_of_it() -> bool:
            cache.flush()
            return True

        return self._try("flush", all_of_it, otherwise=False)

    def count(self) -> None:
        """Bring what cache and tier themselves have counted into the counters."""
        cache, tier = self._cache, self._tier
        if cache is not None:
            kept = self._try("stats", cache.stats, None)
            if kept is not None:
                self._counters.set(unwritten_pages=kept.failed_writes)
        if tier is None:
            return
        stats = self._try("stats", tier.stats, None)
        if stats is not None:
            self._counters.set(corrupt_pages=stats.corrupt_pages, late_pages=stats.late_pages)

    def close(self) -> None:
        """Write what waits to be written, and close. A second call does nothing."""
        with self._lock:
            self._ended.set()
            cache, tier, self._cache, self._tier = self._cache, self._tier, None, None
        for opened in (cache, tier):
            if opened is not None:
                self._try("close", opened.close, None)

    def _asked(self) -> TieredCache | DiskTier:
        """Return what answers: the cache, or the tier where there is none."""
        asked = self._cache or self._tier
        if asked is None:
            raise InferAccelError("closed while it was asked")
        return asked

    def _try(self, what: str, call: Callable[[], _Answer], otherwise: _Answer) -> _Answer:
        try:
            return call()
        except InferAccelError as error:
            self._counters.add(tier_errors=1)
            now = time.monotonic()
            if now - self._logged_at >= _LOG_INTERVAL:
                self._logged_at = now
                _log.warning("the tier in %s failed (%s): %s", self.place.path, what, error)
            return otherwise

    def _start_opening(self) -> None:
        with self._lock:
            if self._ended.is_set() or (self._opener is not None and self._opener.is_alive()):
                return
            self._retry_at = time.monotonic() + self._options.retry_seconds
            self._opener = threading.Thread(target=self._open, name="infer-accel-open", daemon=True)
            self._opener.start()

    def _open(self) -> None:
        options, place = self._options, self.place
        try:
            # Pages tell what prompts said: they are nobody else's to read.
            place.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            tier = DiskTier(
                place.path,
                capacity_bytes=options.capacity_bytes,
                page_bytes=place.page_bytes,
                fingerprint=place.fingerprint,
                segment_bytes=options.segment_bytes,
                checksum=options.checksum,
                compression=options.compression,
                deadline=options.load_deadline,
                write_deadline=options.write_deadline,
            )
            pages = max(_FEWEST_HOST_PAGES, options.host_bytes // place.page_bytes)
            cache = (
                TieredCache(tier, host_pages=pages, store_deadline=options.store_deadline)
                if self._in_memory
                else None
            )
        except ArgumentError as error:
            self._refused = error
            _log.error("the tier in %s cannot be as it is asked for: %s", place.path, error)
            return
        except (InferAccelError, OSError) as error:
            self._counters.add(tier_errors=1)
            _log.error(
                "the tier in %s is down, tried again in %s s; all is computed until then: %s",
                place.path,
                options.retry_seconds,
                error,
            )
            return
        with self._lock:
            if not self._ended.is_set():
                self._cache, self._tier = cache, tier
                return
        if cache is not None:
            cache.close()
        tier.close()

    def refresh_soon(self) -> None:
        """Have a thread look for pages of other processes, not more often than it is worth."""
        tier = self._tier
        if tier is None or self._refreshing:
            return
        self._refreshing = True
        threading.Thread(target=self._refresh, args=(tier,), name="infer-accel-refresh", daemon=True).start()

    def _refresh(self, tier: DiskTier) -> None:
        if self._ended.wait(max(0.0, self._refreshed_at + _REFRESH_INTERVAL - time.monotonic())):
            return
        self._try("refresh", tier.refresh, None)
        self._refreshed_at = time.monotonic()
        self._refreshing = False


_shared: dict[Path, PageStore] = {}
_lock = threading.Lock()


def share(place: Place, options: ConnectorOptions, counters: Counters) -> PageStore:
    """Return a new store that other connectors of this process can find."""
    store = PageStore(place, options, counters)
    with _lock:
        _shared[place.path] = store
    return store


def find(path: Path) -> PageStore | None:
    """Return the store of a directory that this process writes to, if there is one."""
    with _lock:
        return _shared.get(path)


def close(store: PageStore) -> None:
    """Close a store, and let nobody find it."""
    with _lock:
        if _shared.get(store.place.path) is store:
            del _shared[store.place.path]
    store.close()


@atexit.register
def _close_all() -> None:
    """Close what an engine that ended in a hurry left open: what waits in memory is written then."""
    for store in list(_shared.values()):
        close(store)


class Directory:
    """What the scheduler knows of the pages: those that every rank has.

    Where the worker lives in the same process its store is asked, pages in host memory included; else one that is
    opened to be asked, which sees what is on disk.
    """

    def __init__(self, places: list[Place], options: ConnectorOptions, counters: Counters) -> None:
        self._places, self._options, self._counters = places, options, counters
        self._own: dict[Path, PageStore] = {}

    def is_up(self) -> bool:
        """Return whether the tier of every rank is open."""
        return all(self._store(place).is_up() for place in self._places)

    def contains(self, keys: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
        """Return which pages there are on every rank."""
        found = np.ones(len(keys), np.bool_)
        for place in self._places:
            found &= self._store(place).contains(keys)
        return found

    def expect(self) -> None:
        """Look soon for what a worker in another process is about to store."""
        for store in self._own.values():
            store.refresh_soon()

    def close(self) -> None:
        """Close what was opened here."""
        for store in self._own.values():
            store.close()
        self._own.clear()

    def _store(self, place: Place) -> PageStore:
        shared = find(place.path)
        if shared is not None:
            return shared
        if place.path not in self._own:
            self._own[place.path] = PageStore(place, self._options, self._counters, in_memory=False)
        return self._own[place.path]
