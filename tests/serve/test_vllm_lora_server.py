"""The example of a server for adapters, as a user starts it: a good adapter loaded over HTTP, bad ones refused."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from tests.serve import lora_adapters
from tests.serve.engine import model
from tests.serve.server import serving

EXAMPLE = Path(__file__).resolve().parents[2] / "examples/vllm_lora.sh"

if importlib.util.find_spec("vllm") is None:
    pytest.skip("vLLM is not installed: make test-serve", allow_module_level=True)

OPTIONS = ["--dtype", "float32", "--max-model-len", "256", "--max-num-seqs", "4", "--enforce-eager"]


@pytest.mark.timeout(1800)
def test_the_example(tmp_path: Path) -> None:
    base = model()
    tensors = lora_adapters.factors(base, 3, 16, strength=6.0)
    good = lora_adapters.write(tmp_path / "good", tensors, base)
    hostile = lora_adapters.write_hostile(tmp_path / "hostile", base)

    def said(name: str) -> str:
        asked = {"model": name, "prompt": "The capital of France is", "max_tokens": 12, "temperature": 0}
        status, text = server.status("/v1/completions", asked)
        assert status == 200, text
        return str(json.loads(text)["choices"][0]["text"])

    def load(name: str, path: str) -> tuple[int, str]:
        return server.status("/v1/load_lora_adapter", {"lora_name": name, "lora_path": path})

    command = ["sh", str(EXAMPLE), base, *OPTIONS]
    with serving(command, base, tmp_path / "server.log") as server:
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
