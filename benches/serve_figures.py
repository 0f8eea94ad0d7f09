"""What the benches of engines share: the machine they ran on, and their tables in the documentation."""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import json
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Figures:
    """A record, and the place of its table: between two comments that name it."""

    #: The record's name in `benches/record/serve`.
    name: str
    #: A page of the documentation.
    page: str
    #: Writes the table.
    table: Callable[[dict], str]

    @property
    def record(self) -> Path:
        """The record's file."""
        return ROOT / "benches/record/serve" / self.name

    def rendered(self, page: str) -> str:
        """Return a page with the record's figures in it."""
        begin, end = f"<!-- figures: serve/{self.name} -->\n", "<!-- end of figures -->\n"
        before, rest = page.split(begin)
        _, after = rest.split(end, 1)
        shown = self.table(json.loads(self.record.read_text()))
        return f"{before}{begin}\n{shown}\nThe record is `benches/record/serve/{self.name}`.\n\n{end}{after}"

    def write_page(self) -> None:
        """Write the record into the page."""
        page = ROOT / self.page
        page.write_text(self.rendered(page.read_text()))


def machine(*packages: str, **more: object) -> dict[str, object]:
    """Return where and with what a bench runs."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return {
        "cpu": next((line.split(": ")[1] for line in lines if "model name" in line), "?"),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
        **more,
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
    }
