"""What a connector has done: numbers for metrics, kept by the threads of both its sides."""

from __future__ import annotations

import dataclasses
import threading
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class ConnectorStats:
    """What one side of a connector has done since it was made; the other side's fields are 0."""

    #: The fields that only ever grow.
    COUNTERS: ClassVar[frozenset[str]]

    #: Blocks of prompts that were asked for: those that the engine did not have itself. A request that waits for
    #: room in the engine is asked for again, and counts again.
    queried_blocks: int = 0
    #: Blocks among them that the tier had.
    matched_blocks: int = 0
    #: Requests that were not looked up: the tier was down, or paused because it was late.
    skipped_lookups: int = 0
    #: Times that look-ups were paused because a load took longer than its deadline.
    pauses: int = 0
    #: Loads of requests.
    loads: int = 0
    #: Pages that were loaded into the engine.
    loaded_pages: int = 0
    #: Pages that were matched and not loaded, whatever the reason: the engine computed them again.
    failed_pages: int = 0
    #: Bytes loaded.
    loaded_bytes: int = 0
    #: Seconds that loads took, waiting included.
    load_seconds: float = 0.0
    #: Pages that the tier took.
    saved_pages: int = 0
    #: Pages that the tier did not take: it is too slow, or down.
    refused_pages: int = 0
    #: Pages that the tier took and the disk did not: they are gone with the process.
    unwritten_pages: int = 0
    #: Bytes saved.
    saved_bytes: int = 0
    #: Seconds that steps of the engine were held up by saving.
    save_seconds: float = 0.0
    #: Calls of the tier that failed.
    tier_errors: int = 0
    #: Pages whose check failed: none of them reached the engine.
    corrupt_pages: int = 0
    #: Pages that the device did not deliver in time.
    late_pages: int = 0


ConnectorStats.COUNTERS = frozenset(field.name for field in dataclasses.fields(ConnectorStats))


class Counters:
    """The numbers of a :class:`ConnectorStats`, while they grow. May be shared by threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[str, float] = {}
        self._taken: dict[str, float] = {}

    def add(self, **amounts: float) -> None:
        """Add to fields."""
        with self._lock:
            for name, amount in amounts.items():
                self._values[name] = self._values.get(name, 0) + amount

    def set(self, **totals: float) -> None:
        """Set fields to totals that somebody else counts."""
        with self._lock:
            self._values.update(totals)

    def stats(self) -> ConnectorStats:
        """Return all of them."""
        with self._lock:
            return ConnectorStats(**self._values)  # type: ignore[arg-type]  # whole numbers stay whole

    def take(self) -> dict[str, float]:
        """Return what was added since the last call, without zeros."""
        with self._lock:
            values, before = dict(self._values), self._taken
            self._taken = values
        changes = {name: value - before.get(name, 0) for name, value in values.items()}
        return {name: change for name, change in changes.items() if change}
