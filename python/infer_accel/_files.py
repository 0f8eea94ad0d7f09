"""Whole files or none: what is written lies beside its target and takes its name only when complete."""

from __future__ import annotations

import os
import secrets
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["replace_file", "write_text"]


@contextmanager
def replace_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a path beside `path`; rename it over `path` on success, remove it on any failure.

    Parameters
    ----------
    path
        The file to create or replace. Its directory must exist. A link stays, and what it names is replaced.

    Yields
    ------
    pathlib.Path
        An empty file in the same directory, so that the rename never crosses a file system.

    Raises
    ------
    OSError
        The directory is missing or not writable, or the disk is full. `path` is then as it was.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with replace_file(f"{folder}/record.json") as beside:
    ...         _ = beside.write_text("{}")
    ...     Path(f"{folder}/record.json").read_text()
    '{}'
    """
    target = Path(path).resolve()
    beside = target.with_name(f".{target.stem}.{secrets.token_hex(8)}{target.suffix}")
    # Not tempfile: its files are readable by their owner alone, and a record is an ordinary file.
    beside.touch(exist_ok=False)
    try:
        yield beside
        with beside.open("rb+") as file:
            os.fsync(file.fileno())
        beside.replace(target)
    except BaseException:
        with suppress(OSError):
            beside.unlink()
        raise


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` as UTF-8 to `path`: all of it, or nothing (see :func:`replace_file`).

    A pipe or a device, such as `/dev/stdout`, is written as it is: there is nothing to replace, and a file that
    took its name would end it for everybody.
    """
    target = Path(path)
    if target.exists() and not target.is_file():
        target.write_text(text, encoding="utf-8")
        return
    with replace_file(target) as beside:
        beside.write_text(text, encoding="utf-8")
