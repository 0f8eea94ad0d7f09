"""What these tests need: skipped where it is missing, except under `make test-scale`, which must miss nothing."""

from __future__ import annotations

import importlib
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

#: Set by `make test-scale`.
_COMPLETE = os.environ.get("INFER_ACCEL_SCALE") == "1"
_ROOT = Path(__file__).resolve().parents[2]
#: Where `make test-scale` unpacks a server that is not installed.
_UNPACKED = _ROOT / ".venv-scale" / "redis"


def package(name: str) -> Any:
    """Return a package, or skip what asks for it."""
    if _COMPLETE:
        return importlib.import_module(name)
    return pytest.importorskip(name, reason=f"{name} is not installed; `make test-scale` has it")


def server_command() -> list[str]:
    """Return the command of a server of Redis' protocol, or skip what asks for it."""
    for name in ("redis-server", "valkey-server"):
        found = shutil.which(name)
        if found:
            return [found]
    unpacked = _UNPACKED / "usr" / "bin" / "redis-check-rdb"
    if unpacked.exists():
        libraries = ":".join(sorted({str(file.parent) for file in _UNPACKED.rglob("*.so*")}))
        # One program does all: what it is called says what it is.
        return ["env", f"LD_LIBRARY_PATH={libraries}", str(unpacked.with_name("redis-server"))]
    message = "no redis-server or valkey-server on the PATH; `make test-scale` unpacks one"
    if _COMPLETE:
        raise FileNotFoundError(message)
    pytest.skip(message)
