"""Write the measured tables of README.md and docs/performance.md out of a committed record.

    infer-accel bench --json benches/record/NAME.json
    python benches/render_table.py

No figure in the documentation is typed by hand: the newest record in `benches/record/` is the source of all,
and a test fails where a page says something else. A page marks the place with `<!-- table: short -->` (or
`full`) and `<!-- end of table -->`.
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
    from collections.abc import Iterator

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
    for part, rows in groupby(read_rows(record), key=lambda row: row.part):
        yield ""
        if full:
            yield f"| {part} | infer-accel | rivals, the best first | ratio | limit | share of it |"
            yield "|---|--:|---|--:|--:|--:|"
        else:
            yield f"| {part} | infer-accel | the best rival | ratio | of the limit |"
            yield "|---|--:|---|--:|--:|"
        for row in rows:
            yield _full_row(row) if full else _short_row(row)
    if full:
        yield ""
        yield from _notes(_machine(record))


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


def _notes(machine: dict[str, Any]) -> Iterator[str]:
    limits = ", ".join(f"{name} {value / 1e9:.3g} G/s" for name, value in machine["limits"].items())
    yield f"Limits measured in the same run: {limits or 'none'}."
    if machine["absent"]:
        yield ""
        yield f"Not installed in this run, so not measured against: {', '.join(machine['absent'])}."


def _short_row(row: Row) -> str:
    best = next((f"{name} {format_value(value)}" for name, value in row.ranked_peers()), "–")
    return _cells(row.case, _value(row), best, _ratio(row), _share(row))


def _full_row(row: Row) -> str:
    peers = ", ".join(f"{name} {format_value(value)}" for name, value in row.ranked_peers()) or "–"
    limit = "–" if row.limit is None else format_value(row.limit)
    return _cells(row.case, _value(row), peers, _ratio(row), limit, _share(row))


def _cells(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _value(row: Row) -> str:
    return f"**{format_value(row.ours)}** {row.unit}"


def _ratio(row: Row) -> str:
    return "–" if row.ratio is None else f"×{format_value(row.ratio)}"


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
