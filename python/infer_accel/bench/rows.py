"""A row of the table, and the document that `--json` writes and `--compare` reads."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from infer_accel._files import write_text

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from infer_accel.bench.harness import Case, Measured

__all__ = ["InvalidRecordError", "Json", "Row", "best_ratio", "read_rows", "row_of", "write_document"]

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"
Better = Literal["higher", "lower"]


class InvalidRecordError(Exception):
    """A record that cannot be compared with: unreadable, malformed, or of something else."""


@dataclass(frozen=True, slots=True)
class Row:
    """One validated measurement.

    `ratio` is best rival ÷ ours, turned so that above 1 is better; None without a rival. `limit` is the
    machine's own ceiling in the row's unit and `efficiency` the share of it that is reached; None where no
    limit is known.
    """

    part: str
    case: str
    unit: str
    better: Better
    ours: float
    peers: dict[str, float]
    limit: float | None = None
    efficiency: float | None = None
    #: Of the run that measured it; they stand in the record of the machine, not in the row.
    limit_name: str = field(default="", compare=False)
    rounds: int = field(default=0, compare=False)
    spread: float = field(default=0.0, compare=False)

    @property
    def key(self) -> str:
        """The name under which rows of two runs are the same row."""
        return f"{self.part}/{self.case}"

    @property
    def ratio(self) -> float | None:
        """How many times better than the best rival; None without one."""
        return best_ratio(self, self.peers)

    def ranked_peers(self) -> list[tuple[str, float]]:
        """Return the rivals with their values, the best first."""
        return sorted(self.peers.items(), key=lambda peer: peer[1], reverse=self.better == "higher")

    def to_json(self) -> dict[str, Json]:
        """Return the row as it stands in a record."""
        return {
            "part": self.part,
            "case": self.case,
            "unit": self.unit,
            "better": self.better,
            "ours": _short(self.ours),
            "peers": {name: _short(value) for name, value in self.peers.items()},
            "ratio": _short(self.ratio),
            "limit": _short(self.limit),
            "efficiency": _short(self.efficiency),
            "validated": True,
        }


def best_ratio(row: Row, names: Mapping[str, float] | set[str]) -> float | None:
    """Return ours against the best of the rivals `names`, above 1 where ours is better."""
    values = [value for name, value in row.peers.items() if name in names]
    if not values:
        return None
    return row.ours / max(values) if row.better == "higher" else min(values) / row.ours


def row_of(part: str, case: Case, measured: Measured) -> Row:
    """Turn the medians of a case into its row."""
    ours, *peers = [case.ours, *(peer for peer in case.peers if peer.name in measured.seconds)]
    seconds = measured.seconds[ours.name]
    value = case.measure.value
    return Row(
        part=part,
        case=case.name,
        unit=case.measure.unit,
        better=case.measure.better,
        ours=value(ours.work or case.work, seconds),
        peers={peer.name: value(peer.work or case.work, measured.seconds[peer.name]) for peer in peers},
        limit=value(case.work, case.floor.seconds) if case.floor else None,
        efficiency=case.floor.seconds / seconds if case.floor else None,
        limit_name=case.floor.name if case.floor else "",
        rounds=measured.rounds,
        spread=measured.spread,
    )


def write_document(path: str | os.PathLike[str], machine: Mapping[str, Json], rows: Sequence[Row]) -> None:
    """Write the record of a run: whole, or not at all."""
    document = {"machine": machine, "rows": [row.to_json() for row in rows]}
    write_text(path, json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_rows(path: str | os.PathLike[str]) -> list[Row]:
    """Read the rows of a record that :func:`write_document` wrote.

    Raises
    ------
    InvalidRecordError
        The file cannot be read, is not JSON, or is not such a record; the text says which and where.
    """
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidRecordError(f"cannot read the baseline {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InvalidRecordError(f"the baseline {path} is not JSON: {error}") from error
    rows = document.get("rows") if isinstance(document, dict) else None
    if not isinstance(rows, list):
        raise InvalidRecordError(f'the baseline {path} has no list "rows": was it written by `bench --json`?')
    return [_parse(item, f"{path}, row {index}") for index, item in enumerate(rows)]


def _parse(item: object, where: str) -> Row:
    if not isinstance(item, dict):
        raise InvalidRecordError(f"{where}: expected an object, got {type(item).__name__}")
    better = item.get("better")
    if better != "higher" and better != "lower":  # noqa: PLR1714 - the type checker follows this form
        raise InvalidRecordError(f'{where}: "better" must be "higher" or "lower", got {better!r}')
    peers = item.get("peers")
    if not isinstance(peers, dict):
        raise InvalidRecordError(f'{where}: "peers" must be an object, got {peers!r}')
    return Row(
        part=_text(item, "part", where),
        case=_text(item, "case", where),
        unit=_text(item, "unit", where),
        better=better,
        ours=_number(item, "ours", where),
        peers={name: _number(peers, name, where) for name in peers},
        limit=_number(item, "limit", where) if item.get("limit") is not None else None,
        efficiency=_number(item, "efficiency", where) if item.get("efficiency") is not None else None,
    )


def _text(item: dict[str, object], name: str, where: str) -> str:
    value = item.get(name)
    if not isinstance(value, str):
        raise InvalidRecordError(f'{where}: "{name}" must be a text, got {value!r}')
    return value


def _number(item: dict[str, object], name: str, where: str) -> float:
    value = item.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise InvalidRecordError(f'{where}: "{name}" must be a positive number, got {value!r}')
    return float(value)


def _short(value: float | None) -> float | None:
    """Return six significant digits: more would claim a precision that no clock here has."""
    return None if value is None else float(f"{value:.6g}")
