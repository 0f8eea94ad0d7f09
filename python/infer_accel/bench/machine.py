"""The record of the machine and of the run: without it a figure means nothing."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from infer_accel._native import VERSION, machine, system

if TYPE_CHECKING:
    from collections.abc import Sequence

    from infer_accel.bench.harness import Bench
    from infer_accel.bench.rows import Json, Row

__all__ = ["CHANGES", "describe_machine", "describe_run", "installed_versions"]

#: Ends the commit of a working tree in which a tracked file was changed.
CHANGES = ", with changes"


def describe_machine() -> dict[str, Json]:
    """Return what is known of this machine without measuring anything: CPU, SIMD tier, memory, software."""
    return {
        "infer_accel": VERSION,
        "commit": _commit(),
        "cpu": _cpu_model(),
        "cores": _usable_cores(),
        "simd": {"detected": system.detected_simd_tier(), "used": system.simd_tier()},
        "cpu_features": machine.cpu_features(),
        "threads": system.default_threads(),
        "memory_bytes": _memory_bytes(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "numpy": _version("numpy"),
    }


def describe_run(bench: Bench, rows: Sequence[Row]) -> dict[str, Json]:
    """Return the machine's record with what this run adds: date, rivals, limits, rounds, spread; its GPU."""
    gpu: dict[str, Json] = {} if bench.gpu is None else {"gpu": bench.gpu}
    return (
        describe_machine()
        | gpu
        | {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "quick": bench.quick,
            "rivals": dict(sorted(bench.rivals.versions.items())),
            "absent": dict(sorted(bench.rivals.absent.items())),
            "limits": {name: float(f"{value:.4g}") for name, value in bench.limits.measured.items()},
            "timing": {
                row.key: {"rounds": row.rounds, "spread": round(row.spread, 4), "limit": row.limit_name}
                for row in rows
            },
        }
    )


def installed_versions(names: Sequence[str]) -> dict[str, str | None]:
    """Return the version of each package, None where it is not installed; nothing is imported."""
    return {name: _version(name) if find_spec(name) is not None else None for name in names}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"


def _cpu_model() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith(("model name", "Model")):
                return line.partition(":")[2].strip()
    if sys.platform == "darwin":
        return _output(["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]) or platform.machine()
    return platform.processor() or platform.machine()


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_bytes() -> int | None:
    with suppress(AttributeError, OSError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None


def _commit() -> str | None:
    """Return the commit of the working tree that this package runs from, None where it was installed."""
    git = shutil.which("git")
    root = Path(__file__).resolve().parents[3]
    if git is None or not (root / ".git").exists():
        return None
    commit = _output([git, "-C", str(root), "rev-parse", "HEAD"])
    if commit is None:
        return None
    changed = _output([git, "-C", str(root), "status", "--porcelain", "--untracked-files=no"])
    return f"{commit}{CHANGES}" if changed else commit


def _output(command: list[str]) -> str | None:
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)  # noqa: S603
        return done.stdout.strip()
    return None
