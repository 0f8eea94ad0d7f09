"""Rows before they are built: what they are called, and how much of the device's memory they need."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from infer_accel.bench.harness import Planned

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from infer_accel.bench.cuda.device import Gpu
    from infer_accel.bench.harness import Bench, Case

__all__ = ["DeviceRow", "expected_seconds", "one_by_one"]

#: Of a row beside its timed calls: input, oracle, two checks of ours and one of each rival, compiling, capturing.
_SECONDS_BESIDE = 4.0


@dataclass(frozen=True, slots=True)
class DeviceRow:
    """A row by its name, what it allocates on the device at once (rivals and checks included), and how it is built."""

    name: str
    device_bytes: int
    build: Callable[[], Case]


def one_by_one(rows: Iterable[DeviceRow], gpu: Gpu, last: frozenset[str]) -> Iterator[Planned]:
    """Yield rows for the harness; what one of them held is given back before the next is built.

    Rows named in `last` come at the end: they failed in an earlier run, and may take the device with them again.
    """
    for row in sorted(rows, key=lambda row: row.name in last):
        gpu.release()
        yield Planned(row.name, partial(_build, row, gpu))
    gpu.release()


def _build(row: DeviceRow, gpu: Gpu) -> Case:
    gpu.require_room(row.device_bytes)
    return row.build()


def expected_seconds(rows: int, bench: Bench) -> float:
    """Return about how long so many rows take."""
    return rows * (bench.seconds_a_case + _SECONDS_BESIDE)
