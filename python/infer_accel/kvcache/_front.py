"""Host memory in front of a tier that the native core does not know: one behind a network, for one."""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict, deque
from typing import TYPE_CHECKING

import numpy as np

from infer_accel import _backend
from infer_accel._reference.kvcache.arguments import page_keys, page_rows
from infer_accel.errors import ArgumentError, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from infer_accel._typing import Tensor
    from infer_accel.kvcache._protocol import Tier

#: About as many bytes are handed to the tier at once.
_BATCH_BYTES = 8 << 20
_MAX_HOST_PAGES = 1 << 30
_COUNTERS = (
    "host_hits",
    "disk_hits",
    "misses",
    "stored_pages",
    "refused_pages",
    "written_pages",
    "failed_writes",
    "prefetched_pages",
)


class HostFront:
    """The calls of the native ``TieredCache``, for any :class:`Tier`.

    One lock guards the books and the copies between the caller and host memory; the tier is asked without it.
    """

    def __init__(
        self,
        tier: Tier,
        *,
        host_pages: int,
        queued_writes: int | None,
        queued_prefetches: int,
        store_deadline: float | None,
    ) -> None:
        _check_counts(host_pages, queued_writes, queued_prefetches, store_deadline)
        tier.refresh()
        self._tier = tier
        self._pool = _backend.load("kvcache").HostPool(host_pages, tier.page_bytes, prefault=False)
        self._pages: npt.NDArray[np.uint8] = self._pool.pages()
        #: The slot of each key, least recently used first.
        self._slots: OrderedDict[bytes, int] = OrderedDict()
        self._free = list(range(host_pages))
        self._unwritten: deque[bytes] = deque()
        #: Keys that wait to be written or are being written: they stay in host memory.
        self._dirty: set[bytes] = set()
        #: Keys that the tier did not take.
        self._failed: set[bytes] = set()
        self._failure: StorageError | None = None
        self._wanted: deque[bytes] = deque()
        self._wanted_keys: set[bytes] = set()
        self._most_writes = host_pages // 2 if queued_writes is None else queued_writes
        self._most_prefetches = queued_prefetches
        self._store_deadline = store_deadline
        self._counts = dict.fromkeys(_COUNTERS, 0)
        self._changed = threading.Condition()
        self._process = os.getpid()
        self._closed = False
        self._ending = False
        self._batch = max(1, _BATCH_BYTES // tier.page_bytes)
        self._threads = [self._thread("write", self._write_back), self._thread("prefetch", self._bring)]

    def store(self, keys: Tensor | Sequence[bytes], pages: Tensor) -> npt.NDArray[np.bool_]:
        names = self._names(keys)
        rows = page_rows(pages, len(names), self._tier.page_bytes)
        ends_at = None if self._store_deadline is None else time.monotonic() + self._store_deadline
        taken = np.zeros(len(names), np.bool_)
        with self._changed:
            for number, name in enumerate(names):
                taken[number] = self._take(name, rows[number], ends_at)
            self._counts["stored_pages"] += int(taken.sum())
            self._counts["refused_pages"] += int((~taken).sum())
        return taken

    def load(
        self, keys: Tensor | Sequence[bytes], out: Tensor, *, num_threads: int | None = None
    ) -> npt.NDArray[np.bool_]:
        names = self._names(keys)
        rows = page_rows(out, len(names), self._tier.page_bytes, writable=True)
        found = np.zeros(len(names), np.bool_)
        with self._changed:
            for number, name in enumerate(names):
                slot = self._slots.get(name)
                if slot is not None:
                    self._slots.move_to_end(name)
                    rows[number, :] = self._pages[slot]
                    found[number] = True
            self._counts["host_hits"] += int(found.sum())
        missing = np.flatnonzero(~found)
        for start in range(0, len(missing), self._batch):
            part = missing[start : start + self._batch]
            brought = np.empty((len(part), self._tier.page_bytes), np.uint8)
            there = self._tier.load([names[number] for number in part], brought, num_threads=num_threads)
            rows[part[there]] = brought[there]
            found[part] = there
            with self._changed:
                for number, page, hit in zip(part, brought, there, strict=True):
                    if hit:
                        self._keep(names[number], page)
                self._counts["disk_hits"] += int(there.sum())
                self._counts["misses"] += int((~there).sum())
        return found

    def prefetch(self, keys: Tensor | Sequence[bytes]) -> int:
        names = self._names(keys)
        asked = 0
        # Whether the tier has them is not asked here: that would be a journey, and this returns at once.
        with self._changed:
            for name in names:
                if name in self._slots or name in self._wanted_keys:
                    continue
                if len(self._wanted_keys) >= self._most_prefetches:
                    break
                self._wanted.append(name)
                self._wanted_keys.add(name)
                asked += 1
            self._changed.notify_all()
        return asked

    def wait_for_prefetches(self) -> None:
        self._refuse_if_gone()
        with self._changed:
            self._changed.wait_for(lambda: not self._wanted_keys or self._ending)

    def contains(self, keys: Tensor | Sequence[bytes]) -> npt.NDArray[np.bool_]:
        names = self._names(keys)
        with self._changed:
            found = np.array([name in self._slots for name in names], np.bool_)
        missing = np.flatnonzero(~found)
        if len(missing):
            found[missing] = self._tier.contains([names[number] for number in missing])
        return found

    def flush(self) -> None:
        self._refuse_if_gone()
        with self._changed:
            self._changed.wait_for(lambda: not self._dirty)
            failure, self._failure = self._failure, None
        self._tier.flush()
        if failure is not None:
            raise failure

    def stats(self) -> list[tuple[str, int]]:
        self._refuse_if_gone()
        with self._changed:
            held = {
                "host_pages": len(self._slots),
                "host_capacity": len(self._pages),
                "queued_writes": len(self._dirty),
                "queued_prefetches": len(self._wanted_keys),
            }
            return [*held.items(), *self._counts.items()]

    def close(self) -> None:
        if os.getpid() != self._process:
            self._refuse_if_gone()
        if self._closed:
            return
        try:
            self.flush()
        finally:
            with self._changed:
                self._closed = self._ending = True
                self._changed.notify_all()
            for thread in self._threads:
                thread.join()

    # Books, under the lock ----------------------------------------------------------------------------------

    def _take(self, name: bytes, page: npt.NDArray[np.uint8], ends_at: float | None) -> bool:
        """Take a page in and have it written; waits for a place. False where none came free in time."""

        def is_taken() -> bool:
            return name in self._dirty or (name in self._slots and name not in self._failed)

        def may_go_on() -> bool:
            return len(self._dirty) < self._most_writes or self._ending or is_taken()

        left = None if ends_at is None else max(0.0, ends_at - time.monotonic())
        if not self._changed.wait_for(may_go_on, left) or self._ending:
            return False
        if is_taken():  # perhaps by another thread, while this one waited
            self._slots.move_to_end(name)
            return True
        if not self._keep(name, page):
            return False
        self._failed.discard(name)
        self._dirty.add(name)
        self._unwritten.append(name)
        self._changed.notify_all()
        return True

    def _keep(self, name: bytes, page: npt.NDArray[np.uint8]) -> bool:
        """Have a page in host memory; False where all others are still to be written."""
        if name in self._slots:
            self._slots.move_to_end(name)
            return True
        if not self._free:
            victim = next((key for key in self._slots if key not in self._dirty), None)
            if victim is None:
                return False
            self._failed.discard(victim)
            self._free.append(self._slots.pop(victim))
        slot = self._free.pop()
        self._pages[slot] = page
        self._slots[name] = slot
        return True

    # Threads ------------------------------------------------------------------------------------------------

    def _thread(self, name: str, work: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=work, name=f"infer-accel-{name}", daemon=True)
        thread.start()
        return thread

    def _write_back(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._unwritten or self._ending)
                if not self._unwritten:
                    return
                names = [self._unwritten.popleft() for _ in range(min(self._batch, len(self._unwritten)))]
                # A dirty page keeps its slot, and a key its content: the copy can be made without the lock.
                slots = [self._slots[name] for name in names]
            failure = self._write(names, slots)
            with self._changed:
                self._dirty.difference_update(names)
                if failure is None:
                    self._counts["written_pages"] += len(names)
                else:
                    self._counts["failed_writes"] += len(names)
                    self._failed.update(names)
                    self._failure = failure
                self._changed.notify_all()

    def _write(self, names: list[bytes], slots: list[int]) -> StorageError | None:
        try:
            self._tier.store(names, self._pages[slots])
        except StorageError as error:
            return error
        except Exception as error:  # noqa: BLE001 - the thread must live, and flush must tell
            return StorageError(f"the tier failed: {type(error).__name__}: {error}", code="storage.io")
        return None

    def _bring(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._wanted or self._ending)
                if self._ending:
                    return
                names = [self._wanted.popleft() for _ in range(min(self._batch, len(self._wanted)))]
            pages = np.empty((len(names), self._tier.page_bytes), np.uint8)
            found = self._loaded(names, pages)
            with self._changed:
                for name, page, hit in zip(names, pages, found, strict=True):
                    if hit:
                        self._counts["prefetched_pages"] += self._keep(name, page)
                self._wanted_keys.difference_update(names)
                self._changed.notify_all()

    def _loaded(self, names: list[bytes], pages: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
        nothing = np.zeros(len(names), np.bool_)
        try:
            found = self._tier.load(names, pages)
        except Exception:  # noqa: BLE001 - closed meanwhile, or failed: the thread must live for those who wait
            return nothing
        return found if found.shape == nothing.shape else nothing

    # Checks -------------------------------------------------------------------------------------------------

    def _names(self, keys: Tensor | Sequence[bytes]) -> list[bytes]:
        self._refuse_if_gone()
        return page_keys(keys)

    def _refuse_if_gone(self) -> None:
        if os.getpid() != self._process:
            message = "this cache was made before a fork; make one in the child"
            raise StorageError(message, code="storage.forked")
        if self._closed:
            raise StorageError("this cache is closed", code="storage.closed")


def _check_counts(
    host_pages: int, queued_writes: int | None, queued_prefetches: int, store_deadline: float | None
) -> None:
    most = host_pages // 2
    writes = most if queued_writes is None else queued_writes
    if not 2 <= host_pages <= _MAX_HOST_PAGES or queued_prefetches < 1 or not 1 <= writes <= most:
        code = "argument.count" if min(host_pages, queued_prefetches, writes) < 0 else "argument.tier_count"
        message = (
            f"host_pages={host_pages}, queued_writes={queued_writes}, queued_prefetches={queued_prefetches} came; "
            "at least 2 host pages are needed, half of them may be queued, and one of each must"
        )
        raise ArgumentError(message, code=code)
    if store_deadline is not None and not 0 < store_deadline < float("inf"):
        raise ArgumentError(
            f"store_deadline={store_deadline} came; pass seconds above 0", code="argument.deadline"
        )
