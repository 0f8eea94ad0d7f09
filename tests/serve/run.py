"""Starts `engine.py` and `lora_engine.py`, and makes models of random weights for it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.serve import supervised
from tests.serve.engine import model

DRIVERS = Path(__file__).parent

#: Makes a model: the class of its configuration, and what it says beside the sizes.
MAKE = """
import json, sys, torch, transformers
name, given, folder = json.loads(sys.argv[1])
sizes = dict(hidden_size=128, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4, head_dim=32,
             num_key_value_heads=2, vocab_size=997, max_position_embeddings=2048, sliding_window=96,
             bos_token_id=1, eos_token_id=2, initializer_range=0.2)
if name == "Gemma3TextConfig":
    sizes["layer_types"] = ["sliding_attention", "full_attention"] * 2
torch.manual_seed(0)
config = getattr(transformers, name)(**(sizes | given["sizes"]))
config.architectures = given.pop("architectures")
transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
"""


def make_tiny(config: str, given: dict[str, Any], folder: Path, *, with_text: bool = False) -> str:
    """Return the directory of a new model of four layers; with SmolLM2's tokenizer, where it is to have one."""
    sizes = {"vocab_size": 49_152} if with_text else {}
    made = json.dumps([config, given | {"sizes": sizes}, str(folder)])
    command = [sys.executable, "-c", MAKE, made]
    done = supervised.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=300)
    assert done.returncode == 0, done.stderr[-6000:]
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja") if with_text else ():
        shutil.copy(Path(model()) / file, folder)
    return str(folder)


def ask(
    driver: str, job: dict[str, Any], *, prefix: str = "", **variables: str
) -> tuple[list[Any] | None, str]:
    """Give a driver a job; return what came of its steps, and its log.

    Nothing came where the job is to kill the engine at last.
    """
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        ran = supervised.run(
            [*prefix.split(), sys.executable, str(DRIVERS / driver), str(result)],
            given=json.dumps(job),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | variables,
            timeout=900,
        )
        if ran.returncode == -signal.SIGKILL and job["steps"][-1] == ["kill"]:
            return None, ran.stderr
        assert ran.returncode == 0, ran.stderr[-6000:]
        # Without the seconds of its start.
        return json.loads(result.read_text())[1:], ran.stdout + ran.stderr


def run(
    steps: list[list[Any]], block_size: int, connector: dict[str, Any] | None, **engine: Any
) -> list[Any]:
    """Start an engine, do the steps, return what came of them; nothing if it was killed on the way."""
    arguments = {
        "model": engine.pop("model", None) or model(),
        "dtype": "float32",
        "max_model_len": 2048,
        "max_num_seqs": 4,
    }
    arguments |= {"block_size": block_size} | engine
    job = {"engine": arguments, "connector": connector, "steps": steps}
    return ask("engine.py", job, VLLM_LOGGING_LEVEL="INFO")[0] or []
