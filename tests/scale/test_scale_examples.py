"""The examples of this part run, as a user would run them, and say something."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.scale.needs import package

if TYPE_CHECKING:
    from tests.scale.servers import Server

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "scale"


def run(name: str, folder: Path, *arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        cwd=folder,
        env=os.environ | environment,
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_shared_tier_in_a_directory(tmp_path: Path) -> None:
    package("obstore")
    assert "12 of 12 pages loaded, identical: True" in run("shared_tier.py", tmp_path)


def test_shared_tier_on_a_server(tmp_path: Path, server: Server) -> None:
    assert "12 of 12 pages loaded, identical: True" in run("shared_tier.py", tmp_path, server.url)


def test_count_with_polars(tmp_path: Path) -> None:
    package("polars")
    assert "tokens in all" in run("count_polars.py", tmp_path)
