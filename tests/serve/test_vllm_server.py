"""The example of a server, as a user starts it: asked over HTTP on the loopback interface, stopped, started again."""

from __future__ import annotations

import importlib.util
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.serve.engine import model, text
from tests.serve.server import OPTIONS, serving

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples/vllm_connector.sh"

if importlib.util.find_spec("vllm") is None:
    pytest.skip("vLLM is not installed: make test-serve", allow_module_level=True)


#: What a test does that is killed as soon as its server answers.
KILLED = """
import os, sys
from pathlib import Path
from tests.serve.engine import model
from tests.serve.server import OPTIONS, serving
command = ["vllm", "serve", model(), "--host", "127.0.0.1", *OPTIONS]
with serving(command, model(), Path(sys.argv[1])) as server:
    sys.stdout.write(" ".join(map(str, server.processes())))
    sys.stdout.flush()
    os.kill(os.getpid(), 9)
"""


def command(directory: Path) -> list[str]:
    return ["sh", str(EXAMPLE), model(), str(directory), *OPTIONS, "--max-num-seqs", "4"]


@pytest.mark.timeout(1800)
def test_the_example(tmp_path: Path) -> None:
    prompt, other = text(5, 4000), text(6, 2500)
    with serving(command(tmp_path / "kv"), model(), tmp_path / "first.log") as server:
        expected = [server.complete(prompt), server.complete(other)]
        assert server.metric("saved_pages") >= 8
        assert server.metric("loaded_pages") == 0
    with serving(command(tmp_path / "kv"), model(), tmp_path / "second.log") as server:
        assert [server.complete(prompt), server.complete(other)] == expected
        loaded = server.metric("loaded_pages")
        assert loaded == server.metric("matched_blocks") >= 8
        # Another tenant finds nothing.
        assert server.complete(prompt, cache_salt="tenant") == expected[0]
        assert server.metric("loaded_pages") == loaded
        assert server.metric("failed_pages") == server.metric("tier_errors") == 0


@pytest.mark.timeout(1800)
def test_nothing_outlives_a_test_that_is_killed(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "log")], cwd=ROOT, stdout=subprocess.PIPE, check=False
    )
    assert done.returncode == -signal.SIGKILL
    processes = [int(word) for word in done.stdout.split()]
    assert len(processes) >= 2, "a server, and the engine that it has started"
    until = time.monotonic() + 30
    while any(Path(f"/proc/{process}").exists() for process in processes):
        assert time.monotonic() < until
        time.sleep(0.1)
