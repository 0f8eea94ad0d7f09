"""Pages of an engine by names of its own, in a :class:`~infer_accel.kvcache.DiskTier` that is opened with the first."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from concurrent.futures import Future, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch

from infer_accel.errors import ArgumentError, InferAccelError, StorageError
from infer_accel.kvcache import DiskTier

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy.typing as npt

    from infer_accel.kvcache import TierStats

    #: A page of an engine's memory.
    _Page: TypeAlias = torch.Tensor | npt.NDArray[np.uint8]

_log = logging.getLogger("infer_accel")

#: Options of :class:`DiskTier` that may be given beside the two that must be.
_OPTIONAL = ("segment_bytes", "checksum", "compression", "deadline", "write_deadline")
#: Seconds between two lines of the log about a tier that fails, and between two looks at what others have stored.
_QUIET, _FRESH = 10.0, 0.5
#: Seconds that opening may take, where nothing else is said: as long as DiskTier waits for a load.
_DEADLINE = 5.0
#: Formats that the tier knows by name; a page of another is bytes to it.
_NAMED = frozenset({torch.bfloat16, torch.float16, torch.float32, torch.uint8, torch.int8})


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
        targets = _memory_of(pages)
        found = self._try(lambda tier: tier.load(_keys(names), targets).tolist(), pages[0].nbytes)
        return [False] * len(names) if found is None else found

    def store(self, names: Sequence[str], pages: Sequence[_Page]) -> bool:
        """Store pages, all of one size; returns whether all are there now."""
        if not names:
            return True
        sources = _memory_of(pages)
        stored = self._try(lambda tier: tier.store(_keys(names), sources), pages[0].nbytes)
        return stored is not None

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
            tier, opening = self._tier, self._opening
            self._tier = self._opening = None
        if tier is not None:
            tier.close()
        elif opening is not None:
            # Whoever waits for it finds that these files are closed.
            opening.add_done_callback(_close_what_came)

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


def _memory_of(pages: Sequence[_Page]) -> list[_Page]:
    """Return pages as the tier takes them: each has to lie in one piece on the host."""
    return [page if isinstance(page, np.ndarray) else _plain(page) for page in pages]


def _plain(page: torch.Tensor) -> torch.Tensor:
    if not (page.is_cpu and page.is_contiguous()):
        message = (
            f"a page of {page.device} came with strides {page.stride()}; it must be the host's, in one piece"
        )
        raise ArgumentError(message, code="argument.connector_option")
    # A view costs a microsecond, and there are many pages.
    if page.dtype in _NAMED and not page.requires_grad:
        return page
    return page.detach().view(-1).view(torch.uint8)
