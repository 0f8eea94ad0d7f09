"""The example of a server, as a user starts it: asked over HTTP on the loopback interface, stopped, started again."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.serve.engine import ON_A_CPU, model, text

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples/vllm_connector.sh"

if importlib.util.find_spec("vllm") is None:
    pytest.skip("vLLM is not installed: make test-serve", allow_module_level=True)

START_SECONDS = 300.0
OPTIONS = ["--dtype", "float32", "--max-model-len", "2048", "--max-num-seqs", "4", "--enforce-eager"]


class Server:
    """A server that was started, and what can be asked of it."""

    def __init__(self, port: int) -> None:
        self.address = f"http://127.0.0.1:{port}"

    def get(self, path: str) -> str:
        with urllib.request.urlopen(self.address + path, timeout=60) as answer:
            return str(answer.read().decode())

    def complete(self, prompt: str, **options: Any) -> str:
        asked = {"model": model(), "prompt": prompt, "max_tokens": 16, "temperature": 0} | options
        request = urllib.request.Request(
            f"{self.address}/v1/completions", json.dumps(asked).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=300) as answer:
            return str(json.load(answer)["choices"][0]["text"])

    def metric(self, name: str) -> float:
        lines = re.findall(
            rf"^infer_accel_kv_connector_{name}_total{{.*}} (\S+)$", self.get("/metrics"), re.MULTILINE
        )
        assert len(lines) == 1, name
        return float(lines[0])


@contextlib.contextmanager
def serving(directory: Path, log: Path) -> Iterator[Server]:
    """Start the example on a free port, wait until it answers, stop it as an operator does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    command = ["sh", str(EXAMPLE), model(), str(directory), "--port", str(port), *OPTIONS]
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | ON_A_CPU | {"PATH": path},
            start_new_session=True,
        )
        try:
            server = Server(port)
            until = time.monotonic() + START_SECONDS
            while True:
                assert process.poll() is None, log.read_text()[-6000:]
                assert time.monotonic() < until, log.read_text()[-6000:]
                with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
                    server.get("/health")
                    break
                time.sleep(1)
            yield server
            process.send_signal(signal.SIGTERM)
            process.wait(120)
        finally:
            # Its engine and workers are processes of their own, in its session; none is left behind.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.timeout(1800)
def test_the_example(tmp_path: Path) -> None:
    prompt, other = text(5, 4000), text(6, 2500)
    with serving(tmp_path / "kv", tmp_path / "first.log") as server:
        expected = [server.complete(prompt), server.complete(other)]
        assert server.metric("saved_pages") >= 8
        assert server.metric("loaded_pages") == 0
    with serving(tmp_path / "kv", tmp_path / "second.log") as server:
        assert [server.complete(prompt), server.complete(other)] == expected
        loaded = server.metric("loaded_pages")
        assert loaded == server.metric("matched_blocks") >= 8
        # Another tenant finds nothing.
        assert server.complete(prompt, cache_salt="tenant") == expected[0]
        assert server.metric("loaded_pages") == loaded
        assert server.metric("failed_pages") == server.metric("tier_errors") == 0
