"""Hold a run against an earlier one: which rows fell, by ratios and never by seconds.

Seconds belong to a machine and to its mood. The ratio to a rival timed in the same run belongs to the code;
so does, where no rival is at hand, the share of a limit that was measured in the same run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from infer_accel.bench.rows import best_ratio

if TYPE_CHECKING:
    from collections.abc import Sequence

    from infer_accel.bench.rows import Row

__all__ = ["Change", "Comparison", "compare_rows"]


@dataclass(frozen=True, slots=True)
class Change:
    """A row in both runs: its ratio to the same rivals, or its share of the limit, then and now."""

    key: str
    by: Literal["ratio", "share of the limit"]
    before: float
    now: float

    @property
    def factor(self) -> float:
        """Now ÷ before: below 1 is a fall."""
        return self.now / self.before


@dataclass(frozen=True, slots=True)
class Comparison:
    """Rows of two runs, matched by part and case."""

    changes: list[Change]
    #: In the baseline, but not in this run.
    missing: list[str]
    #: In both, but with no rival and no limit in common.
    incomparable: list[str]

    def fallen(self, tolerance: float) -> list[Change]:
        """Return the rows that lost more than the share `tolerance` of their ratio, the worst first."""
        fallen = [change for change in self.changes if change.factor < 1.0 - tolerance]
        return sorted(fallen, key=lambda change: change.factor)


def compare_rows(rows: Sequence[Row], baseline: Sequence[Row]) -> Comparison:
    """Match the rows of a run with those of an earlier one.

    A ratio is taken against the rivals that both runs had: a rival installed since then is no regression.
    """
    now = {row.key: row for row in rows}
    comparison = Comparison([], [], [])
    for before in baseline:
        row = now.get(before.key)
        if row is None:
            comparison.missing.append(before.key)
        elif (change := _change(before, row)) is None:
            comparison.incomparable.append(before.key)
        else:
            comparison.changes.append(change)
    return comparison


def _change(before: Row, now: Row) -> Change | None:
    shared = before.peers.keys() & now.peers.keys()
    ratio_before, ratio_now = best_ratio(before, shared), best_ratio(now, shared)
    if ratio_before is not None and ratio_now is not None:
        return Change(now.key, "ratio", ratio_before, ratio_now)
    if before.efficiency is not None and now.efficiency is not None:
        return Change(now.key, "share of the limit", before.efficiency, now.efficiency)
    return None
