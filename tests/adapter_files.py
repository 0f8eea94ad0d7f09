"""Adapters and checkpoints as files, written without any library that would refuse what is wrong with them."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import pytest

from infer_accel import errors
from infer_accel.lora import Adapter

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    Array = NDArray[Any]

_NAMES = {
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float64": "F64",
    "int8": "I8",
    "int64": "I64",
}

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def safetensors_bytes(tensors: Mapping[str, Array], metadata: Mapping[str, str] | None = None) -> bytes:
    """Return a safetensors file."""
    header: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    start = 0
    for name, tensor in tensors.items():
        offsets = [start, start + tensor.nbytes]
        header[name] = {
            "dtype": _NAMES[tensor.dtype.name],
            "shape": list(tensor.shape),
            "data_offsets": offsets,
        }
        start += tensor.nbytes
    text = json.dumps(header).encode()
    data = b"".join(np.ascontiguousarray(tensor).tobytes() for tensor in tensors.values())
    return struct.pack("<Q", len(text)) + text + data


def write_adapter(folder: Path, tensors: Mapping[str, Array] | bytes, **config: object) -> Path:
    """Write a PEFT directory."""
    folder.mkdir(parents=True, exist_ok=True)
    data = tensors if isinstance(tensors, bytes) else safetensors_bytes(tensors)
    (folder / "adapter_model.safetensors").write_bytes(data)
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, **config}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def write_base(folder: Path, tensors: Mapping[str, Array], shards: int = 1, **config: object) -> Path:
    """Write a checkpoint directory."""
    folder.mkdir(parents=True, exist_ok=True)
    if shards == 1:
        (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    else:
        names = {name: f"model-{index % shards}.safetensors" for index, name in enumerate(tensors)}
        for file in set(names.values()):
            part = {name: tensors[name] for name in tensors if names[name] == file}
            (folder / file).write_bytes(safetensors_bytes(part))
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    if config:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def read_tensors(path: Path) -> dict[str, Array]:
    """Return the tensors of a safetensors file."""
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    formats = {stored: name for name, stored in _NAMES.items()}
    tensors = {}
    for name, entry in header.items():
        stored = formats[entry["dtype"]]
        dtype = BFLOAT16 if stored == "bfloat16" else np.dtype(stored)
        start, end = entry["data_offsets"]
        part = data[8 + length + start : 8 + length + end]
        tensors[name] = np.frombuffer(part, np.uint8).view(dtype).reshape(entry["shape"])
    return tensors


def ramp(*shape: int, seed: int = 0, dtype: Any = np.float32) -> Array:
    """Return small numbers that repeat late."""
    values = np.random.default_rng(seed).integers(-8, 8, shape) / 8
    array: Array = np.asarray(values).astype(dtype)
    return array


def pair(module: str, features: int = 6, out: int = 5, rank: int = 2, **more: Any) -> dict[str, Array]:
    """Return both matrices of a linear layer under PEFT's names."""
    prefix = f"base_model.model.{module}"
    return {
        f"{prefix}.lora_A.weight": ramp(rank, features, seed=1, **more),
        f"{prefix}.lora_B.weight": ramp(out, rank, seed=2, **more),
    }


def with_value(name: str, value: float) -> dict[str, Array]:
    """Return the pair of ``m.q`` with a value at the end of one of its two."""
    tensors = pair("m.q")
    tensors[name][-1, -1] = value
    return tensors


def codes(path: Path) -> list[str]:
    """Return the code of everything that is wrong; the first must be the error's own."""
    with pytest.raises(errors.AdapterError) as refused:
        Adapter.load(path)
    found = [problem.code for problem in refused.value.problems]
    assert refused.value.code == found[0]
    return found
