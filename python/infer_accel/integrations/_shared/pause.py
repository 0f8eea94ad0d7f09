"""Whether an engine that failed is asked again yet."""

from __future__ import annotations

import threading
import time

__all__ = ["Pause"]


class Pause:
    """An engine that was given up is probed by one caller at a time, not sooner than it is worth.

    Parameters
    ----------
    retry_seconds
        Between giving it up and a probe, and between probes.
    """

    def __init__(self, retry_seconds: float) -> None:
        self._retry_seconds = retry_seconds
        self._lock = threading.Lock()
        self._paused = False
        self._probing = False
        self._retry_at = 0.0

    @property
    def paused(self) -> bool:
        """Whether the engine is given up."""
        return self._paused

    def begin(self) -> bool:
        """Give the engine up; returns whether it was not before."""
        with self._lock:
            began, self._paused = not self._paused, True
            self._retry_at = time.monotonic() + self._retry_seconds
            return began

    def may_probe(self) -> bool:
        """Return whether the caller is to probe now; who does must say :meth:`probed`."""
        with self._lock:
            if not self._paused or self._probing or time.monotonic() < self._retry_at:
                return False
            self._probing = True
            return True

    def probed(self, *, answered: bool) -> None:
        """Say what a probe came to."""
        with self._lock:
            self._probing = False
            self._paused = not answered
            self._retry_at = time.monotonic() + self._retry_seconds
