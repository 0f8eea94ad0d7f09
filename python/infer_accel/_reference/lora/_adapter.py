"""The specification of adapters in memory: what they are made of, their digest, and combining them.

Files are the native core's alone: reading strangers' bytes strictly is no arithmetic that could be specified here.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections import defaultdict
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from infer_accel import _backend
from infer_accel._reference._floats import read, widen_bfloat16
from infer_accel._reference.lora._combine import Term, combine_module
from infer_accel.errors import AdapterError, ArgumentError, DTypeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Float32 = NDArray[np.float32]
    Parts = tuple[str, list[int], bytes]

__all__ = ["Adapter", "combine"]

_SIZES = {"float32": 4, "float16": 2, "bfloat16": 2}
_MAX_RANK = 16384
#: Which settings a method takes; those but the rank it needs.
_SETTINGS: dict[str, tuple[str, ...]] = {
    "linear": (),
    "cat": (),
    "svd": ("rank",),
    "ties": ("density",),
    "dare_linear": ("density", "seed"),
    "dare_ties": ("density", "seed"),
    "magnitude_prune": ("density",),
}


class Tensor(bytes):
    """The bytes of a tensor, with its format and its shape."""

    dtype: str
    shape: list[int]

    @classmethod
    def of(cls, dtype: str, shape: Sequence[int], data: bytes) -> Tensor:
        if dtype not in _SIZES:
            message = "weights of an adapter are float32, float16 or bfloat16: convert them first"
            raise DTypeError(message, code="dtype.unsupported")
        tensor = cls(data)
        tensor.dtype, tensor.shape = dtype, list(shape)
        return tensor

    @property
    def nbytes(self) -> int:
        return len(self)

    def array(self) -> NDArray[np.generic]:
        """Return the elements as an array of their own format."""
        if self.dtype != "bfloat16":
            return np.frombuffer(self, self.dtype).reshape(self.shape)
        import ml_dtypes  # noqa: PLC0415 - optional, and needed for this format alone

        return np.frombuffer(self, ml_dtypes.bfloat16).reshape(self.shape)

    def numbers(self) -> Float32:
        """Return the elements as float32."""
        if self.dtype == "bfloat16":
            return widen_bfloat16(np.frombuffer(self, np.uint16)).reshape(self.shape)
        return read(np.frombuffer(self, self.dtype), "a tensor").reshape(self.shape)


class Layer:
    """A low-rank update of a linear or convolutional module."""

    component = ""
    fan_in_fan_out = False
    magnitude = None
    bias = None

    def __init__(self, path: str, alpha: float, lora_a: Tensor, lora_b: Tensor, *, use_rslora: bool) -> None:
        self.path, self.alpha, self.lora_a, self.lora_b = path, alpha, lora_a, lora_b
        self.rank = lora_a.shape[0]
        self.kind = "linear" if len(lora_a.shape) == 2 else "convolution"
        divisor = math.sqrt(self.rank) if use_rslora else self.rank
        self.scaling = alpha / divisor if divisor else math.nan

    def faults(self) -> list[tuple[str, str]]:
        """Return what is wrong with it: codes and texts."""
        a, b = self.lora_a, self.lora_b
        found = [
            ("adapter.not_finite", f"{self.path}.{name}: it holds numbers that are not finite")
            for name, tensor in (("lora_A", a), ("lora_B", b))
            if not np.isfinite(tensor.numbers()).all()
        ]
        kernel = b.shape[2:]
        if not 2 <= len(a.shape) <= 5 or len(a.shape) != len(b.shape) or any(side != 1 for side in kernel):
            return [*found, ("adapter.shape", f"{self.path}: shapes {a.shape} and {b.shape} came")]
        if a.shape[0] != b.shape[1] or not 1 <= self.rank <= _MAX_RANK:
            return [*found, ("adapter.rank", f"{self.path}: ranks {a.shape[0]} and {b.shape[1]} came")]
        if not (math.isfinite(self.alpha) and abs(self.scaling) <= float(np.finfo(np.float32).max)):
            found.append(("adapter.alpha", f"{self.path}: an alpha of {self.alpha} came"))
        return found

    def matrices(self) -> tuple[Float32, Float32]:
        """Return both factors as matrices, kernels flattened."""
        a, b = self.lora_a.numbers(), self.lora_b.numbers()
        return a.reshape(self.rank, -1), b.reshape(-1, self.rank)

    def lines(self) -> list[str]:
        """Return what the digest reads of it, beside bytes."""
        bits = struct.unpack(">Q", struct.pack(">d", self.scaling))[0]
        path = json.dumps(self.path, ensure_ascii=False)
        named = (("lora_A.weight", self.lora_a), ("lora_B.weight", self.lora_b))
        tensors = [f"tensor {name} {tensor.dtype} {tensor.shape}" for name, tensor in named]
        return [f'layer {path} "" false {self.kind} 0 {self.rank} {bits:016x} false', *tensors]


class Adapter:
    """An adapter in memory, ordered by module."""

    def __init__(self, layers: Sequence[Layer], *, use_rslora: bool) -> None:
        faults = [fault for layer in layers for fault in layer.faults()]
        if faults:
            message = f"an adapter in memory is refused: {'; '.join(text for _, text in faults)}"
            raise AdapterError(message, code=faults[0][0])
        self._layers = sorted(layers, key=lambda layer: layer.path)
        self._use_rslora = use_rslora

    @staticmethod
    def from_parts(parts: Sequence[tuple[str, float, Parts, Parts]], use_rslora: bool) -> Adapter:  # noqa: FBT001 - as the core
        """Return an adapter of arrays: path, alpha, and both factors of each module."""
        layers = [
            Layer(path, alpha, Tensor.of(*a), Tensor.of(*b), use_rslora=use_rslora)
            for path, alpha, a, b in parts
        ]
        return Adapter(layers, use_rslora=use_rslora)

    @property
    def rank(self) -> int:
        return max((layer.rank for layer in self._layers), default=0)

    @property
    def nbytes(self) -> int:
        return sum(layer.lora_a.nbytes + layer.lora_b.nbytes for layer in self._layers)

    def layers(self) -> list[Layer]:
        return list(self._layers)

    def replacements(self) -> list[tuple[str, str, Tensor]]:
        return []

    def digest(self) -> str:
        """Return the SHA-256 of a text that names each part, and of the SHA-256 of each tensor."""
        lines = ["infer-accel adapter 1", *(line for layer in self._layers for line in layer.lines())]
        whole = hashlib.sha256("\n".join(lines).encode())
        for layer in self._layers:
            for tensor in (layer.lora_a, layer.lora_b):
                whole.update(hashlib.sha256(tensor).digest())
        return whole.hexdigest()

    def config(self) -> list[tuple[str, str]]:
        """Return what a configuration would say."""
        alpha = self._layers[0].alpha if self._layers else 0.0
        return [
            ("r", str(self.rank)),
            ("lora_alpha", f"{alpha:g}"),
            ("use_rslora", str(self._use_rslora).lower()),
        ]

    def resolve(self, base: str, *, follow_symlinks: bool) -> NoReturn:
        del base, follow_symlinks
        _backend.refuse_files()

    def validate(self, base: str, *, follow_symlinks: bool) -> NoReturn:
        del base, follow_symlinks
        _backend.refuse_files()

    def save(self, path: str) -> NoReturn:
        del path
        _backend.refuse_files()


def combine(
    adapters: Sequence[Adapter],
    weights: Sequence[float],
    *,
    method: str,
    density: float | None = None,
    rank: int | None = None,
    seed: int | None = None,
    num_threads: int | None = None,
) -> Adapter:
    """Make one adapter out of several; its scaling is 1."""
    del num_threads
    given = {"density": density, "rank": rank, "seed": seed}
    _check(adapters, weights, method, given)
    modules: dict[str, list[tuple[int, Layer]]] = defaultdict(list)
    for index, adapter in enumerate(adapters):
        for layer in adapter.layers():
            modules[layer.path].append((index, layer))
    combined = []
    for path, parts in modules.items():
        _check_module(path, [layer for _, layer in parts], method)
        terms = [Term(index, *layer.matrices(), layer.scaling, weights[index]) for index, layer in parts]
        settings = {name: value for name, value in given.items() if value is not None}
        a, b = combine_module(path, terms, method=method, **settings)  # type: ignore[arg-type]
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            message = f"{path}: the combined matrices go beyond what float32 can hold: use smaller weights"
            raise AdapterError(message, code="adapter.combine")
        like = parts[0][1]
        shapes = [len(a), *like.lora_a.shape[1:]], [len(b), len(a), *like.lora_b.shape[2:]]
        factors = [
            Tensor.of("float32", shape, np.ascontiguousarray(matrix, np.float32).tobytes())
            for shape, matrix in zip(shapes, (a, b), strict=True)
        ]
        combined.append(Layer(path, float(len(a)), *factors, use_rslora=False))
    return Adapter(combined, use_rslora=False)


def _check(
    adapters: Sequence[Adapter], weights: Sequence[float], method: str, given: dict[str, float | int | None]
) -> None:
    problems = []
    if method not in _SETTINGS:
        problems.append(f"method={method!r} came; allowed: {', '.join(_SETTINGS)}")
    for name, value in given.items():
        is_taken = name in _SETTINGS.get(method, given)
        if value is not None and not is_taken:
            problems.append(f"{name} came, and {method} has no use for it: leave it out")
        if value is None and is_taken and name != "rank" and method in _SETTINGS:
            problems.append(f"{method} needs {name}: pass it")
    density, rank = given["density"], given["rank"]
    if density is not None and not 0 < density <= 1:
        problems.append(f"density={density} came; it must be above 0 and at most 1")
    if rank is not None and rank < 1:
        problems.append(f"rank={rank} came; it must be 1 or more")
    if not adapters:
        problems.append("no adapter came: pass one or more")
    if len(adapters) != len(weights):
        problems.append(f"{len(adapters)} adapters and {len(weights)} weights came")
    problems += [f"a weight of {weight} came" for weight in weights if not math.isfinite(weight)]
    if problems:
        message = f"adapters cannot be combined: {'; '.join(problems)}"
        raise ArgumentError(message, code="argument.combine")


def _check_module(path: str, layers: Sequence[Layer], method: str) -> None:
    sizes = {(*layer.lora_a.shape[1:], -1, *layer.lora_b.shape[:1]) for layer in layers}
    ranks = {layer.rank for layer in layers}
    if len(sizes) > 1 or (len(ranks) > 1 and method not in {"cat", "svd"}):
        message = (
            f"adapters cannot be combined: {path}: shapes differ, or ranks that {method} needs to be equal"
        )
        raise AdapterError(message, code="adapter.combine")
