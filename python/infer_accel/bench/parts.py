"""The parts that can be measured, in the order of the table."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING

from infer_accel.bench.harness import Planned, ValidationError, describe, measure_case
from infer_accel.bench.rows import row_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from infer_accel.bench.harness import Bench, Case, CaseSource
    from infer_accel.bench.rows import Row

__all__ = ["PARTS", "Outcome", "load_part", "run_parts"]

_LOG = logging.getLogger(__name__)

PARTS: tuple[str, ...] = ("lora", "kvcache", "tokenize")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run found."""

    rows: list[Row]
    #: Rows that do not exist because ours was wrong.
    failures: list[str]
    #: "part/case: rival" → why it was not timed.
    left_out: dict[str, str]
    #: Keys of the rows among the failures.
    failed: list[str] = field(default_factory=list)


def load_part(name: str) -> CaseSource:
    """Return the function `cases` of a part's module."""
    source: CaseSource = import_module(f"infer_accel.bench.{name}").cases
    return source


def run_parts(
    sources: Mapping[str, CaseSource],
    bench: Bench,
    progress: Callable[[str], None] | None = None,
    *,
    earlier: Sequence[Row] = (),
    keep: Callable[[Sequence[Row]], None] | None = None,
) -> Outcome:
    """Measure the parts one after the other.

    Parameters
    ----------
    sources
        What :func:`load_part` returned, by the part's name.
    bench
        Size of the run, limits and rivals.
    progress
        Called with a short text whenever something else begins.
    earlier
        Rows of a run that was broken off: they are taken as they are, and not measured again. Rows of parts
        that are not measured now stay, too.
    keep
        Called with every row that there is after each new one.

    Returns
    -------
    Outcome
        Every validated row, and what went wrong with the others: one bad row, or one bad part, does not take
        the rest with it.
    """
    say = progress or (lambda _: None)
    known = {row.key: row for row in earlier if row.part in sources}
    outcome = Outcome([row for row in earlier if row.part not in sources], [], {})
    for part, source in sources.items():
        say(f"{part}: preparing")
        try:
            for case in source(bench):
                row = known.pop(f"{part}/{case.name}", None)
                if row is not None:
                    outcome.rows.append(row)
                elif _measure(part, case, bench, outcome, say):
                    if keep is not None:
                        keep([*outcome.rows, *known.values()])
                else:
                    outcome.failed.append(f"{part}/{case.name}")
                say(f"{part}: preparing")
        except Exception as error:  # noqa: BLE001 - whatever a part does wrong, the others are still measured
            _LOG.debug("the part %s failed", part, exc_info=True)
            outcome.failures.append(f"{part}: {describe(error)}")
            # What an earlier run measured of this part stays, however far this one came.
            outcome.rows.extend(row for row in known.values() if row.part == part)
            known = {key: row for key, row in known.items() if row.part != part}
    return outcome


def _measure(
    part: str, planned: Case | Planned, bench: Bench, outcome: Outcome, say: Callable[[str], None]
) -> bool:
    """Add the case's row to the outcome, or what was wrong with it; say whether there is a new row."""
    title = f"{part}: {planned.name}"
    if any(row.part == part and row.case == planned.name for row in outcome.rows):
        outcome.failures.append(f"{title}: two rows of this name; no comparison could tell them apart")
        return False
    try:
        case = _built(planned)
        measured = measure_case(
            case, seconds=bench.seconds_a_case, progress=lambda stage: say(f"{title}: {stage}")
        )
    except ValidationError as error:
        outcome.failures.append(f"{part}: {error}")
        return False
    outcome.rows.append(row_of(part, case, measured))
    outcome.left_out.update({f"{title}: {name}": why for name, why in measured.left_out.items()})
    return True


def _built(planned: Case | Planned) -> Case:
    """Return a case, building it if it was only planned: a failure is one of this row, like a wrong result."""
    if not isinstance(planned, Planned):
        return planned
    try:
        return planned.build()
    except Exception as error:
        raise ValidationError(f"{planned.name}: cannot be built: {describe(error)}") from error
