"""Loading: an adapter of rank 16 for every linear layer of a model of 8 billion parameters, read and validated.

Every contender reads all weights, looks for NaN and infinity, and holds the shapes against those of the base, whose
headers alone are read. The files lie in the page cache; the base's files are holes behind their headers.
"""

from __future__ import annotations

import json
import struct
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from infer_accel import lora
from infer_accel.bench.harness import Case, Contender, Floor, cost

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType
    from typing import Any

    from numpy.typing import NDArray

    from infer_accel.bench.harness import Bench

    Tensors = dict[str, NDArray[Any]]

__all__ = ["cases"]

_LAYERS = 32
_RANK = 16
_ALPHA = 32

#: Out and in of the linear layers of Llama-3-8B.
_SHAPES = {
    "self_attn.q_proj": (4096, 4096),
    "self_attn.k_proj": (1024, 4096),
    "self_attn.v_proj": (1024, 4096),
    "self_attn.o_proj": (4096, 4096),
    "mlp.gate_proj": (14336, 4096),
    "mlp.up_proj": (14336, 4096),
    "mlp.down_proj": (4096, 14336),
}
_PREFIX = "base_model.model."


def cases(bench: Bench) -> Iterator[Case]:
    """Yield the rows of loading."""
    from infer_accel._native import system

    threads = system.default_threads()
    # What PEFT writes, and what servers are given to save half of the memory.
    for dtype in ("float32",) if bench.quick else ("float32", "bfloat16"):
        with tempfile.TemporaryDirectory(prefix="infer-accel-bench-") as folder:
            yield _case(bench, Path(folder), dtype, threads)


def _modules() -> dict[str, tuple[int, int]]:
    return {
        f"model.layers.{layer}.{name}": shape for layer in range(_LAYERS) for name, shape in _SHAPES.items()
    }


def _case(bench: Bench, folder: Path, dtype: str, threads: int) -> Case:
    adapter, base = folder / "adapter", folder / "base"
    nbytes = _write_adapter(adapter, dtype)
    _write_base(base)

    def load() -> lora.Adapter:
        found = lora.Adapter.load(adapter)
        if problems := found.validate(base):
            raise AssertionError(problems[0])
        return found

    def check(result: object) -> None:
        if not isinstance(result, lora.Adapter) or len(result.layers) != len(_modules()):
            message = f"{result} came for {len(_modules())} modules"
            raise AssertionError(message)
        if result.nbytes != nbytes or result.scaling != _ALPHA / _RANK:
            message = f"{result.nbytes} bytes and scaling {result.scaling} came"
            raise AssertionError(message)

    peers: list[Contender] = []
    torch, safetensors = bench.rival("torch"), bench.rival("safetensors.torch")
    if torch is not None and safetensors is not None:
        peers.append(Contender("safetensors + torch", lambda: _by_torch(torch, safetensors, adapter, base)))
        if (peft := bench.rival("peft")) is not None:
            peers.append(_by_peft(torch, peft, adapter))
    return Case(
        name=f"load + validate rank {_RANK} {dtype} for 8B, {threads} threads",
        measure=cost("ms", 1e-3),
        work=1,
        ours=Contender("infer-accel", load, check=check),
        peers=peers,
        floor=Floor("copy bandwidth", 2 * nbytes / bench.limits.copy_bandwidth(threads=threads)),
        threads=threads,
    )


# Rivals -----------------------------------------------------------------------------------------------------


