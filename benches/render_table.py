"""Write the measured tables of README.md and docs/performance.md out of a committed record.

    infer-accel bench --json benches/record/NAME.json
    python benches/render_table.py

No figure in the documentation is typed by hand: the newest record in `benches/record/` is the source of all,
and a test fails where a page says something else. A page marks the place with `<!-- table: short -->` (or
`full`, or `summary`) and `<!-- end of table -->`. The full table has every row and every rival. The short one has a
row for each operation: the case in which it is least ahead of its best rival, so that nobody picks the cherries. The
summary has a row for each part: how many cases there are, and their ratios from the worst over the middle to the best.

Records of GPUs lie in `benches/record/gpu/`, one for each, written by `benches/gpu.py`; all of them are rendered where
a page says `<!-- table: gpu short -->` or `<!-- table: gpu full -->`.
"""

from __future__ import annotations

import json
import os
import re
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infer_accel._files import write_text
from infer_accel.bench.report import format_value
from infer_accel.bench.rows import read_rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from infer_accel.bench.rows import Row

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "benches" / "record"
PAGES = (ROOT / "README.md", ROOT / "docs" / "performance.md")

_PLACE = re.compile(
    r"(?P<begin><!-- table: (?P<form>short|full|summary|gpu short|gpu full) -->\n).*?(?P<end><!-- end of table -->)",
    re.DOTALL,
)


def newest_record() -> Path | None:
    """Return the record whose run was the last, None where none is committed."""
    return max(RECORDS.glob("*.json"), key=lambda path: str(_machine(path)["date"]), default=None)


def rendered(text: str, page: Path) -> str:
    """Return the text of `page` with its tables written anew."""
    record = newest_record()

    def table(place: re.Match[str]) -> str:
        lines: Iterable[str]
        if place["form"].startswith("gpu"):
            lines = _lines_of_gpus(page, full=place["form"] == "gpu full")
        elif record is None:
            lines = _no_record()
        elif place["form"] == "summary":
            lines = _summary(read_rows(record))
        else:
            lines = _lines(record, page, full=place["form"] == "full")
        return place["begin"] + "\n".join(lines) + "\n" + place["end"]

    return _PLACE.sub(table, text)


def _machine(record: Path) -> dict[str, Any]:
    machine: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))["machine"]
    return machine


def _no_record() -> list[str]:
    return ["*No record is committed yet; `make bench` measures the machine in front of you.*"]


def _lines_of_gpus(page: Path, *, full: bool) -> Iterator[str]:
    """Yield the tables of every GPU that there is a record of."""
    records = sorted((RECORDS / "gpu").glob("*.json"))
    if not records:
        yield "*No record of a GPU is committed yet; `make gpu` makes one of the GPU in front of you.*"
    for place, record in enumerate(records):
        if place:
            yield ""
        yield from _lines(record, page, full=full)


def _lines(record: Path, page: Path, *, full: bool) -> Iterator[str]:
    yield _provenance(record, page)
    for part, group in groupby(read_rows(record), key=lambda row: row.part):
        yield ""
        yield from (_full_table if full else _short_table)(part, list(group))
    yield ""
    yield from _notes(_machine(record), full=full)


def _summary(rows: Sequence[Row]) -> Iterator[str]:
    yield ""
    yield "| against the best rival of each case | cases | the worst | half are at least | the best | behind it |"
    yield "|---|--:|--:|--:|--:|--:|"
    for part, group in groupby(rows, key=lambda row: row.part):
        ratios = sorted(row.ratio for row in group if row.ratio is not None)
        if ratios:
            # The lower of the two in the middle, where there are two.
            half = ratios[(len(ratios) - 1) // 2]
            behind = sum(ratio < 1 for ratio in ratios)
            yield _cells(part, str(len(ratios)), *map(_ratio, (ratios[0], half, ratios[-1])), str(behind))
    yield ""


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
    rivals = ", ".join(f"{name} {number}" for name, number in machine["rivals"].items())
    # The site is built of docs/ alone: from there the record is named, not linked.
    path = record.relative_to(ROOT).as_posix()
    inside = page.parent == ROOT
    name = f"[`{path}`]({os.path.relpath(record, page.parent)})" if inside else f"`{path}`"
    run = "make gpu" if "gpu" in machine else f"infer-accel bench{' --quick' * machine['quick']} --json FILE"
    return (
        f"{_measured_on(machine)}, {machine['system']}, {machine['python']}; {str(machine['date'])[:10]}. "
        f"Rivals: {rivals or 'none'}. `{run}`, record {name}."
    )


def _measured_on(machine: dict[str, Any]) -> str:
    processor = f"{machine['cpu']}, {machine['cores']} cores"
    gpu = machine.get("gpu")
    if gpu is None:
        return f"{processor}, tier {machine['simd']['used']}"
    checks = "; ".join(f"{name}: {said}" for name, said in machine.get("checks", {}).items())
    versions = f"torch {gpu['torch']}, Triton {gpu['triton']}, CUDA {gpu['cuda_runtime']}"
    driver = gpu.get("driver_release") or gpu.get("driver") or "unknown"
    commit = str(machine["commit"])[:10]
    return f"**{gpu['name']}**, driver {driver}, {versions}, commit {commit} ({checks}); {processor}"


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
            write_text(page, after)
            print(f"wrote {page.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
