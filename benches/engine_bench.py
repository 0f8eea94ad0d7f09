"""What the benches of engines share: one command line, the machine, a record, and its table in the documentation.

    python benches/serve_NAME.py                 # measures and prints
    python benches/serve_NAME.py --keep          # and writes the record in benches/record/serve, and the page
    python benches/serve_NAME.py --json FILE     # and writes a record that is somebody's own
    python benches/serve_NAME.py --page          # measures nothing: writes the committed record into the page
    python benches/serve_NAME.py --keep --go-on  # goes on where a run ended early

`--turns` says how often each contender has its turn, `--rounds` what is timed within one, `--prefix` what processes are
started with. A bench has those that mean something to it.

What is measured so far is in `RECORD.part` after each row, written beside and renamed, so that no file is ever half of
one. The record itself is replaced when all is measured, and the page after that.
"""

from __future__ import annotations

import argparse
import datetime as dt
import functools
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.serve import supervised

from infer_accel._files import write_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    #: What is measured under a command line, by name: each gives its rows.
    Phases = Callable[[argparse.Namespace], Mapping[str, Callable[[], Iterable[dict]]]]

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "benches/record/serve"
END = "<!-- end of figures -->\n"


def machine(*packages: str, **more: object) -> dict[str, object]:
    """Return what a record says of where, and with which packages, it was made."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return {
        "cpu": next((line.split(": ")[1] for line in lines if "model name" in line), "?"),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in packages},
        **more,
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
    }


def threads() -> int:
    """Return how many threads an engine computes with."""
    return int(os.environ.get("OMP_NUM_THREADS", "1"))


def write(path: Path, content: object) -> None:
    """Write JSON beside a file, then put it in the file's place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(content, indent=1) + "\n")


def in_turns(
    ways: Sequence[str], turns: int, measure: Callable[[str], dict[str, float]]
) -> dict[str, dict[str, float]]:
    """Return the medians of each way's figures; every other turn is the other way round."""
    came: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for turn in range(turns):
        for way in ways if turn % 2 == 0 else reversed(ways):
            came[way].append(measure(way))
    return {
        way: {part: statistics.median(one[part] for one in figures) for part in figures[0]}
        for way, figures in came.items()
    }


def milliseconds(seconds: float) -> str:
    """Return a time as it stands in a table."""
    value = seconds * 1e3
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"


