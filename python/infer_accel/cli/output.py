"""How the commands speak: results on the standard output, everything else on the standard error."""

from __future__ import annotations

import os
from contextlib import contextmanager
from functools import wraps
from importlib.util import find_spec
from typing import TYPE_CHECKING, NoReturn, ParamSpec

import typer
from rich.console import Console
from rich.markup import escape
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

__all__ = [
    "EXIT_FELL",
    "EXIT_INTERRUPTED",
    "EXIT_WRONG",
    "MOST_SEED",
    "MOST_THREADS",
    "byte_progress",
    "command",
    "errors",
    "guarded",
    "progress",
    "refuse",
    "require_apart",
    "require_existing",
    "require_file",
    "require_finite",
    "require_picture",
    "require_plain",
    "require_writable",
    "results",
    "write_results",
]

Parameters = ParamSpec("Parameters")

EXIT_FELL = 1
EXIT_WRONG = 2
EXIT_INTERRUPTED = 130

#: The largest values that options take: more is refused with the option's name, not somewhere below it.
MOST_SEED = 2**64 - 1
MOST_THREADS = 2**16


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
def guarded(subject: object = None) -> Iterator[None]:
    """Turn an error of this package or of the system into one line and exit code 2.

    `subject`, where it is given, is said first: the file in which the error was found.
    """
    from infer_accel.errors import InferAccelError

    before = "" if subject is None else f"{subject}: "
    try:
        yield
    except InferAccelError as error:
        refuse(f"{before}{error} [{error.code}]")
    except BrokenPipeError:
        raise  # typer's: whoever reads the output has had enough
    except OSError as error:
        named = error.filename if error.filename is not None else subject
        refuse(f"{'a read or a write failed' if named is None else named}: {error.strerror}")


def command(run: Callable[Parameters, None], *, when_interrupted: str = "") -> Callable[Parameters, None]:
    """Return `run` as a command that ends in one line and exit code 2 where the core, a file or the output fails.

    Ctrl-C ends it in one line, too, and code 130; `when_interrupted` says how to go on.
    """

    @wraps(run)
    def run_guarded(*args: Parameters.args, **options: Parameters.kwargs) -> None:
        from infer_accel import _backend

        try:
            with guarded():
                if _backend.name() == "native":
                    _backend.native()  # says here, in one line, why it cannot be loaded
                run(*args, **options)
        except KeyboardInterrupt:
            errors().print(Text(f"interrupted{when_interrupted}"), soft_wrap=True)
            raise typer.Exit(EXIT_INTERRUPTED) from None

    return run_guarded


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


def require_plain(path: Path, wanted: str) -> None:
    """Refuse what is neither a file nor a directory: opening a pipe waits for its writer for ever."""
    require_existing(path, wanted)
    if not (path.is_file() or path.is_dir()):
        refuse(f"{path}: is a pipe or a device; pass {wanted}")


def require_finite(path: Path, wanted: str) -> None:
    """Refuse a device, which may give bytes for ever; a pipe's writer ends, and so does who types."""
    require_existing(path, wanted)
    if path.is_block_device() or (path.is_char_device() and not _ends(path)):
        refuse(f"{path}: is a device; pass {wanted}")


def _ends(device: Path) -> bool:
    if device.samefile(os.devnull):
        return True
    with device.open("rb", buffering=0) as opened:
        return opened.isatty()


def require_apart(path: Path | None, option: str, others: Iterable[Path]) -> None:
    """Refuse a file of results that is one of the files of the call, or lies in one of its directories."""
    for other in others:
        if path is not None and path.resolve().is_relative_to(other.resolve()):
            refuse(f"{option} {path}: is part of {other}; name a file elsewhere")


def require_picture(path: Path | None) -> None:
    """Refuse before any work is done a picture that cannot be drawn or written."""
    if path is None:
        return
    require_writable(path, "--plot")
    if path.suffix.lower() != ".png":
        refuse(f"--plot {path}: pictures are PNG; name it {path.with_suffix('.png').name}")
    if find_spec("matplotlib") is None:
        refuse("--plot needs matplotlib: pip install 'infer-accel[bench]'")


def require_writable(path: Path | None, option: str) -> None:
    """Refuse before any work is done if `path` cannot become a file."""
    if path is None:
        return
    if path.is_dir():
        refuse(f"{option} {path}: is a directory; name a file")
    if path.exists() and not path.is_file():
        return  # a pipe or a device: it is written as it is, and no file is made beside it
    folder = path.parent
    if not folder.is_dir():
        refuse(f"{option} {path}: there is no directory {folder}; make it first")
    probe = folder / f".{path.name}.writable"
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        refuse(f"{option} {path}: cannot write to {folder}: {error.strerror}")


def write_results(path: Path, text: str) -> None:
    """Write what `--json` asks for, whole or not at all."""
    from infer_accel._files import write_text

    try:
        write_text(path, text + "\n")
    except OSError as error:
        refuse(f"cannot write {path}: {error.strerror}")
