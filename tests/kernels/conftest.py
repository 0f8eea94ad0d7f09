"""Where Triton does not exist (it is made for Linux), there is nothing to test here.

Machine code is made in processes of its own, from when all tests are known until the first asks for it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import pytest

collect_ignore_glob = [] if find_spec("triton") else ["test_*.py"]

ROOT = Path(__file__).resolve().parents[2]
PROCESSES = 2
SECONDS = 280


class MachineCode:
    """Every form of every kernel, being compiled."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="triton-")
        self._found: dict[tuple[str, int], dict[str, Any]] = {}
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        environment["TRITON_CACHE_DIR"] = self._folder.name
        environment["PYTHONPATH"] = os.pathsep.join(
            [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        )
        # Files, not pipes: nobody reads while other tests run.
        self._running: list[tuple[subprocess.Popen[bytes], IO[bytes]]] = []
        for part in range(PROCESSES):
            file = tempfile.TemporaryFile()  # noqa: SIM115 - read when the process has ended
            command = [sys.executable, "-m", "tests.kernels.compiled", str(part), str(PROCESSES)]
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.PIPE
            )
            self._running.append((process, file))

    def wait(self) -> dict[tuple[str, int], dict[str, Any]]:
        """Return what was found, by variant and architecture."""
        while self._running:
            process, file = self._running[-1]
            _, said = process.communicate(timeout=SECONDS)
            assert process.returncode == 0, said.decode()[-4000:]
            file.seek(0)
            for entry in map(json.loads, file):
                self._found[entry["name"], entry["architecture"]] = entry
            file.close()
            self._running.pop()
        return self._found

    def close(self) -> None:
        for process, file in self._running:
            process.kill()
            process.communicate()
            file.close()
        self._folder.cleanup()


_machine_code: list[MachineCode] = []


@pytest.fixture(scope="session")
def machine_code() -> MachineCode:
    return _machine_code[0]


def asks_for_machine_code(item: pytest.Item) -> bool:
    return "machine_code" in getattr(item, "fixturenames", ())


def is_here(item: pytest.Item) -> bool:
    return item.path.parent == Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of the machine code behind the others of this folder."""
    ordered = iter(sorted(filter(is_here, items), key=asks_for_machine_code))
    items[:] = [next(ordered) if is_here(item) else item for item in items]


def pytest_collection_finish(session: pytest.Session) -> None:
    is_listed_only = session.config.option.collectonly
    if not is_listed_only and not _machine_code and any(map(asks_for_machine_code, session.items)):
        _machine_code.append(MachineCode())


def pytest_unconfigure() -> None:
    while _machine_code:
        _machine_code.pop().close()
