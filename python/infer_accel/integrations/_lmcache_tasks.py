"""Tasks of LMCache's adapters: begun in one thread, done in another, their ends told by a file descriptor."""

from __future__ import annotations

import itertools
import logging
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import TYPE_CHECKING, Generic, TypeVar

from lmcache.v1.platform import create_event_notifier

if TYPE_CHECKING:
    from collections.abc import Callable

_log = logging.getLogger("infer_accel")

_Result = TypeVar("_Result")


class Tasks(Generic[_Result]):
    """Tasks of one kind. May be shared by threads.

    Parameters
    ----------
    name
        Of the kind, for its threads.
    threads
        How many are worked on at once; the others wait in their order.
    """

    def __init__(self, name: str, threads: int) -> None:
        self._notifier = create_event_notifier()
        self._threads = ThreadPoolExecutor(threads, f"infer-accel-{name}")
        self._lock = Lock()
        self._numbers = itertools.count()
        self._results: dict[int, _Result] = {}
        self._waiting = 0
        self._is_closed = False

    @property
    def event_fd(self) -> int:
        """What is readable when a task is done."""
        number: int = self._notifier.fileno()
        return number

    @property
    def waiting(self) -> int:
        """How many are not done."""
        return self._waiting

    def submit(self, work: Callable[[], _Result], otherwise: _Result) -> int:
        """Begin a task, whose result is `otherwise` if it fails; returns its number."""
        with self._lock:
            number = next(self._numbers)
            self._waiting += 1
        try:
            self._threads.submit(self._run, number, work, otherwise)
        except RuntimeError:
            # Closed in the meantime.
            self._end(number, otherwise)
        return number

    def finished(self, result: _Result) -> int:
        """Return the number of a task that is done already."""
        with self._lock:
            number = next(self._numbers)
            self._waiting += 1
        self._end(number, result)
        return number

    def take(self, number: int) -> _Result | None:
        """Return a result, once; None where there is none yet."""
        with self._lock:
            return self._results.pop(number, None)

    def take_all(self) -> dict[int, _Result]:
        """Return all results, once."""
        with self._lock:
            results, self._results = self._results, {}
            return results

    def finish(self) -> None:
        """Begin nothing more, and wait until all that was begun is done."""
        self._threads.shutdown(wait=True)

    def close(self) -> None:
        """Close the file descriptor. A second call does nothing."""
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                self._notifier.close()

    def _run(self, number: int, work: Callable[[], _Result], otherwise: _Result) -> None:
        result = otherwise
        try:
            result = work()
        except Exception:  # noqa: BLE001 - logged
            # LMCache waits for every task, and counts one that fails as a miss.
            _log.exception("a task of LMCache failed, and counts as a miss")
        self._end(number, result)

    def _end(self, number: int, result: _Result) -> None:
        with self._lock:
            self._results[number] = result
            self._waiting -= 1
            if not self._is_closed:
                self._notifier.notify()
