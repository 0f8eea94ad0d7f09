"""Pages of an engine by names of its own, in a :class:`~infer_accel.kvcache.DiskTier` that is opened with the first."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch

from infer_accel.errors import ArgumentError, InferAccelError, StorageError
from infer_accel.kvcache import DiskTier

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import numpy.typing as npt

    from infer_accel.kvcache import TierStats

    #: A page of an engine's memory.
    _Page: TypeAlias = torch.Tensor | npt.NDArray[np.uint8]
    #: Pages that one call reads or writes: the first, the one behind the last, and all of them.
    _Run: TypeAlias = tuple[int, int, npt.NDArray[np.uint8]]

_log = logging.getLogger("infer_accel")

#: Options of :class:`DiskTier` that may be given beside the two that must be.
_OPTIONAL = ("segment_bytes", "checksum", "compression", "deadline", "write_deadline")
#: Seconds between two lines of the log about a tier that fails, and between two looks at what others have stored.
_QUIET, _FRESH = 10.0, 0.5
#: Seconds that opening may take, where nothing else is said: as long as DiskTier waits for a load.
_DEADLINE = 5.0
#: Pages of at least so many bytes are read to where they belong, and written from there. Smaller ones are gathered
#: first, because a call costs more than to copy them.
_ALONE = 1 << 17
#: Threads that read pages which lie apart.
_READERS = min(4, os.cpu_count() or 1)


class PageFiles:
    """Pages on disk by names; whatever fails is a miss, or a page that is not stored.

    Parameters
    ----------
    options
        ``root_dir`` and ``capacity_bytes``, and those of :class:`DiskTier` (``segment_bytes``, ``checksum``,
        ``compression``, ``deadline``, ``write_deadline``). Others are an error.
    facts
        All that pages depend on beside their names: who differs in any of it has a directory of its own.

    Raises
    ------
    ArgumentError
        An option that is unknown or missing.
    """

    def __init__(self, options: Mapping[str, Any], facts: Mapping[str, object]) -> None:
        wanted = ("root_dir", "capacity_bytes", *_OPTIONAL)
        strange = sorted(set(options) - set(wanted))
        missing = [name for name in wanted[:2] if name not in options]
        if strange or missing:
            message = f"options {strange} are unknown and {missing} are missing; allowed: {', '.join(wanted)}"
            raise ArgumentError(message, code="argument.connector_option")
        self._options = dict(options)
        self._facts = dict(facts)
        self._tier: DiskTier | None = None
        self._is_closed = False
        self._lock = threading.Lock()
        self._readers: ThreadPoolExecutor | None = None
        self._opening: Future[DiskTier] | None = None
        self._refreshing: Future[None] | None = None
        self._complained = self._refreshed = float("-inf")
        #: Calls that failed, whatever the reason, and what the last of them said.
        self.failures = 0
        self.last_failure = ""

    @property
    def stats(self) -> TierStats | None:
        """What the tier holds and has done; None where none is open."""
        tier = self._tier
        try:
            return None if tier is None else tier.stats()
        except InferAccelError:
            return None

    def load(self, names: Sequence[str], pages: Sequence[_Page]) -> list[bool]:
        """Fill pages, all of one size; returns which were there. The others are left as they may be."""
        if not names:
            return []
        places = _places_of(pages)
        found = self._try(lambda tier: self._load(tier, _keys(names), pages, places), pages[0].nbytes)
        return [False] * len(names) if found is None else found

    def store(self, names: Sequence[str], pages: Sequence[_Page]) -> bool:
        """Store pages, all of one size; returns whether all are there now."""
        if not names:
            return True
        places = _places_of(pages)
        return self._try(lambda tier: _stored(tier, _keys(names), pages, places), pages[0].nbytes) or False

    def present(self, names: Sequence[str]) -> list[bool]:
        """Return which pages are there, also those that other processes have stored."""
        tier = self._tier
        found = None
        if names and tier is not None:
            found = self._try(lambda tier: self._present(tier, names).tolist(), tier.page_bytes)
        return [False] * len(names) if found is None else found

    def leading(self, names: Sequence[str]) -> int:
        """Return how many leading pages are there, also those that other processes have stored."""
        return [*self.present(names), False].index(False)

    def open(self, page_bytes: int) -> bool:
        """Open the directory before the first page; returns whether that went well."""
        return self._try(lambda _: True, page_bytes) or False

    def close(self) -> None:
        """Make what was stored durable, and close the directory for good. A second call does nothing.

        What is asked for afterwards is a miss, also by threads that were waiting for the directory to open.
        """
        with self._lock:
            self._is_closed = True
            tier, opening, readers = self._tier, self._opening, self._readers
            self._tier = self._opening = self._readers = None
        if readers is not None:
            readers.shutdown()
        if tier is not None:
            tier.close()
        elif opening is not None:
            # Whoever waits for it finds that these files are closed.
            opening.add_done_callback(_close_what_came)

    def _load(
        self, tier: DiskTier, keys: list[bytes], pages: Sequence[_Page], places: list[int]
    ) -> list[bool]:
        runs = list(_runs(pages, places, tier.page_bytes))
        if len(runs) == 1:
            found: list[bool] = tier.load(keys, runs[0][2]).tolist()
            return found
        if tier.page_bytes < _ALONE:
            gathered = np.empty((len(keys), tier.page_bytes), np.uint8)
            found = tier.load(keys, gathered).tolist()
            for place, is_there in enumerate(found):
                if is_there:
                    _bytes_of(pages[place])[:] = gathered[place]
            return found
        return self._load_runs(tier, keys, runs)

    def _load_runs(self, tier: DiskTier, keys: list[bytes], runs: list[_Run]) -> list[bool]:
        """Load what lies apart: each thread takes the next run, this one too, which costs less than a task for each."""
        found = [False] * len(keys)
        waiting = iter(runs)
        workers = min(_READERS, len(runs))
        threads = max(1, (os.cpu_count() or 1) // workers)

        def work() -> None:
            for first, end, rows in waiting:
                found[first:end] = tier.load(keys[first:end], rows, num_threads=threads).tolist()

        with self._lock:
            self._refuse_if_closed()
            if self._readers is None:
                self._readers = ThreadPoolExecutor(_READERS, "infer-accel-read")
            others = [self._readers.submit(work) for _ in range(workers - 1)]
        try:
            work()
        finally:
            # They write to the caller's memory: nobody leaves before all are done.
            wait(others)
        for other in others:
            other.result()
        return found

    def _present(self, tier: DiskTier, names: Sequence[str]) -> npt.NDArray[np.bool_]:
        keys = _keys(names)
        present = tier.contains(keys)
        now = time.monotonic()
        if not present.all() and now > self._refreshed + _FRESH:
            self._refreshed = now
            if self._refreshing is None or self._refreshing.done():
                self._refreshing = _beside(tier.refresh)
                self._refreshing.result(self._deadline)
            present = tier.contains(keys)
        return present

    def _try(self, work: Callable[[DiskTier], Any], page_bytes: int) -> Any:  # noqa: ANN401 - what `work` returns
        try:
            return work(self._tier or self._opened(page_bytes))
        except (InferAccelError, OSError) as error:
            self.failures += 1
            self.last_failure = str(error) or "the device did not answer in time"
            now = time.monotonic()
            if now > self._complained + _QUIET:
                self._complained = now
                _log.warning("pages on disk are left out: %s", self.last_failure)
            return None

    @property
    def _deadline(self) -> float | None:
        seconds: float | None = self._options.get("deadline", _DEADLINE)
        return seconds

    def _opened(self, page_bytes: int) -> DiskTier:
        """Open the tier in a thread of its own: a device that hangs holds up nobody for ever."""
        with self._lock:
            self._refuse_if_closed()
            if self._tier is not None:
                return self._tier
            opening = self._opening = self._opening or _beside(lambda: self._open(page_bytes))
        wait([opening], self._deadline)
        # What came is kept in the same moment in which it is no longer being opened: `close` finds it as one or the
        # other, or has closed these files before, and then closes it itself.
        with self._lock:
            self._refuse_if_closed()
            if opening.done() and self._opening is opening:
                self._opening = None
                if opening.exception() is None:
                    self._tier = opening.result()
        return opening.result(0)

    def _refuse_if_closed(self) -> None:
        if self._is_closed:
            raise StorageError("these files are closed", code="storage.closed")

    def _open(self, page_bytes: int) -> DiskTier:
        facts = json.dumps(self._facts | {"page_bytes": page_bytes}, sort_keys=True, default=str).encode()
        fingerprint = hashlib.sha256(facts).digest()
        options = dict(self._options)
        path = Path(options.pop("root_dir")) / fingerprint.hex()[:32]
        path.parent.mkdir(parents=True, exist_ok=True)
        return DiskTier(path, page_bytes=page_bytes, fingerprint=fingerprint, **options)


def _beside(work: Callable[[], Any]) -> Future[Any]:
    """Start work that may never end, in a thread that the end of the process does not wait for."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            future.set_exception(error)

    threading.Thread(target=run, name="infer-accel-open", daemon=True).start()
    return future


