"""Write the measured tables of README.md and docs/performance.md out of a committed record.

    infer-accel bench --json benches/record/NAME.json
    python benches/render_table.py

No figure in the documentation is typed by hand: the newest record in `benches/record/` is the source of all,
and a test fails where a page says something else. A page marks the place with `<!-- table: short -->` (or
`full`) and `<!-- end of table -->`. The full table has every row and every rival. The short one has a row for
each operation: the case in which it is least ahead of its best rival, so that nobody picks the cherries.
"""

from __future__ import annotations

import json
import os
import re
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infer_accel.bench.report import format_value
from infer_accel.bench.rows import read_rows

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from infer_accel.bench.rows import Row

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "benches" / "record"
PAGES = (ROOT / "README.md", ROOT / "docs" / "performance.md")

_PLACE = re.compile(
    r"(?P<begin><!-- table: (?P<form>short|full) -->\n).*?(?P<end><!-- end of table -->)", re.DOTALL
)


def newest_record() -> Path | None:
    """Return the record whose run was the last, None where none is committed."""
    return max(RECORDS.glob("*.json"), key=lambda path: str(_machine(path)["date"]), default=None)


def rendered(text: str, page: Path) -> str:
    """Return the text of `page` with its tables written anew."""
    record = newest_record()

    def table(place: re.Match[str]) -> str:
        lines = _no_record() if record is None else _lines(record, page, full=place["form"] == "full")
        return place["begin"] + "\n".join(lines) + "\n" + place["end"]

    return _PLACE.sub(table, text)


def _machine(record: Path) -> dict[str, Any]:
    machine: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))["machine"]
    return machine


def _no_record() -> list[str]:
    return ["*No record is committed yet; `make bench` measures the machine in front of you.*"]


def _lines(record: Path, page: Path, *, full: bool) -> Iterator[str]:
    yield _provenance(record, page)
    for part, group in groupby(read_rows(record), key=lambda row: row.part):
        yield ""
        yield from (_full_table if full else _short_table)(part, list(group))
    yield ""
    yield from _notes(_machine(record), full=full)


def _full_table(part: str, rows: Sequence[Row]) -> Iterator[str]:
    yield f"| {part} | infer-accel | rivals, the best first | ratio | limit | share of it |"
    yield "|---|--:|---|--:|--:|--:|"
    for row in rows:
        peers = ", ".join(f"{name} {format_value(value)}" for name, value in row.ranked_peers()) or "–"
        limit = "–" if row.limit is None else format_value(row.limit)
        yield _cells(row.case, _value(row), peers, _ratio(row.ratio), limit, _share(row))


def _short_table(part: str, rows: Sequence[Row]) -> Iterator[str]:
    yield f"| {part}: the hardest case | infer-accel | its best rival | ratio | of the limit | all cases |"
    yield "|---|--:|---|--:|--:|---|"
    operations: dict[str, list[Row]] = {}
    for row in rows:
        operations.setdefault(_operation(row.case), []).append(row)
    for cases in operations.values():
        hardest = min(cases, key=lambda row: (row.ratio is None, row.ratio or 0.0))
        best = next((f"{name} {format_value(value)}" for name, value in hardest.ranked_peers()), "–")
        yield _cells(
            hardest.case, _value(hardest), best, _ratio(hardest.ratio), _share(hardest), _range(cases)
        )


def _operation(case: str) -> str:
    """Return the words of a case's name before its sizes and options: what is done, not to what."""
    words = []
    for word in case.split():
        if any(letter.isdigit() for letter in word):
            break
        words.append(word.rstrip(","))
        if word.endswith(","):
            break
    return " ".join(words)


def _range(cases: Sequence[Row]) -> str:
    ratios = [row.ratio for row in cases if row.ratio is not None]
    if len(ratios) < 2:
        return f"{len(cases)}"
    return f"{len(cases)}: {_ratio(min(ratios))} to {_ratio(max(ratios))}"


def _provenance(record: Path, page: Path) -> str:
    machine = _machine(record)
    run = f"infer-accel bench{' --quick' if machine['quick'] else ''} --json FILE"
    rivals = ", ".join(f"{name} {number}" for name, number in machine["rivals"].items())
    # The site is built of docs/ alone: from there the record is named, not linked.
    path = record.relative_to(ROOT).as_posix()
    inside = page.parent == ROOT
    name = f"[`{path}`]({os.path.relpath(record, page.parent)})" if inside else f"`{path}`"
    return (
        f"{machine['cpu']}, {machine['cores']} cores, tier {machine['simd']['used']}, {machine['system']}, "
        f"{machine['python']}; {str(machine['date'])[:10]}. "
        f"Rivals: {rivals or 'none'}. `{run}`, record {name}."
    )


def _notes(machine: dict[str, Any], *, full: bool) -> Iterator[str]:
    if full:
        limits = ", ".join(f"{name} {value / 1e9:.3g} G/s" for name, value in machine["limits"].items())
        yield f"Limits measured in the same run: {limits or 'none'}."
    if machine["absent"]:
        if full:
            yield ""
        yield f"Not installed in this run, so not measured against: {', '.join(machine['absent'])}."


def _cells(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _value(row: Row) -> str:
    return f"**{format_value(row.ours)}** {row.unit}"


def _ratio(ratio: float | None) -> str:
    return "–" if ratio is None else f"×{format_value(ratio)}"


def _share(row: Row) -> str:
    return "–" if row.efficiency is None else f"{row.efficiency:.0%}"


def main() -> None:
    """Write the tables of every page."""
    for page in PAGES:
        before = page.read_text(encoding="utf-8")
        after = rendered(before, page)
        if after != before:
            page.write_text(after, encoding="utf-8")
            print(f"wrote {page.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
