"""Adapters of random weights for the tests of engines: good ones, and such as break others."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

_DTYPES = {"float32": "F32", "int8": "I8"}

#: What of a Llama's layer an adapter may change.
ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
ALL = (*ATTENTION, "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


def widths(model: str) -> dict[str, tuple[int, int]]:
    """Return features in and out of each linear layer of a Llama."""
    config = json.loads((Path(model) / "config.json").read_text())
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    head = config.get("head_dim") or hidden // heads
    narrow, wide = config["num_key_value_heads"] * head, heads * head
    inner = config["intermediate_size"]
    return {
        "self_attn.q_proj": (hidden, wide),
        "self_attn.k_proj": (hidden, narrow),
        "self_attn.v_proj": (hidden, narrow),
        "self_attn.o_proj": (wide, hidden),
        "mlp.gate_proj": (hidden, inner),
        "mlp.up_proj": (hidden, inner),
        "mlp.down_proj": (inner, hidden),
    }


def factors(
    model: str, seed: int, rank: int, modules: tuple[str, ...] = ALL, strength: float = 1.0
) -> dict[str, np.ndarray]:
    """Return the tensors of an adapter that changes what a model says."""
    drawn = np.random.default_rng(seed)
    layers = json.loads((Path(model) / "config.json").read_text())["num_hidden_layers"]
    sizes = widths(model)
    tensors = {}
    for layer in range(layers):
        for module in modules:
            inputs, outputs = sizes[module]
            name = f"base_model.model.model.layers.{layer}.{module}"
            tensors[f"{name}.lora_A.weight"] = drawn.normal(0, inputs**-0.5, (rank, inputs)).astype("f4")
            tensors[f"{name}.lora_B.weight"] = drawn.normal(
                0, strength * 0.2 * outputs**-0.5, (outputs, rank)
            ).astype("f4")
    return tensors


def packed(tensors: dict[str, np.ndarray]) -> bytes:
    """Return a safetensors file."""
    header, at = {}, 0
    for name, tensor in tensors.items():
        place = [at, at := at + tensor.nbytes]
        header[name] = {"dtype": _DTYPES[tensor.dtype.name], "shape": tensor.shape, "data_offsets": place}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + b"".join(tensor.tobytes() for tensor in tensors.values())


def write_base(folder: Path) -> str:
    """Write what the checks read of a tiny Llama; returns its directory."""
    folder.mkdir()
    config = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    (folder / "config.json").write_text(json.dumps(config))
    weights = {
        f"model.layers.{layer}.{module}.weight": np.zeros((outputs, inputs), "f4")
        for layer in range(2)
        for module, (inputs, outputs) in widths(str(folder)).items()
    }
    (folder / "model.safetensors").write_bytes(packed(weights))
    return str(folder)


def write(folder: Path, tensors: dict[str, np.ndarray] | bytes, model: str, **config: Any) -> str:
    """Write a PEFT directory; returns its path."""
    folder.mkdir(parents=True)
    data = tensors if isinstance(tensors, bytes) else packed(tensors)
    (folder / "adapter_model.safetensors").write_bytes(data)
    rank = 8 if isinstance(tensors, bytes) else next(iter(tensors.values())).shape[0]
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": model,
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": [module.rsplit(".", 1)[-1] for module in ALL],
        "bias": "none",
        **config,
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return str(folder)


#: What the refusal of each must name.
HOSTILE = {
    "nan": "NaN or infinite",
    "infinite": "NaN or infinite",
    "wrong_shape": "q_proj",
    "rank_mismatch": "rank",
    "half_a_pair": "lora_B",
    "unknown_module": "zzz_proj",
    "unknown_layer": "layers.999.self_attn.q_proj: the base has no module",
    "nothing_fits": "would change nothing",
    "rank_of_zero": "rank",
    "negative_rank": "rank",
    "huge_rank": "rank",
    "alpha_nan": "alpha",
    "alpha_text": "alpha",
    "truncated": "fetch it again",
    "huge_header": "header",
    "empty": "0 bytes",
    "integers": "int8",
    "no_configuration": "adapter_config.json",
    "a_pickle": "this is a pickle",
}


def write_hostile(root: Path, model: str) -> dict[str, str]:
    """Write each adapter of :data:`HOSTILE`; returns their directories."""
    good = factors(model, 0, 8, ATTENTION)
    first = min(good)
    prefix = "base_model.model.model.layers"
    whole = packed(good)
    inputs = good[first].shape[1]

    def changed(**more: np.ndarray) -> dict[str, np.ndarray]:
        return {**good, **more}

    def pair(name: str) -> dict[str, np.ndarray]:
        return {
            f"{name}.lora_A.weight": np.zeros((8, inputs), "f4"),
            f"{name}.lora_B.weight": np.zeros((inputs, 8), "f4"),
        }

    query = f"{prefix}.0.self_attn.q_proj.lora_A.weight"
    tensors: dict[str, dict[str, np.ndarray] | bytes] = {
        "nan": {**good, first: np.full_like(good[first], np.nan)},
        "infinite": {**good, first: np.full_like(good[first], np.inf)},
        "wrong_shape": {**good, query: np.zeros((8, 100), "f4")},
        "rank_mismatch": {
            name: tensor[:4].copy() if "lora_A" in name else tensor for name, tensor in good.items()
        },
        "half_a_pair": {name: tensor for name, tensor in good.items() if "lora_A" in name},
        "unknown_module": changed(**pair(f"{prefix}.0.self_attn.zzz_proj")),
        "unknown_layer": changed(**pair(f"{prefix}.999.self_attn.q_proj")),
        "nothing_fits": {
            name.replace("model.layers", "model.language_model.layers"): tensor
            for name, tensor in good.items()
        },
        "truncated": whole[: len(whole) // 2],
        "huge_header": struct.pack("<Q", 2**62) + whole[8:],
        "empty": b"",
        "integers": {name: np.zeros(tensor.shape, np.int8) for name, tensor in good.items()},
    }
    configs: dict[str, dict[str, Any]] = {
        "rank_of_zero": {"r": 0},
        "negative_rank": {"r": -8},
        "huge_rank": {"r": 10**9},
        "alpha_nan": {"lora_alpha": float("nan")},
        "alpha_text": {"lora_alpha": "16"},
    }
    written = {name: write(root / name, content, model) for name, content in tensors.items()}
    written |= {name: write(root / name, good, model, **config) for name, config in configs.items()}
    written["no_configuration"] = write(root / "no_configuration", good, model)
    (root / "no_configuration/adapter_config.json").unlink()
    written["a_pickle"] = write(root / "a_pickle", good, model)
    (root / "a_pickle/adapter_model.safetensors").rename(root / "a_pickle/adapter_model.bin")
    assert set(written) == set(HOSTILE)
    return written
