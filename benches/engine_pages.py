"""What the benchmarks of engines share: the machine, a record, and its table in the documentation."""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[1]


def machine(*packages: str, **more: object) -> dict[str, object]:
    """Return what a record says of where it was made."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return {
        "cpu": next((line.split(": ")[1] for line in lines if "model name" in line), "?"),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in packages},
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        **more,
    }


class Page:
    """A record, and the place of its table in a page of the documentation.

    Parameters
    ----------
    name
        The record is ``benches/record/serve/NAME.json``, the place between ``<!-- figures: serve/NAME.json -->`` and
        ``<!-- end of figures -->``.
    page
        The page.
    table
        Makes the text of a record.
    """

    def __init__(self, name: str, page: str, table: Callable[[dict], str]) -> None:
        self.record = ROOT / f"benches/record/serve/{name}.json"
        self.page = ROOT / page
        self._begin, self._end = f"<!-- figures: serve/{name}.json -->\n", "<!-- end of figures -->\n"
        self._table = table

    def rendered(self) -> str:
        """Return the page with the record's figures in it."""
        before, rest = self.page.read_text(encoding="utf-8").split(self._begin)
        _, after = rest.split(self._end, 1)
        text = self._table(json.loads(self.record.read_text(encoding="utf-8")))
        return f"{before}{self._begin}\n{text}\n{self._end}{after}"

    def write(self) -> None:
        """Write the record's figures into the page."""
        self.page.write_text(self.rendered(), encoding="utf-8")

    def keep(self, where: dict[str, object], rows: list[dict]) -> None:
        """Write a new record, and its figures."""
        self.record.parent.mkdir(parents=True, exist_ok=True)
        self.record.write_text(
            json.dumps({"machine": where, "rows": rows}, indent=1) + "\n", encoding="utf-8"
        )
        self.write()
