"""Starts a vLLM server on the loopback interface, as a user does, and stops or kills it with all its processes."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.serve import supervised
from tests.serve.engine import CONNECTOR, ON_A_CPU

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

START_SECONDS = 300.0
#: For SmolLM2, and models that are smaller still.
OPTIONS = ["--dtype", "float32", "--max-model-len", "2048", "--enforce-eager"]


def with_connector(**options: Any) -> list[str]:
    """Return the options of a server that uses the connector."""
    config = {
        "kv_connector": "InferAccelConnector",
        "kv_connector_module_path": CONNECTOR,
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": options,
    }
    return ["--kv-transfer-config", json.dumps(config)]


@dataclass(frozen=True)
class Answer:
    """What came of a prompt."""

    tokens: list[int]
    #: Tokens of the prompt that were not computed.
    cached: int
    #: Seconds to the first token.
    first: float


class Server:
    """A server that was started, and what can be asked of it."""

    def __init__(self, port: int, model: str, process: subprocess.Popen[bytes] | None = None) -> None:
        self.port, self._model, self._process = port, model, process
        self.address = f"http://127.0.0.1:{port}"

    def get(self, path: str) -> str:
        """Return a page."""
        with urllib.request.urlopen(self.address + path, timeout=60) as answer:
            return str(answer.read().decode())

    def status(self, path: str, asked: dict[str, Any]) -> tuple[int, str]:
        """Return the number and the text of an answer, which may be a refusal."""
        try:
            with self._open(path, asked) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def post(self, path: str, asked: dict[str, Any]) -> Any:
        """Return what is answered, of the model that is served."""
        with self._open(path, asked) as answer:
            return json.load(answer)

    def complete(self, prompt: str, **options: Any) -> str:
        """Return how a text goes on, greedily."""
        asked = {"prompt": prompt, "max_tokens": 16, "temperature": 0} | options
        return str(self.post("/v1/completions", asked)["choices"][0]["text"])

    def stream(self, prompt: list[int], answer: int) -> Answer:
        """Return the tokens that follow, greedily, and the time to the first of them."""
        asked = {
            "prompt": prompt,
            "max_tokens": answer,
            "temperature": 0,
            "ignore_eos": True,
            "return_token_ids": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        tokens: list[int] = []
        cached, first, start = 0, 0.0, time.perf_counter()
        with self._open("/v1/completions", asked) as lines:
            for line in lines:
                if not line.startswith(b"data: {"):
                    continue
                part = json.loads(line.removeprefix(b"data: "))
                for choice in part["choices"]:
                    tokens += choice.get("token_ids") or []
                if tokens and not first:
                    first = time.perf_counter() - start
                details = (part.get("usage") or {}).get("prompt_tokens_details") or {}
                cached = details.get("cached_tokens") or cached
        assert len(tokens) == answer, f"{len(tokens)} of {answer} tokens came"
        return Answer(tokens, cached, first)

    def metric(self, name: str) -> float:
        """Return a number of the connector."""
        lines = re.findall(
            rf"^infer_accel_kv_connector_{name}_total{{.*}} (\S+)$", self.get("/metrics"), re.MULTILINE
        )
        assert len(lines) == 1, name
        return float(lines[0])

    def processes(self) -> list[int]:
        """Return the server and its workers."""
        return supervised.descendants(self._started.pid)

    def memory(self) -> int:
        """Return the bytes that all of them have written to and that are in memory."""
        statuses = [Path(f"/proc/{process}/status").read_text() for process in self.processes()]
        return sum(int(found) << 10 for found in re.findall(r"RssAnon:\s+(\d+)", "".join(statuses)))

    def limit_files(self, largest: int) -> None:
        """Let no file become larger: for who writes it, the disk is full."""
        for process in self.processes():
            resource.prlimit(process, resource.RLIMIT_FSIZE, (largest, largest))

    def kill(self) -> None:
        """End all of it without a word."""
        supervised.end(self._started)

    def stop(self) -> None:
        """End it as an operator does."""
        self._started.send_signal(signal.SIGTERM)
        self._started.wait(120)

    @property
    def _started(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "somebody else started it"
        return self._process

    def _open(self, path: str, asked: dict[str, Any]) -> Any:
        request = urllib.request.Request(
            self.address + path,
            json.dumps({"model": self._model} | asked).encode(),
            {"Content-Type": "application/json"},
        )
        return urllib.request.urlopen(request, timeout=600)


def free_port() -> int:
    """Return a port of the loopback interface that nobody has."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextlib.contextmanager
def started(
    command: Sequence[str], log: Path, asked: Callable[[], object], environment: dict[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a server and wait until it answers; whatever happens, no process of it is left behind."""
    # What is installed beside Python is found by its name.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    with log.open("ab") as output:
        process = supervised.start(
            command, stdout=output, stderr=subprocess.STDOUT, env=os.environ | {"PATH": path} | environment
        )
    try:
        until = time.monotonic() + START_SECONDS
        while True:
            assert process.poll() is None, log.read_text()[-6000:]
            assert time.monotonic() < until, log.read_text()[-6000:]
            with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
                asked()
                break
            time.sleep(0.2)
        yield process
    finally:
        supervised.end(process)


@contextlib.contextmanager
def serving(
    command: list[str], model: str, log: Path, environment: dict[str, str] | None = None
) -> Iterator[Server]:
    """Start vLLM's server on a free port, and stop it as an operator does, unless it was killed."""
    server = Server(free_port(), model)
    command = [*command, "--port", str(server.port)]
    with started(command, log, lambda: server.get("/health"), ON_A_CPU | (environment or {})) as process:
        server = Server(server.port, model, process)
        yield server
        if process.poll() is None:
            server.stop()