def flip(folder: str, size: int) -> None:
    """Flip a bit in the middle of the only file below a folder that has so many bytes or more."""
    (file,) = (path for path in Path(folder).rglob("*") if path.is_file() and path.stat().st_size >= size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def storage_phases(
    unit: str,
    cases: Sequence[tuple[int, int]],
    ways: Sequence[str],
    measure: Callable[[str, int, int, int], dict[str, float]],
    flipped: Callable[[str], str],
) -> Phases:
    """Return what a bench of a place for pages measures: each size, and what is made of a flipped byte."""

    def phases(options: argparse.Namespace) -> Mapping[str, Callable[[], Iterable[dict]]]:
        def times(size: int, count: int) -> Iterable[dict]:
            taken = in_turns(ways, options.turns, lambda way: measure(way, size, count, options.rounds))
            yield {"case": "times", "bytes": size, unit: count, "validated": True, **taken}

        def flips() -> Iterable[dict]:
            yield {"case": "flipped", **{way: flipped(way) for way in ways}}

        sizes = {str(size): functools.partial(times, size, count) for size, count in cases}
        return {**sizes, "flipped": flips}

    return phases


@dataclass(frozen=True)
class Bench:
    """A bench of an engine.

    Attributes
    ----------
    file
        The bench's own file.
    about
        What it says of itself.
    name
        The record is ``benches/record/serve/NAME.json``; its table stands in the page between
        ``<!-- figures: serve/NAME.json -->`` and ``<!-- end of figures -->``.
    page
        The page, as a path from the root.
    table
        Makes the text of a record.
    counts
        The numbers that its command line takes, with what they are by default: ``turns``, ``rounds``.
    starts_processes
        It takes ``--prefix``.
    """

    file: str
    about: str
    name: str
    page: str
    table: Callable[[dict], str]
    counts: Mapping[str, int] = field(default_factory=dict)
    starts_processes: bool = False

    @property
    def record(self) -> Path:
        """The committed record."""
        return RECORDS / f"{self.name}.json"

    def rendered(self) -> str:
        """Return the page with the committed record's figures in it."""
        begin = f"<!-- figures: serve/{self.name}.json -->\n"
        before, rest = (ROOT / self.page).read_text(encoding="utf-8").split(begin)
        text = self.table(json.loads(self.record.read_text(encoding="utf-8")))
        return f"{before}{begin}\n{text}\n{END}{rest.split(END, 1)[1]}"

    def write_page(self) -> None:
        """Write the committed record's figures into the page."""
        text = self.rendered()
        write_text(ROOT / self.page, text)

    def named(self) -> str:
        """Return the sentence that names the record, for tables that end with it."""
        return f"The record is `benches/record/serve/{self.name}.json`."

    def parser(self) -> argparse.ArgumentParser:
        """Return the command line that all benches have; one may add words of its own."""
        parser = argparse.ArgumentParser(
            description=self.about, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        record = self.record.relative_to(ROOT)
        where = parser.add_mutually_exclusive_group()
        where.add_argument("--keep", action="store_true", help=f"write {record} and its table in {self.page}")
        where.add_argument("--json", type=Path, metavar="FILE", help="write the record to a file")
        where.add_argument("--page", action="store_true", help="only write the record's table into the page")
        parser.add_argument(
            "--go-on", action="store_true", help="measure what a run that ended early has not"
        )
        meanings = {
            "turns": "how often each contender has its turn",
            "rounds": "how often each thing is timed within a turn",
        }
        for name, default in self.counts.items():
            parser.add_argument(f"--{name}", type=int, default=default, help=f"{meanings[name]}: {default}")
        if self.starts_processes:
            parser.add_argument(
                "--prefix", default="", help="what processes are started with, such as `taskset -c 2`"
            )
        parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
        return parser

    def child(self, *arguments: str, prefix: str = "", given: str = "", **variables: str) -> Any:  # noqa: ANN401 - JSON
        """Return what a process of its own says at the end, having done ``run``'s ``child`` with the arguments."""
        command = [*prefix.split(), sys.executable, self.file, "--child", *arguments]
        done = supervised.run(command, given=given, stdout=subprocess.PIPE, env=os.environ | variables)
        done.check_returncode()
        return json.loads(done.stdout.splitlines()[-1])

    def run(
        self,
        phases: Phases,
        where: Callable[[argparse.Namespace], dict[str, object]],
        *,
        child: Callable[[list[str]], object] | None = None,
        parser: argparse.ArgumentParser | None = None,
        arguments: Sequence[str] | None = None,
    ) -> None:
        """Do what the command line says.

        Parameters
        ----------
        phases
            Returns what is measured, by name. Each phase gives its rows, one after the other, and knows nothing of the
            others: a run that goes on leaves out those that are there.
        where
            Returns the machine.
        child
            What a process of its own does, with arguments; what it returns is printed as JSON.
        parser
            The command line, where it has words of its own.
        arguments
            In place of the process's.
        """
        options = (parser or self.parser()).parse_args(arguments)
        if options.page:
            self.write_page()
        elif options.child:
            assert child is not None
            print(json.dumps(child(options.child)))
        else:
            record = self._measured(options, phases(options), lambda: where(options))
            print(self.table(record))
            if options.keep:
                self.write_page()

    def _measured(
        self,
        options: argparse.Namespace,
        phases: Mapping[str, Callable[[], Iterable[dict]]],
        where: Callable[[], dict[str, object]],
    ) -> dict:
        """Measure what is not there yet; return the record, which is written where it was asked for."""
        target = self.record if options.keep else options.json
        part = None if target is None else target.with_name(f"{target.name}.part")
        settings = {name: str(getattr(options, name)) for name in self.counts}
        state: dict[str, Any] = {"settings": settings, "whole": {}, "begun": []}
        if options.go_on and part is not None and part.exists():
            state = json.loads(part.read_text(encoding="utf-8"))
            if state["settings"] != settings:
                raise SystemExit(
                    f"{part} was begun with {state['settings']}, not with {settings}: "
                    "say the same, or leave out --go-on"
                )
        for name, measure in phases.items():
            if name in state["whole"]:
                continue
            state["begun"] = []
            for row in measure():
                state["begun"].append(row)
                if part is not None:
                    write(part, state)
            state["whole"][name], state["begun"] = state["begun"], []
            if part is not None:
                write(part, state)
        record = {"machine": where(), "rows": [row for name in phases for row in state["whole"][name]]}
        if target is not None and part is not None:
            write(target, record)
            part.unlink()
        return record
