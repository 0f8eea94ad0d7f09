"""Small checkpoints and adapters on the disk, written plainly: what the merge of a checkpoint is held against."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from infer_accel import reference

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    Tensors = Mapping[str, np.ndarray[Any, Any]]

#: The names that the format gives to numpy's.
STORED = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "int64": "I64",
    "int32": "I32",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}
NAMED: dict[str, Any] = {
    stored: getattr(ml_dtypes, name) if hasattr(ml_dtypes, name) else np.dtype(name)
    for name, stored in STORED.items()
}


def write_safetensors(path: Path, tensors: Tensors, *, padding: int = 0) -> None:
    """Write tensors in the order of the mapping; `padding` blanks make the data begin at odd places."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": STORED[tensor.dtype.name],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode() + b" " * padding
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(np.ascontiguousarray(tensor).tobytes())


def read_safetensors(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Read all tensors of a file."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        flat = np.frombuffer(data[8 + length + start : 8 + length + end], NAMED[entry["dtype"]])
        tensors[name] = flat.reshape(entry["shape"])
    return tensors


def read_checkpoint(directory: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Read all tensors of a directory."""
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    for path in sorted(directory.glob("*.safetensors")):
        tensors |= read_safetensors(path)
    return tensors


def write_checkpoint(directory: Path, shards: Sequence[Tensors], *, padding: int = 0) -> Path:
    """Write a checkpoint with the small files that belong to one; of one shard without an index."""
    directory.mkdir(parents=True)
    count = len(shards)
    weight_map: dict[str, str] = {}
    for number, tensors in enumerate(shards, 1):
        name = "model.safetensors" if count == 1 else f"model-{number:05}-of-{count:05}.safetensors"
        write_safetensors(directory / name, tensors, padding=padding)
        weight_map |= dict.fromkeys(tensors, name)
    if count > 1:
        total = sum(tensor.nbytes for tensors in shards for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    config = {"architectures": ["TestModel"], "model_type": "llama", "torch_dtype": "bfloat16"}
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (directory / "tokenizer.json").write_text('{"version": "1.0"}\n')
    return directory


def write_adapter(
    directory: Path,
    layers: Mapping[str, tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]],
    *,
    alpha: float = 16.0,
    extra: Tensors | None = None,
    **options: object,
) -> Path:
    """Write a PEFT directory: modules and their ``lora_A``, ``lora_B``; `extra` tensors under their own names."""
    directory.mkdir(parents=True)
    rank = next(iter(layers.values()))[0].shape[0] if layers else 8
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": sorted({module.rpartition(".")[2] for module in layers}),
        "base_model_name_or_path": "base",
        "task_type": "CAUSAL_LM",
        "bias": "none",
        **options,
    }
    (directory / "adapter_config.json").write_text(json.dumps(config))
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    for module, (a, b) in layers.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = a
        tensors[f"base_model.model.{module}.lora_B.weight"] = b
    write_safetensors(directory / "adapter_model.safetensors", tensors | dict(extra or {}))
    return directory


def merged(
    weight: np.ndarray[Any, Any],
    deltas: Sequence[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], float]],
    dtype: Any = None,
) -> np.ndarray[Any, Any]:
    """Return what the specification makes of a weight: float32, delta after delta, and one rounding."""
    with np.errstate(all="ignore"):
        wide = weight.astype(np.float32)
        for a, b, scaling in deltas:
            reference.lora.merge_weights(wide, a, b, scaling=scaling)
        return wide.astype(weight.dtype if dtype is None else dtype)


def bits(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the bytes of an array, so that −0.0 and NaN can be compared."""
    return np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)


def small_model(
    rng: np.random.Generator,
    *,
    layers: int = 2,
    width: int = 48,
    dtype: Any = ml_dtypes.bfloat16,
) -> list[dict[str, np.ndarray[Any, Any]]]:
    """Return shards of a model with two projections a layer, of odd shapes, norms and an embedding."""

    def normal(*shape: int) -> np.ndarray[Any, Any]:
        return (rng.standard_normal(shape) * 0.05).astype(dtype)

    shards: list[dict[str, np.ndarray[Any, Any]]] = [{"model.embed_tokens.weight": normal(70, width)}]
    for layer in range(layers):
        name = f"model.layers.{layer}"
        shards.append(
            {
                f"{name}.self_attn.q_proj.weight": normal(width + 3, width),
                f"{name}.input_layernorm.weight": normal(width),
                f"{name}.mlp.up_proj.weight": normal(2 * width + 1, width),
            }
        )
    return shards


def small_adapter(
    rng: np.random.Generator,
    shards: Sequence[Tensors],
    *,
    rank: int = 4,
    dtype: Any = np.float32,
    size: float = 0.05,
) -> dict[str, tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """Return matrices for every projection of a small model."""
    layers = {}
    for tensors in shards:
        for name, weight in tensors.items():
            if "proj" in name:
                a = (rng.standard_normal((rank, weight.shape[1])) * size).astype(dtype)
                b = (rng.standard_normal((weight.shape[0], rank)) * size).astype(dtype)
                layers[name.removesuffix(".weight")] = (a, b)
    return layers