def _by_torch(torch: ModuleType, safetensors: ModuleType, adapter: Path, base: Path) -> dict[str, Any]:
    """Load, look and compare as one would with the libraries at hand."""
    from safetensors import safe_open

    shapes = {}
    for file in base.glob("*.safetensors"):
        with safe_open(file, "pt") as shard:
            for name in shard.keys():  # noqa: SIM118 - it is no dict
                shapes[name] = shard.get_slice(name).get_shape()
    json.loads((adapter / "adapter_config.json").read_text())
    tensors: dict[str, Any] = safetensors.load_file(adapter / "adapter_model.safetensors")
    for name, tensor in tensors.items():
        module, _, matrix = name.removeprefix(_PREFIX).removesuffix(".weight").rpartition(".")
        out, features = shapes[f"{module}.weight"]
        wanted = [_RANK, features] if matrix == "lora_A" else [out, _RANK]
        if list(tensor.shape) != wanted or not bool(torch.isfinite(tensor).all()):
            raise AssertionError(name)
    return tensors


def _by_peft(torch: ModuleType, peft: ModuleType, adapter: Path) -> Contender:
    """Load into a model whose weights nobody touches, which is made anew each time, untimed."""
    model: list[Any] = []

    def prepare() -> None:
        model[:] = [_skeleton(torch)]

    def run() -> object:
        loaded = peft.PeftModel.from_pretrained(model[0], adapter, low_cpu_mem_usage=True)
        for name, parameter in loaded.named_parameters():
            if "lora_" in name and not bool(torch.isfinite(parameter).all()):
                raise AssertionError(name)
        return loaded

    return Contender("PEFT", run, prepare=prepare)


def _skeleton(torch: ModuleType) -> Any:  # noqa: ANN401 - torch is not typed here
    """Return modules of the base's names and shapes, in memory that the system has not handed out yet."""
    root = torch.nn.Module()
    for path, (out, features) in _modules().items():
        parent = root
        *owners, last = path.split(".")
        for owner in owners:
            if not hasattr(parent, owner):
                parent.add_module(owner, torch.nn.Module())
            parent = getattr(parent, owner)
        linear = torch.nn.Linear(features, out, bias=False, device="meta", dtype=torch.bfloat16)
        parent.add_module(last, linear.to_empty(device="cpu"))
    return root


# Files ------------------------------------------------------------------------------------------------------


def _header(shapes: dict[str, tuple[int, int]], dtype: str, itemsize: int) -> tuple[bytes, int]:
    """Return the header of a safetensors file, and the bytes of data behind it."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, shape in shapes.items():
        end = start + shape[0] * shape[1] * itemsize
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
        start = end
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text, start


def _write_adapter(folder: Path, dtype: str) -> int:
    """Write a PEFT directory and return the bytes of its weights."""
    from infer_accel._reference._floats import round_bfloat16

    folder.mkdir()
    shapes = {}
    for path, (out, features) in _modules().items():
        shapes[f"{_PREFIX}{path}.lora_A.weight"] = (_RANK, features)
        shapes[f"{_PREFIX}{path}.lora_B.weight"] = (out, _RANK)
    stored, itemsize = ("F32", 4) if dtype == "float32" else ("BF16", 2)
    header, nbytes = _header(shapes, stored, itemsize)
    rng = np.random.default_rng(0)
    with (folder / "adapter_model.safetensors").open("wb") as file:
        file.write(header)
        for shape in shapes.values():
            values = rng.standard_normal(shape, np.float32) * np.float32(0.02)
            file.write((values if dtype == "float32" else round_bfloat16(values)).tobytes())
    config = {"peft_type": "LORA", "r": _RANK, "lora_alpha": _ALPHA, "target_modules": list(_modules())}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return nbytes


def _write_base(folder: Path) -> None:
    """Write four shards of a base: headers, and holes where the weights would be."""
    folder.mkdir()
    modules = list(_modules().items())
    where: dict[str, str] = {}
    for shard in range(4):
        name = f"model-{shard + 1:05}-of-00004.safetensors"
        shapes = {f"{path}.weight": shape for path, shape in modules[shard::4]}
        where |= dict.fromkeys(shapes, name)
        header, nbytes = _header(shapes, "BF16", 2)
        with (folder / name).open("wb") as file:
            file.write(header)
            file.truncate(len(header) + nbytes)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