def _close_what_came(opening: Future[DiskTier]) -> None:
    if opening.exception() is None:
        opening.result().close()


def _keys(names: Sequence[str]) -> list[bytes]:
    return [hashlib.sha256(name.encode()).digest() for name in names]


def _bytes_of(page: _Page) -> npt.NDArray[np.uint8]:
    """Return a page's own memory."""
    if isinstance(page, np.ndarray):
        return page
    flat: npt.NDArray[np.uint8] = page.detach().view(-1).view(torch.uint8).numpy()
    return flat


def _places_of(pages: Sequence[_Page]) -> list[int]:
    """Return where each page begins, which has to lie in one piece on the host."""
    places = []
    for page in pages:
        if isinstance(page, np.ndarray):
            places.append(page.__array_interface__["data"][0])
        elif page.is_cpu and page.is_contiguous():
            places.append(page.data_ptr())
        else:
            message = f"a page of {page.device} with strides {page.stride()} came; it must be the host's, in one piece"
            raise ArgumentError(message, code="argument.connector_option")
    return places


def _stored(tier: DiskTier, keys: list[bytes], pages: Sequence[_Page], places: list[int]) -> bool:
    runs = list(_runs(pages, places, tier.page_bytes))
    if len(runs) > 1 and tier.page_bytes < _ALONE:
        runs = [(0, len(keys), np.stack([_bytes_of(page) for page in pages]))]
    for first, end, rows in runs:
        tier.store(keys[first:end], rows)
    return True


def _runs(pages: Sequence[_Page], places: list[int], size: int) -> Iterator[_Run]:
    """Find pages that follow each other in memory, or lie at one distance: first, end, and the pages as one array."""
    sizes = {page.nbytes for page in pages}
    if len(sizes) > 1:
        message = f"pages of {sorted(sizes)} bytes came in one call; all must be of one size"
        raise ArgumentError(message, code="argument.connector_option")
    first = 0
    while first < len(places):
        end = first + 1
        step = places[end] - places[first] if end < len(places) else size
        if step >= size:
            while end < len(places) and places[end] - places[end - 1] == step:
                end += 1
        shape, strides = (end - first, size), (max(step, size), 1)
        yield first, end, np.lib.stride_tricks.as_strided(_bytes_of(pages[first]), shape, strides)
        first = end
