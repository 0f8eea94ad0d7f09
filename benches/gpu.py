"""Everything that a machine with a GPU is asked for, one step after the other: `make gpu`.

    python benches/gpu.py                 # tests, sanitizers, measurements, record, tables, notebook
    python benches/gpu.py --minutes 9     # as much of it as nine minutes allow; the same again goes on
    python benches/gpu.py --quick         # fewer rows; nothing is kept as a record

What was done is kept in `target/gpu` (`--work`), for one commit: a step that passed is not made again, and rows that
were measured are not measured again. The last step writes `benches/record/gpu/NAME-OF-THE-GPU.json`, and the tables
and the notebook out of it. The package may be an installed wheel; its Python files must be those of this clone.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from infer_accel._files import write_text

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "benches" / "record" / "gpu"
TOOLS = ("memcheck", "racecheck")
#: Exit codes: everything is done; something is wrong; time is up, the same again goes on.
DONE, WRONG, UNFINISHED = 0, 1, 3
#: Of a sanitizer that found something.
_FOUND = 66
#: Before the end of the time, so that what runs can be ended and its state be written.
_SPARE_SECONDS = 15.0


class OutOfTimeError(Exception):
    """The time that was allowed is over."""


@dataclass
class State:
    """What was done so far: a file in the working folder."""

    folder: Path
    commit: str | None
    deadline: float
    checks: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path, commit: str | None, minutes: float | None) -> State:
        """Return the state of an earlier run of the same commit, or a new one."""
        folder.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + 60 * minutes if minutes is not None else float("inf")
        state = cls(folder, commit, deadline)
        if state.path.exists():
            found = json.loads(state.path.read_text(encoding="utf-8"))
            if found["commit"] == commit:
                state.checks = found["checks"]
            elif state.record.exists():  # rows of two commits do not stand in one record
                state.record.rename(folder / f"record-{str(found['commit'])[:10]}.json")
        state.write()
        return state

    @property
    def path(self) -> Path:
        """The file."""
        return self.folder / "steps.json"

    @property
    def record(self) -> Path:
        """The record that grows."""
        return self.folder / "record.json"

    def passed(self, name: str, said: str) -> None:
        """Keep what a step said when it passed."""
        self.checks[name] = said
        self.write()

    def write(self) -> None:
        """Write the file."""
        write_text(self.path, json.dumps({"commit": self.commit, "checks": self.checks}, indent=1) + "\n")

    def run(self, command: Sequence[str], **environment: str) -> tuple[int, str]:
        """Run a command, show what it says, and return its exit code and the end of that."""
        left = self.deadline - time.monotonic() - _SPARE_SECONDS
        if left <= 0:
            raise OutOfTimeError
        known = os.environ | environment
        known["PYTHONPATH"] = os.pathsep.join(filter(None, [known.get("PYTHONPATH"), str(ROOT)]))
        print(f"+ {' '.join(map(str, command))}", flush=True)
        with subprocess.Popen(
            command, cwd=ROOT, env=known, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            assert process.stdout is not None
            lines: list[str] = []
            with _alarm(left, process):
                for line in process.stdout:
                    print(line, end="", flush=True)
                    lines.append(line)
                code = process.wait()
        if time.monotonic() + _SPARE_SECONDS >= self.deadline and code not in {0, WRONG, 2, _FOUND}:
            raise OutOfTimeError
        return code, "".join(lines[-40:])


class _alarm:  # noqa: N801 - read as a word of the language
    """End a process when its time is over, gently first: it has something to write."""

    def __init__(self, seconds: float, process: subprocess.Popen[str]) -> None:
        self._seconds, self._process = seconds, process

    def __enter__(self) -> None:
        if self._seconds != float("inf"):
            signal.signal(signal.SIGALRM, self._end)
            signal.setitimer(signal.ITIMER_REAL, self._seconds, 5.0)

    def _end(self, *_: object) -> None:
        self._process.terminate()

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)


def tests(state: State) -> bool:
    """Run the tests that need a GPU."""
    command = [sys.executable, "-m", "pytest", "-q", "-W", "default", "-p", "no:cacheprovider", "tests/gpu"]
    code, said = state.run(command, TRITON_INTERPRET="0")
    summary = next(iter(re.findall(r"\d+ passed[^\n]*", said)), "")
    if code != 0 or not summary:
        return False
    state.passed("tests", summary.strip(" ="))
    return True


def sanitizer() -> str | None:
    """Return compute-sanitizer: of the path, of a toolkit, or of a package of Python."""
    places = [shutil.which("compute-sanitizer")]
    places += [str(path) for path in Path("/usr/local").glob("cuda*/bin/compute-sanitizer")]
    packages = Path(sysconfig.get_paths()["purelib"])
    places += [str(path) for path in packages.glob("nvidia/**/bin/compute-sanitizer")]
    return next((place for place in places if place), None)


def sanitize(state: State, tools: Sequence[str] = TOOLS) -> bool:
    """Run the short list of shapes under compute-sanitizer, with each of its tools."""
    program = sanitizer()
    if program is None:
        print("compute-sanitizer is not here: it comes with the CUDA toolkit; the step is left out")
        for tool in tools:
            state.checks[tool] = "not run: compute-sanitizer is absent"
        return True
    is_right = True
    for tool in tools:
        if is_done(state, tool):
            continue
        command = [program, "--tool", tool, "--error-exitcode", str(_FOUND), "--report-api-errors", "no"]
        code, said = state.run([*command, sys.executable, "-m", "tests.gpu.sanitized"])
        bodies = re.findall(r"^\d+ bodies$", said, re.MULTILINE)
        if code == 0 and bodies:
            state.passed(tool, f"{bodies[0]}, nothing found")
        is_right &= code == 0 and bool(bodies)
    return is_right


def is_done(state: State, name: str) -> bool:
    """Return whether a step passed; one that was left out is tried again."""
    return name in state.checks and not state.checks[name].startswith("not run")


def bench(state: State, *, quick: bool) -> bool:
    """Measure, going on with a record that was begun; one that is complete stays, whatever was rendered since."""
    if state.record.exists() and json.loads(state.record.read_text(encoding="utf-8"))["machine"]["complete"]:
        return True
    options = ["--device", "cuda", "--autotune", "--json", str(state.record), "--resume"]
    options += ["--quick"] if quick else []
    code, _ = state.run([sys.executable, "-m", "infer_accel", "bench", "all", *options])
    return code == 0


def finish(state: State, commit: str | None) -> Path:
    """Write the record with what was checked beside it, under the name of its GPU; then what is rendered of it."""
    document = json.loads(state.record.read_text(encoding="utf-8"))
    machine = document["machine"]
    machine["checks"] = state.checks
    if machine["commit"] is None:  # an installed package does not know
        machine["commit"] = commit
    RECORDS.mkdir(parents=True, exist_ok=True)
    path = RECORDS / f"{slug(machine['gpu']['name'])}.json"
    write_text(path, json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    return path


def render(state: State, path: Path) -> bool:
    """Write the tables of the pages, and the notebook where it can be run."""
    code, _ = state.run([sys.executable, "benches/render_table.py"])
    absent = [name for name in ("ipykernel", "matplotlib", "nbclient") if find_spec(name) is None]
    if absent:
        print(f"the notebook is left as it is: pip install {' '.join(absent)}")
        return code == 0
    command = [sys.executable, "notebooks/run.py", "notebooks/gpu_benchmarks.ipynb"]
    again, _ = state.run(command, RECORD=str(path))
    return code == again == 0


def slug(name: str) -> str:
    """Return a file's name for a GPU.

    >>> slug("NVIDIA H100 80GB HBM3")
    'nvidia-h100-80gb-hbm3'
    """
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def commit_of(given: str | None) -> str | None:
    """Return the commit of this clone, or the one that is said where the clone came without its history."""
    git = shutil.which("git")
    if given is None and git is not None and (ROOT / ".git").exists():
        command = [git, "-C", ROOT, "rev-parse", "HEAD"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout.strip() or None
    return given


def other_files() -> list[str]:
    """Return the Python files in which the package in use is not that of this clone."""
    import infer_accel

    used, here = Path(infer_accel.__file__).parent, ROOT / "python" / "infer_accel"
    if used == here:
        return []
    names = {path.relative_to(folder) for folder in (used, here) for path in folder.rglob("*.py")}
    same = {
        name
        for name in names
        if all((folder / name).exists() for folder in (used, here))
        and (used / name).read_bytes() == (here / name).read_bytes()
    }
    return sorted(map(str, names - same))


def why_not() -> str | None:
    """Return why nothing can be done here, None where everything can."""
    try:
        import torch
        import triton  # noqa: F401
    except ImportError as error:
        return f"{error}: pip install 'infer-accel[gpu]'"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no CUDA device"
    if other := other_files():
        return f"the package in use is not of this clone: {len(other)} files differ, {other[0]} first; install it again"
    return None


def everything(state: State, options: argparse.Namespace) -> int:
    """Make every step that is not done yet."""
    wrong = [] if is_done(state, "tests") or tests(state) else ["tests"]
    wrong += [] if sanitize(state) else ["sanitizers"]
    wrong += [] if bench(state, quick=options.quick) else ["bench"]
    if wrong:
        print(f"WRONG: {', '.join(wrong)}; nothing is kept as a record. What there is lies in {state.folder}")
        return WRONG
    if options.quick:
        print(f"everything passed; a quick run is no record: {state.record}")
        return DONE
    path = finish(state, options.commit)
    print(f"wrote {path.relative_to(ROOT)}")
    return DONE if render(state, path) else WRONG


def main(arguments: Sequence[str] | None = None) -> int:
    """Make every step, or the one that is named."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, help="end after this long; the same command goes on")
    parser.add_argument("--quick", action="store_true", help="fewer rows, and no record")
    parser.add_argument("--work", type=Path, default=ROOT / "target" / "gpu", help="where the state lies")
    parser.add_argument("--commit", help="of this clone, where it came without its history")
    parser.add_argument("--only", choices=["sanitize"], help="this step alone")
    options = parser.parse_args(arguments)
    if (why := why_not()) is not None:
        print(f"{why}; nothing was done")
        return WRONG
    options.commit = commit_of(options.commit)
    state = State.read(
        options.work.resolve() / ("quick" if options.quick else "full"), options.commit, options.minutes
    )
    try:
        if options.only == "sanitize":
            state.checks.clear()
            return DONE if sanitize(state) else WRONG
        return everything(state, options)
    except OutOfTimeError:
        print(f"the time is over; the same command goes on with what lies in {state.folder}")
        return UNFINISHED


if __name__ == "__main__":
    sys.exit(main())
