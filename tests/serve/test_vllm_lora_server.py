"""The example of a server for adapters, as a user starts it: a good adapter loaded over HTTP, bad ones refused."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
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
from tests.serve import lora_adapters
from tests.serve.engine import ON_A_CPU, model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

EXAMPLE = Path(__file__).resolve().parents[2] / "examples/vllm_lora.sh"

if importlib.util.find_spec("vllm") is None:
    pytest.skip("vLLM is not installed: make test-serve", allow_module_level=True)

OPTIONS = ["--dtype", "float32", "--max-model-len", "256", "--max-num-seqs", "4", "--enforce-eager"]


@contextlib.contextmanager
def serving(log: Path) -> Iterator[Callable[..., tuple[int, str]]]:
    """Start the example on a free port; gives what asks it; stops it as an operator does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def ask(path: str, asked: dict[str, Any] | None = None) -> tuple[int, str]:
        data = None if asked is None else json.dumps(asked).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}{path}", data, {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    command = ["sh", str(EXAMPLE), model(), "--port", str(port), *OPTIONS]
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | ON_A_CPU | {"PATH": path},
            start_new_session=True,
        )
        try:
            until = time.monotonic() + 300
            while True:
                assert process.poll() is None, log.read_text()[-6000:]
                assert time.monotonic() < until, log.read_text()[-6000:]
                with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
                    ask("/health")
                    break
                time.sleep(1)
            yield ask
            process.send_signal(signal.SIGTERM)
            process.wait(120)
        finally:
            # Its engine and workers are processes of their own, in its session; none is left behind.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.timeout(1800)
def test_the_example(tmp_path: Path) -> None:
    base = model()
    tensors = lora_adapters.factors(base, 3, 16, strength=6.0)
    good = lora_adapters.write(tmp_path / "good", tensors, base)
    hostile = lora_adapters.write_hostile(tmp_path / "hostile", base)

    def said(name: str) -> str:
        asked = {"model": name, "prompt": "The capital of France is", "max_tokens": 12, "temperature": 0}
        status, text = ask("/v1/completions", asked)
        assert status == 200, text
        return str(json.loads(text)["choices"][0]["text"])

    def load(name: str, path: str) -> tuple[int, str]:
        return ask("/v1/load_lora_adapter", {"lora_name": name, "lora_path": path})

    with serving(tmp_path / "server.log") as ask:
        before = said(base)
        assert load("good", good)[0] == 200
        answer = said("good")
        assert answer != before
        for name, path in hostile.items():
            status, text = load(name, path)
            assert status >= 400, name
            assert "is refused: " in text, (name, text)
            refusal = lora_adapters.HOSTILE[name]
            assert refusal in text.replace('\\"', '"'), (name, text)
        assert (said(base), said("good")) == (before, answer)
