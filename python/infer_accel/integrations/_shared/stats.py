"""What a shared tier has done."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import ClassVar

__all__ = ["Counts", "SharedTierStats"]


@dataclass(frozen=True, slots=True)
class SharedTierStats:
    """What a shared tier has done since it was opened, in this process. What it holds is the engine's to tell."""

    #: The fields that only ever grow.
    COUNTERS: ClassVar[frozenset[str]]

    #: 1 while the engine is asked; 0 while calls are answered without it, because it failed or was late.
    up: int = 1
    #: Pages asked for and delivered.
    hits: int = 0
    #: Pages asked for and not delivered, whatever the reason.
    misses: int = 0
    #: Pages that were not what was stored: each a miss, and removed.
    corrupt_pages: int = 0
    #: Pages of another layout, model or key that lay under a name of ours: each a miss, and removed.
    refused_pages: int = 0
    #: Pages that did not come in time: each a miss.
    late_pages: int = 0
    #: Pages that were not asked for, because the engine was down: each a miss.
    skipped_pages: int = 0
    #: Calls of the engine that failed while pages were read.
    failed_reads: int = 0
    #: Pages stored.
    stored_pages: int = 0
    #: Pages that came and were there already.
    known_pages: int = 0
    #: Pages that came and were not stored, whatever the reason.
    unstored_pages: int = 0
    #: Stores that the engine had no room for.
    full_writes: int = 0
    #: Stores that the engine did not answer in time.
    late_writes: int = 0
    #: Stores that failed in another way.
    failed_writes: int = 0
    #: Times that the engine was given up for a while.
    pauses: int = 0
    #: Bytes of pages delivered.
    loaded_bytes: int = 0
    #: Bytes written, headers included.
    written_bytes: int = 0
    #: Calls of `load`.
    loads: int = 0
    #: Seconds that they took.
    load_seconds: float = 0.0
    #: Calls of `store`.
    stores: int = 0
    #: Seconds that they took.
    store_seconds: float = 0.0


SharedTierStats.COUNTERS = frozenset(SharedTierStats.__slots__) - {"up"}


class Counts:
    """The numbers of a :class:`SharedTierStats`, while they grow. May be shared by threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[str, float] = {}

    def add(self, **amounts: float) -> None:
        """Add to fields."""
        with self._lock:
            for name, amount in amounts.items():
                self._values[name] = self._values.get(name, 0) + amount

    def stats(self, *, up: bool) -> SharedTierStats:
        """Return all of them."""
        with self._lock:
            return SharedTierStats(up=int(up), **self._values)  # type: ignore[arg-type]  # whole numbers stay whole
