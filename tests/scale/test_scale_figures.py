"""The figures of this part in the documentation are those of the records."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_tables_are_those_of_the_records() -> None:
    bench = runpy.run_path(str(ROOT / "benches" / "scale.py"))
    page = bench["PAGE"].read_text(encoding="utf-8")
    assert bench["rendered"](page) == page, "python benches/scale.py --page"


def test_every_row_was_validated() -> None:
    records = sorted((ROOT / "benches" / "record" / "scale").glob("*.json"))
    assert [path.stem for path in records] == ["bulk", "shared"]
    for path in records:
        assert all(row["validated"] for row in json.loads(path.read_text())["rows"])
