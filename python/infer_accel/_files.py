"""Files that somebody named.

Whole files or none: what is written lies beside its target and takes its name only when complete. What is read is a
plain file: opening a pipe would wait for its writer, perhaps for ever.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["read_plain", "replace_file", "write_text"]

#: Where the descriptors lie that a process was given, such as a shell's ``<(command)``: their writers are there.
_GIVEN = ("/proc/", "/dev/fd/")


def read_plain(path: str | os.PathLike[str], *, given_pipes: bool = False) -> bytes:
    """Return the content of a file.

    Parameters
    ----------
    path
        The file; links are followed.
    given_pipes
        Whether to read pipes that this process was started with (``/dev/stdin``, a shell's ``<(command)``), too.

    Raises
    ------
    OSError
        It cannot be read, or is a directory, a device or any other pipe.
    """
    if given_pipes and Path(path).is_fifo() and os.path.realpath(path).startswith(_GIVEN):
        return Path(path).read_bytes()
    flags = (
        os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)
    )
    handle = os.open(path, flags)
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        number = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
        what = "a directory" if stat.S_ISDIR(mode) else "a pipe or a device"
        raise OSError(number, f"it is {what}; name a plain file", os.fspath(path))
    with os.fdopen(handle, "rb") as file:
        return file.read()


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
