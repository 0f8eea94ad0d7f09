"""Merging an adapter into a whole checkpoint, on the disk: seconds and memory.

Ours ends with everything flushed to the disk; rivals leave what they wrote to the system. That is their advantage here.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from infer_accel import reference
from infer_accel._reference._floats import round_bfloat16
from infer_accel.bench.harness import Case, Contender, cost

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType
    from typing import Any, Self

    from numpy.typing import NDArray

    from infer_accel.bench.harness import Bench

__all__ = ["cases"]

_RANK = 16
_ALPHA = 32.0
#: What glibc must be told to keep memory instead of giving it back after each tensor.
_TUNED = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40), "MALLOC_TOP_PAD_": str(64 << 20)}
#: Tensors that are held against the specification, and rows of each.
_CHECKED_TENSORS = 6
_CHECKED_ROWS = 4
#: Space that a run needs, as a multiple of the model, and what must be left beside it.
_COPIES = 3
_SPARE = 4 << 30


@dataclass(frozen=True, slots=True)
class _Shape:
    """A model of Llama's architecture."""

    hidden: int
    inner: int
    layers: int
    heads: int
    key_heads: int
    vocabulary: int = 32000

    def projections(self) -> dict[str, tuple[int, int]]:
        """Return the linear layers of a block, ``[out, in]``."""
        narrow = self.hidden // self.heads * self.key_heads
        return {
            "self_attn.q_proj": (self.hidden, self.hidden),
            "self_attn.k_proj": (narrow, self.hidden),
            "self_attn.v_proj": (narrow, self.hidden),
            "self_attn.o_proj": (self.hidden, self.hidden),
            "mlp.gate_proj": (self.inner, self.hidden),
            "mlp.up_proj": (self.inner, self.hidden),
            "mlp.down_proj": (self.hidden, self.inner),
        }

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Return every tensor with its shape, in the order of the model."""
        found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocabulary, self.hidden)}
        for layer in range(self.layers):
            block = f"model.layers.{layer}"
            found |= {f"{block}.{name}.weight": shape for name, shape in self.projections().items()}
            for name in ("input_layernorm", "post_attention_layernorm"):
                found[f"{block}.{name}.weight"] = (self.hidden,)
        return found | {"model.norm.weight": (self.hidden,), "lm_head.weight": (self.vocabulary, self.hidden)}

    def config(self) -> dict[str, object]:
        """Return what transformers builds the model from."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_heads,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
        }


def cases(bench: Bench) -> Iterator[Case]:
    """Yield the rows of a whole model."""
    shape = _Shape(1024, 2816, 4, 16, 4, 8000) if bench.quick else _Shape(2048, 5632, 22, 32, 4)
    size = 2 * sum(int(np.prod(dims)) for dims in shape.tensors().values())
    formats = bench.rival("ml_dtypes")  # numpy has no name for bfloat16
    if formats is None or shutil.disk_usage(tempfile.gettempdir()).free < _COPIES * size + _SPARE:
        return
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="infer-accel-bench-")))
        base, adapter = (
            _write_model(folder / "base", shape, shards=4),
            _write_adapter(folder / "adapter", shape),
        )
        ours = stack.enter_context(_Child("ours", base, adapter, folder))
        rivals = {name: stack.enter_context(child) for name, child in _rivals(bench, base, adapter, folder)}
        title = f"{size / 1e9:.1f} GB bfloat16, 4 shards, rank {_RANK}, all linear layers"
        check = _Check(formats, shape, base, adapter)
        yield Case(
            name=f"merge a checkpoint of {title}",
            measure=cost("s", 1.0),
            work=1,
            ours=Contender("infer-accel", ours.merge, prepare=ours.clear, check=check.ours),
            peers=[
                Contender(name, child.merge, prepare=child.clear, check=check.present)
                for name, child in rivals.items()
            ],
            threads=os.cpu_count() or 1,
        )
        yield Case(
            name=f"memory of merging {title}",
            measure=cost("MB", 1e6),
            work=1,
            ours=Contender("infer-accel", lambda: None, check=lambda _: None, meter=lambda: ours.peak),
            peers=[
                Contender(name, lambda: None, meter=lambda child=child: child.peak)  # type: ignore[misc]
                for name, child in rivals.items()
                if child.peak
            ],
            threads=os.cpu_count() or 1,
        )


def _rivals(bench: Bench, base: Path, adapter: Path, folder: Path) -> Iterator[tuple[str, _Child]]:
    """Yield the ways that are installed, not started yet."""
    if find_spec("torch") and find_spec("safetensors"):
        yield "torch by shards", _Child("torch", base, adapter, folder)
    else:
        bench.rival("safetensors")
    if bench.quick:
        return
    if find_spec("torch") and find_spec("transformers") and find_spec("peft"):
        yield "PEFT", _Child("peft", base, adapter, folder)
        yield "PEFT, malloc tuned", _Child("peft", base, adapter, folder, _TUNED)
    else:
        bench.rival("peft")


