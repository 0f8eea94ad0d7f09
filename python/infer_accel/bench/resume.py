"""A record that grows row by row, and a run that goes on where another was broken off."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from infer_accel.bench.machine import CHANGES, describe_machine, describe_run
from infer_accel.bench.rivals import installed_version
from infer_accel.bench.rows import InvalidRecordError, read_rows, write_document

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from infer_accel.bench.harness import Bench
    from infer_accel.bench.rows import Json, Row

__all__ = ["read_earlier", "read_failed", "record", "write_so_far"]

#: What must be the same for rows of two runs to stand in one record. Whether a row was measured by this code is
#: asked by the commit; a package that is installed has none, and its version speaks for it.
_SAME = (
    "infer_accel",
    "commit",
    "cpu",
    "cores",
    "simd",
    "threads",
    "memory_bytes",
    "system",
    "python",
    "numpy",
)

#: Of those, what says nothing about rows that a GPU was measured by: another machine of the same kind will do.
_OF_THE_HOST_ALONE = frozenset({"memory_bytes", "system", "simd", "threads"})


def read_earlier(path: Path, bench: Bench) -> list[Row]:
    """Return the rows of a record that this run may take over; `bench` gets the limits and rivals beside them.

    Parameters
    ----------
    path
        What :func:`write_so_far` wrote, or a complete record. Where no file is there are no rows.
    bench
        The run that goes on: of the same size as the one that was broken off.

    Raises
    ------
    InvalidRecordError
        The file is no record, or one of another machine, commit, size or version of a rival; the text says which.
    """
    if not path.exists():
        return []
    rows = read_rows(path)
    machine = json.loads(path.read_text(encoding="utf-8")).get("machine")
    if not isinstance(machine, dict):
        raise InvalidRecordError(f'{path} has no object "machine": was it written by `bench --json`?')
    _require_same(path, machine, bench)
    timing = _object(machine, "timing")
    try:
        limits = {name: float(value) for name, value in _object(machine, "limits").items()}
        rows = [_with_timing(row, timing[row.key]) for row in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidRecordError(f"{path}: its limits or timing are not those of a run: {error!r}") from error
    bench.limits.measured.update(limits)
    bench.rivals.versions.update(_object(machine, "rivals"))
    if bench.gpu is not None:
        # With what that run found out about it beside what it is.
        bench.gpu = _object(machine, "gpu") | bench.gpu
    return rows


def read_failed(path: Path) -> list[str]:
    """Return the keys of the rows that failed in the run that wrote a record; none where there is no record."""
    if not path.exists():
        return []
    machine = json.loads(path.read_text(encoding="utf-8")).get("machine")
    failed = machine.get("failed") if isinstance(machine, dict) else None
    return [key for key in failed if isinstance(key, str)] if isinstance(failed, list) else []


def record(bench: Bench, rows: Sequence[Row], *, complete: bool) -> dict[str, Json]:
    """Return the record of the machine and the run, which says whether every row is there."""
    return {**describe_run(bench, rows), "complete": complete}


def write_so_far(path: Path, bench: Bench, rows: Sequence[Row]) -> None:
    """Write the rows that there are: what a kill in the next minute must not take along."""
    write_document(path, record(bench, rows, complete=False), rows)


def _require_same(path: Path, machine: Mapping[str, Any], bench: Bench) -> None:
    # As JSON has it: what was written is compared with what would be.
    here = json.loads(json.dumps(describe_machine() | {"quick": bench.quick, "gpu": bench.gpu}))
    rivals = _object(machine, "rivals")
    gpu = here["gpu"] or {}
    names = [name for name in (*_SAME, "quick") if not (gpu and name in _OF_THE_HOST_ALONE)]
    before = _object(machine, "gpu")
    was = {name: machine.get(name) for name in names} | {"a GPU": bool(before)} | rivals
    was |= {f"the GPU's {name}": before.get(name) for name in gpu}
    now = {name: here[name] for name in names} | {"a GPU": bool(gpu)}
    now |= {name: installed_version(name) for name in rivals}
    now |= {f"the GPU's {name}": value for name, value in gpu.items()}
    for name, value in was.items():
        if value != now[name]:
            raise InvalidRecordError(
                f"{path} is of another run: {name} was {value!r} and is {now[name]!r}; "
                "write to a new file, or leave --resume out to begin again"
            )
    if str(here["commit"]).endswith(CHANGES):
        raise InvalidRecordError(
            f"{path} cannot be resumed from a working tree with changes: nothing tells whether they are those "
            "that its rows were measured with; commit them, or leave --resume out to begin again"
        )


def _object(machine: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = machine.get(name)
    return value if isinstance(value, dict) else {}


def _with_timing(row: Row, timing: Mapping[str, Any]) -> Row:
    return replace(
        row, rounds=int(timing["rounds"]), spread=float(timing["spread"]), limit_name=str(timing["limit"])
    )
