"""Threads that may get stuck, and callers that must not."""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Job", "Workers"]

_Answer = TypeVar("_Answer")


class Job(Generic[_Answer]):
    """A call that a thread makes, and what came of it."""

    def __init__(self, call: Callable[[], _Answer]) -> None:
        self._call = call
        self._done = threading.Event()
        self._abandoned = False
        self._answer: _Answer | None = None
        self._error: Exception | None = None

    def abandon(self) -> None:
        """Say that nobody waits any more: what has not begun is not done."""
        self._abandoned = True

    def wait(self, seconds: float | None) -> bool:
        """Return whether the call ended within that time."""
        return self._done.wait(seconds)

    def answer(self) -> _Answer:
        """Return what the call returned, or raise what it raised. To be asked when it has ended."""
        if self._error is not None:
            raise self._error
        return self._answer  # type: ignore[return-value]  # None only where the call returns it

    def run(self) -> None:
        """Make the call, on the thread that is here."""
        if not self._abandoned:
            try:
                self._answer = self._call()
            except Exception as error:  # noqa: BLE001 - the caller's to judge
                self._error = error
            except BaseException as error:  # noqa: BLE001 - a panic of native code must not end the thread
                self._error = RuntimeError(f"{type(error).__name__}: {error}")
        self._done.set()


class Workers:
    """A few threads behind a queue of bounded length; they end with the process, stuck or not.

    Parameters
    ----------
    count
        Threads, started at the first job.
    most_waiting
        Jobs that wait for a thread.
    """

    def __init__(self, count: int, most_waiting: int) -> None:
        self._count = count
        self._jobs: queue.Queue[Job[Any] | None] = queue.Queue(most_waiting)
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._closed = False

    def submit(self, call: Callable[[], _Answer], wait: float | None) -> Job[_Answer] | None:
        """Hand a call to a thread; None where no place came free within `wait` seconds."""
        if not self._start():
            return None
        job = Job(call)
        try:
            self._jobs.put(job, block=wait is None or wait > 0, timeout=wait)
        except queue.Full:
            return None
        return job

    def close(self, seconds: float) -> None:
        """End the threads; those that are stuck after so many seconds are left to themselves."""
        with self._lock:
            threads, self._threads, self._closed = self._threads, [], True
        for _ in threads:
            try:
                self._jobs.put(None, timeout=seconds)
            except queue.Full:
                return
        for thread in threads:
            thread.join(seconds)

    def _start(self) -> bool:
        with self._lock:
            if self._closed:
                return False
            if not self._threads:
                self._threads = [
                    threading.Thread(target=self._work, name=f"infer-accel-shared-{number}", daemon=True)
                    for number in range(self._count)
                ]
                for thread in self._threads:
                    thread.start()
            return True

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job.run()
