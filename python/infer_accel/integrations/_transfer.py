"""Jobs that move pages between an engine's host cache and a disk tier: submitted, polled, drained."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from infer_accel.errors import InferAccelError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    from infer_accel.kvcache import DiskTier

__all__ = ["Transfer", "TransferQueue", "TransferResult"]

_log = logging.getLogger("infer_accel")


@dataclass(frozen=True, slots=True)
class Transfer:
    """Pages to move: key `i` names row `rows[i]` of the host's pages."""

    job_id: int
    keys: Sequence[bytes]
    rows: npt.NDArray[np.int64]
    is_load: bool


@dataclass(frozen=True, slots=True)
class TransferResult:
    """What became of a job; of a load, `done` says which pages arrived."""

    job: Transfer
    done: npt.NDArray[np.bool_]
    seconds: float

    @property
    def success(self) -> bool:
        """Whether all of it was done."""
        return bool(self.done.all())


class TransferQueue:
    """Threads that run jobs between some pages in memory and a tier.

    Stores have a thread of their own, so a device that is slow to write delays no load. Submitting never waits: what
    comes when `max_jobs` are waiting fails at once, which for a cache is a page less.

    Parameters
    ----------
    tier
        Where pages go. It is the caller's, and is not closed here.
    pages
        uint8 of shape ``[n, page_bytes]``, contiguous: the host's pages, which jobs read and write in place.
    load_threads
        Loads that run at once.
    max_jobs
        Most jobs that wait, of each kind.
    durable
        Whether a store is done only when the device has it.
    """

    def __init__(
        self,
        tier: DiskTier,
        pages: npt.NDArray[np.uint8],
        *,
        load_threads: int = 2,
        max_jobs: int = 1024,
        durable: bool = False,
    ) -> None:
        self._tier, self._pages, self._durable, self._max_jobs = tier, pages, durable, max_jobs
        self._changed = threading.Condition()
        self._waiting: dict[bool, deque[Transfer]] = {True: deque(), False: deque()}
        self._finished: deque[TransferResult] = deque()
        self._open_jobs = 0
        self._refresh = False
        self._stopping = False
        names = ["store", *(f"load-{number}" for number in range(load_threads))]
        self._threads = [
            threading.Thread(
                target=self._work, args=(name != "store",), name=f"infer-accel-{name}", daemon=True
            )
            for name in names
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, job: Transfer) -> None:
        """Queue a job. Its result comes from :meth:`finished`, also where there was no place for it."""
        with self._changed:
            queue = self._waiting[job.is_load]
            if self._stopping or len(queue) >= self._max_jobs:
                self._finished.append(_failed(job))
                return
            queue.append(job)
            self._open_jobs += 1
            self._changed.notify_all()

    def refresh(self) -> None:
        """Ask a thread to look for what other processes have stored."""
        with self._changed:
            self._refresh = True
            self._changed.notify_all()

    def finished(self) -> list[TransferResult]:
        """Return what has ended since the last call."""
        results = []
        while self._finished:
            results.append(self._finished.popleft())
        return results

    def drain(self) -> None:
        """Return when no job is waiting or running."""
        with self._changed:
            self._changed.wait_for(lambda: self._open_jobs == 0)

    def shutdown(self) -> None:
        """End the threads: running jobs end, waiting ones fail. A second call does nothing."""
        with self._changed:
            self._stopping = True
            for queue in self._waiting.values():
                self._finished.extend(map(_failed, queue))
                self._open_jobs -= len(queue)
                queue.clear()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self, loads: bool) -> None:  # noqa: FBT001 - a thread's argument
        queue = self._waiting[loads]
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or queue or (loads and self._refresh))
                if self._stopping:
                    return
                job = queue.popleft() if queue else None
                if job is None:
                    self._refresh = False
            if job is None:
                self._look_around()
                continue
            start = time.monotonic()
            done = self._run(job)
            result = TransferResult(job, done, time.monotonic() - start)
            with self._changed:
                self._finished.append(result)
                self._open_jobs -= 1
                self._changed.notify_all()

    def _look_around(self) -> None:
        try:
            self._tier.refresh()
        except InferAccelError as error:
            _log.warning("looking for pages of other processes failed: %s", error)

    def _run(self, job: Transfer) -> npt.NDArray[np.bool_]:
        """Do a job; a thread of this queue outlives whatever goes wrong with one."""
        done = np.zeros(len(job.keys), np.bool_)
        if len(job.rows) != len(job.keys) or np.any((job.rows < 0) | (job.rows >= len(self._pages))):
            _log.error("job %s names rows that are not among the %s pages", job.job_id, len(self._pages))
            return done if len(done) else np.zeros(1, np.bool_)
        try:
            for part, rows in _runs(job.rows):
                keys = job.keys[part]
                if job.is_load:
                    done[part] = self._tier.load(keys, self._pages[rows])
                else:
                    self._tier.store(keys, self._pages[rows])
            if not job.is_load:
                if self._durable:
                    self._tier.flush()
                done[:] = True
        except Exception as error:  # noqa: BLE001 - see above
            _log.warning("job %s (%s) failed: %s", job.job_id, "load" if job.is_load else "store", error)
        return done


def _failed(job: Transfer) -> TransferResult:
    return TransferResult(job, np.zeros(max(len(job.keys), 1), np.bool_), 0.0)


def _runs(rows: npt.NDArray[np.int64]) -> Iterator[tuple[slice, slice]]:
    """Yield where rows follow each other: the part of the job, and the rows."""
    begins = np.flatnonzero(np.diff(rows, prepend=rows[:1] - 2) != 1)
    for begin, end in zip(begins.tolist(), [*begins[1:].tolist(), len(rows)], strict=True):
        first = int(rows[begin])
        yield slice(begin, end), slice(first, first + end - begin)
