"""Where the driver's copies begin to beat the kernel between host and device: a file in the user's cache."""

from __future__ import annotations

import functools
import json
import os
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING

from infer_accel._files import write_text

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["DEFAULT_BYTES", "forced", "read_threshold", "threshold_file", "write_threshold"]

#: Where batched copies overtake a kernel over PCIe 5: vLLM's measurement, to be replaced by this machine's own
#: (``infer-accel bench kvcache --autotune``).
DEFAULT_BYTES = 28 << 10

_KEY = "driver_copies_from_bytes"
_LARGEST = 1 << 30


_forced: ContextVar[int | None] = ContextVar("forced threshold", default=None)


@contextmanager
def forced(value: int) -> Iterator[None]:
    """Let a threshold hold for a while, whatever the file says: for measuring both ways."""
    token = _forced.set(value)
    try:
        yield
    finally:
        _forced.reset(token)


def threshold_file() -> Path:
    """Return where the thresholds of this user's devices are kept."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "infer-accel" / "devices.json"


def read_threshold(device: str, path: Path | None = None) -> int:
    """Return the threshold of a device by its name; the default where none was measured or the file is not usable."""
    chosen = _forced.get()
    return _read_once(device, path or threshold_file()) if chosen is None else chosen


@functools.cache
def _read_once(device: str, path: Path) -> int:
    value = _read_all(path).get(device, DEFAULT_BYTES)
    return value if 0 <= value <= _LARGEST else DEFAULT_BYTES


def _read_all(path: Path) -> dict[str, int]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(document, dict):
        return {}
    return {
        device: entry[_KEY]
        for device, entry in document.items()
        if isinstance(entry, dict) and type(entry.get(_KEY)) is int
    }


def write_threshold(device: str, value: int, path: Path | None = None) -> Path:
    """Keep what was measured of a device, and what the file says of others; the file is replaced as a whole."""
    path = path or threshold_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    known = _read_all(path) | {device: value}
    document = {name: {_KEY: bytes_} for name, bytes_ in sorted(known.items())}
    write_text(path, json.dumps(document, indent=2) + "\n")
    _read_once.cache_clear()
    return path
