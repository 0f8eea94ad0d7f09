"""How the commands speak: results on the standard output, everything else on the standard error."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = [
    "EXIT_FELL",
    "EXIT_WRONG",
    "byte_progress",
    "errors",
    "guarded",
    "progress",
    "refuse",
    "require_existing",
    "require_file",
    "require_writable",
    "results",
]

EXIT_FELL = 1
EXIT_WRONG = 2


def results() -> Console:
    """Return the console of results; wide enough for a table where nobody is watching."""
    console = Console()
    return console if console.is_terminal else Console(width=160)


def errors() -> Console:
    """Return the console of progress and complaints."""
    return Console(stderr=True)


@contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """Yield what shows the current step: one changing line on a terminal, a line a subject in a log."""
    console = errors()
    if console.is_terminal:
        with console.status("starting") as status:
            yield lambda text: status.update(escape(text))
        return
    seen: set[str] = set()

    def log(text: str) -> None:
        subject = text.rpartition(": ")[0]
        if subject not in seen:
            seen.add(subject)
            console.print(Text(subject))

    yield log


@contextmanager
def byte_progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Yield what shows bytes done of bytes in all: a bar on a terminal, nothing in a log."""
    console = errors()
    if not console.is_terminal:
        yield lambda _done, _total: None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        "{task.description}",
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def guarded() -> Iterator[None]:
    """Turn an error of this package into its text and exit code 2."""
    from infer_accel.errors import InferAccelError

    try:
        yield
    except InferAccelError as error:
        refuse(f"{error} [{error.code}]")


def refuse(message: str) -> NoReturn:
    """Say what is wrong with the call and leave with 2."""
    errors().print(Text.assemble(("error: ", "bold red"), message), soft_wrap=True)
    raise typer.Exit(EXIT_WRONG)


def require_existing(path: Path, wanted: str) -> None:
    """Refuse a path where nothing is; `wanted` says what belongs there."""
    if path.exists():
        return
    if path.is_symlink():
        refuse(f"{path} is a link to {path.readlink()}, where nothing is; pass {wanted}")
    where = "" if path.is_absolute() else f" in {path.cwd()}"
    refuse(f"{path}: there is no such file or directory{where}; pass {wanted}")


def require_file(path: Path, wanted: str) -> None:
    """Refuse what is no file; `wanted` says what belongs there."""
    require_existing(path, wanted)
    if path.is_dir():
        refuse(f"{path}: is a directory; pass {wanted}")


def require_writable(path: Path | None, option: str) -> None:
    """Refuse before any work is done if `path` cannot become a file."""
    if path is None:
        return
    if path.is_dir():
        refuse(f"{option} {path}: is a directory; name a file")
    folder = path.parent
    if not folder.is_dir():
        refuse(f"{option} {path}: there is no directory {folder}; make it first")
    probe = folder / f".{path.name}.writable"
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        refuse(f"{option} {path}: cannot write to {folder}: {error.strerror}")