class _Child:
    """A process that merges one way; started when it is entered."""

    def __init__(
        self, way: str, base: Path, adapter: Path, folder: Path, environment: dict[str, str] | None = None
    ) -> None:
        module = f"{__package__}._model_child"
        self._command = [sys.executable, "-m", module, way, str(base), str(adapter)]
        self._environment = os.environ | (environment or {})
        self._out = folder / f"out-{way}{'-tuned' if environment else ''}"
        self._process: subprocess.Popen[str] | None = None
        #: Bytes of memory above the interpreter's own, the most of all merges.
        self.peak = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            self._process.wait()
        self.clear()

    def clear(self) -> None:
        """Remove the last output."""
        shutil.rmtree(self._out, ignore_errors=True)

    def merge(self) -> Path:
        """Merge, and return where."""
        process = self._started()
        if process.stdin is not None:
            process.stdin.write(f"{self._out}\n")
            process.stdin.flush()
        self.peak = max(self.peak, float(self._line(process)))
        return self._out

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None:
            self._process = subprocess.Popen(  # noqa: S603 - this interpreter and a module of this package
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env=self._environment,
            )
            self._line(self._process)
        return self._process

    @staticmethod
    def _line(process: subprocess.Popen[str]) -> str:
        line = process.stdout.readline() if process.stdout is not None else ""
        if not line:
            message = f"the process ended with {process.wait()}"
            raise RuntimeError(message)
        return line.strip()


class _Check:
    """Holds an output against the base and the specification."""

    def __init__(self, formats: ModuleType, shape: _Shape, base: Path, adapter: Path) -> None:
        self._bfloat16, self._shape, self._base, self._adapter = formats.bfloat16, shape, base, adapter

    def ours(self, result: object) -> None:
        """Compare some rows of some tensors bit by bit, and all that should be the base's."""
        out = Path(str(result))
        names = list(self._shape.tensors())
        projections = [name for name in names if "_proj" in name]
        step = max(1, len(projections) // _CHECKED_TENSORS)
        for name in projections[::step]:
            self._compare(out, name)
        for name in names:
            if "_proj" not in name:
                np.testing.assert_array_equal(_read(out, name), _read(self._base, name))

    def present(self, result: object) -> None:
        """Only that something was written: rivals round more than once, and name files as they like."""
        shards = list(Path(str(result)).glob("*.safetensors"))
        written = sum(path.stat().st_size for path in shards)
        expected = sum(path.stat().st_size for path in self._base.glob("*.safetensors"))
        if not 0.9 < written / expected < 1.1:
            message = f"{written} bytes were written, {expected} expected"
            raise AssertionError(message)

    def _compare(self, out: Path, name: str) -> None:
        before, after = _read(self._base, name), _read(out, name)
        rows = np.unique(np.linspace(0, len(before) - 1, _CHECKED_ROWS, dtype=np.int64))
        module = f"base_model.model.{name.removesuffix('.weight')}"
        a = _read(self._adapter, f"{module}.lora_A.weight")
        b = _read(self._adapter, f"{module}.lora_B.weight")
        expected = before[rows]
        bfloat16 = self._bfloat16
        reference.lora.merge_weights(
            expected.view(bfloat16), a.view(bfloat16), b[rows].view(bfloat16), scaling=_ALPHA / _RANK
        )
        np.testing.assert_array_equal(after[rows], expected)


def _write_model(directory: Path, shape: _Shape, *, shards: int) -> Path:
    directory.mkdir()
    tensors = list(shape.tensors().items())
    total = sum(int(np.prod(dims)) for _, dims in tensors)
    parts: list[list[tuple[str, tuple[int, ...]]]] = [[] for _ in range(shards)]
    done = 0
    for name, dims in tensors:
        parts[min(shards - 1, done * shards // total)].append((name, dims))
        done += int(np.prod(dims))
    noise = _noise(max(int(np.prod(dims)) for _, dims in tensors), 0.02)
    weight_map: dict[str, str] = {}
    for number, part in enumerate(parts, 1):
        file = f"model-{number:05}-of-{shards:05}.safetensors"
        _write(directory / file, part, noise)
        weight_map |= dict.fromkeys((name for name, _ in part), file)
    index = {"metadata": {"total_size": 2 * total}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    (directory / "config.json").write_text(json.dumps(shape.config()))
    return directory


def _write_adapter(directory: Path, shape: _Shape) -> Path:
    directory.mkdir()
    tensors: list[tuple[str, tuple[int, ...]]] = []
    for layer in range(shape.layers):
        for name, (rows, columns) in shape.projections().items():
            module = f"base_model.model.model.layers.{layer}.{name}"
            tensors.append((f"{module}.lora_A.weight", (_RANK, columns)))
            tensors.append((f"{module}.lora_B.weight", (rows, _RANK)))
    _write(
        directory / "adapter_model.safetensors", tensors, _noise(_RANK * max(shape.inner, shape.hidden), 0.01)
    )
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": _RANK,
        "lora_alpha": _ALPHA,
        "bias": "none",
        "target_modules": sorted(name.rpartition(".")[2] for name in shape.projections()),
    }
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return directory


def _noise(count: int, size: float) -> NDArray[np.uint16]:
    """Return normal numbers in bfloat16; tensors begin at different places of them."""
    values = np.random.default_rng(0).standard_normal(count + 4096, np.float32) * np.float32(size)
    return round_bfloat16(values)


def _write(path: Path, tensors: list[tuple[str, tuple[int, ...]]], noise: NDArray[np.uint16]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, dims in tensors:
        start, end = end, end + 2 * int(np.prod(dims))
        header[name] = {"dtype": "BF16", "shape": list(dims), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for place, (_, dims) in enumerate(tensors):
            first = place * 97 % 4096
            noise[first : first + int(np.prod(dims))].tofile(file)


def _read(directory: Path, name: str) -> NDArray[np.uint16]:
    """Return the bits of a tensor, wherever it lies."""
    for path in sorted(directory.glob("*.safetensors")):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            entry = json.loads(file.read(length)).get(name)
        if entry is not None:
            start, end = entry["data_offsets"]
            bits = np.fromfile(path, np.uint16, (end - start) // 2, offset=8 + length + start)
            return bits.reshape(entry["shape"])
    message = f"no tensor {name} in {directory}"
    raise AssertionError(message)
