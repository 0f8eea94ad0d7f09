"""Starts `engine.py`, and makes models of random weights for it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.serve.engine import model

ENGINE = Path(__file__).with_name("engine.py")

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
    subprocess.run([sys.executable, "-c", MAKE, made], check=True, capture_output=True, timeout=300)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja") if with_text else ():
        shutil.copy(Path(model()) / file, folder)
    return str(folder)


def run(
    steps: list[list[Any]], result: Path, block_size: int, connector: dict[str, Any] | None, **engine: Any
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
    ran = subprocess.run(
        [sys.executable, str(ENGINE), str(result)],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        env=os.environ | {"VLLM_LOGGING_LEVEL": "INFO"},
        timeout=900,
        check=False,
    )
    if ran.returncode == -signal.SIGKILL and steps[-1] == ["kill"]:
        return []
    assert ran.returncode == 0, ran.stderr[-6000:]
    answers: list[Any] = json.loads(result.read_text())
    return answers[1:]
