"""Merging adapters into the layers of a model on a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from infer_accel import lora
from infer_accel.bench.cuda.device import require
from infer_accel.bench.cuda.plan import DeviceRow
from infer_accel.bench.harness import Case, Contender, Floor, cost
from infer_accel.kernels import merge_weights as merging

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

    from infer_accel.bench.cuda.device import Gpu
    from infer_accel.bench.harness import Bench

    Adapter = tuple[torch.Tensor, torch.Tensor, float]
    Check = Callable[[object], None]
    Prepare = Callable[[], None]

__all__ = ["rows"]

#: Of a layer of an 8B Llama: outputs, inputs.
_SHAPES = (
    (4096, 4096),
    (1024, 4096),
    (1024, 4096),
    (4096, 4096),
    (14336, 4096),
    (14336, 4096),
    (4096, 14336),
)
_REHEARSED = ((20, 24), (5, 8))
_LAYERS = 32
_SCALING = 0.5
#: A call takes milliseconds: two of them show that one adds to what the other left.
_CALLS = 2
_RANKS = (8, 16, 32, 64, 128, 256)
#: Rank 64 and more go by tensor cores, with float32 matrices in chains all the way.
_FORMATS = (
    *((torch.bfloat16, torch.bfloat16, rank) for rank in _RANKS),
    (torch.float16, torch.float16, 16),
    (torch.bfloat16, torch.float32, 16),
    (torch.bfloat16, torch.float32, 64),
)
_QUICK_FORMATS = ((torch.bfloat16, torch.bfloat16, 16), (torch.bfloat16, torch.bfloat16, 64))
_CODES = ((torch.float8_e4m3fn, 16), (torch.float8_e4m3fn, 64), (torch.float8_e5m2, 16))
#: Codes take turns, so that a weight comes from memory: each of the largest of a layer's matrices.
_CODE_SHAPE, _REHEARSED_CODES = (14336, 4096), (130, 20)
_CODE_SETS, _REHEARSED_SETS = 8, 1
_UNITS = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


@dataclass(frozen=True, slots=True)
class _Model:
    """What is merged: the shapes of all layers, and the formats."""

    shapes: tuple[tuple[int, int], ...]
    weight: torch.dtype
    adapter: torch.dtype
    rank: int

    @property
    def name(self) -> str:
        """How the row is called."""
        formats = _plain(self.weight)
        if self.adapter != self.weight:
            formats += f" by {_plain(self.adapter)}"
        return f"cuda: merge {len(self.shapes)} layers of an 8B model, {formats}, rank {self.rank}"

    @property
    def weight_bytes(self) -> int:
        """Return the bytes of all weights."""
        return int(self.weight.itemsize) * sum(rows * columns for rows, columns in self.shapes)

    @property
    def adapter_bytes(self) -> int:
        """Return the bytes of all adapters."""
        return int(self.adapter.itemsize) * self.rank * sum(map(sum, self.shapes))

    @property
    def device_bytes(self) -> int:
        """Return what a row needs: weights, bases, adapters, and five float32 matrices of a layer for checks."""
        largest = 4 * max(rows * columns for rows, columns in self.shapes)
        return 2 * self.weight_bytes + 2 * self.adapter_bytes + 5 * largest


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def rows(bench: Bench, gpu: Gpu) -> Iterator[DeviceRow]:
    """Yield merges of all layers of a model, rank by rank, and of weights of eight bits."""
    for weight, adapter, rank in _QUICK_FORMATS if bench.quick else _FORMATS:
        model = _fitting(bench, gpu, weight, adapter, rank)
        yield DeviceRow(model.name, model.device_bytes, partial(_many, bench, gpu, model))
    shape = _code_shape(gpu)
    for codes, rank in _CODES[:1] if bench.quick else _CODES:
        name = f"cuda: merge {shape[0]}x{shape[1]} {_plain(codes)} by bfloat16, blocks of 128, rank {rank}"
        size = shape[0] * shape[1]
        room = 2 * _CODE_SETS * size + 8 * 4 * size
        yield DeviceRow(name, room, partial(_eight_bits, bench, gpu, name, codes, rank))


def _code_shape(gpu: Gpu) -> tuple[int, int]:
    return _CODE_SHAPE if gpu.is_real else _REHEARSED_CODES


def _fitting(bench: Bench, gpu: Gpu, weight: torch.dtype, adapter: torch.dtype, rank: int) -> _Model:
    """Return as many layers as the device has room for: all 32 need 31 GB, or 34 at rank 256."""
    if not gpu.is_real:
        return _Model(_REHEARSED, weight, adapter, rank)
    layers = 2 if bench.quick else _LAYERS
    while layers > 1 and _Model(_SHAPES * layers, weight, adapter, rank).device_bytes > gpu.total_bytes():
        layers //= 2
    return _Model(_SHAPES * layers, weight, adapter, rank)


@dataclass(frozen=True, slots=True)
class _Layers:
    """The tensors of a model's layers. `bases` is what `weights` are before each sample."""

    model: _Model
    weights: list[torch.Tensor]
    bases: list[torch.Tensor]
    adapters: list[Adapter]
    #: What the CPU makes of one layer of each shape.
    wanted: list[torch.Tensor]

    @classmethod
    def random(cls, gpu: Gpu, model: _Model) -> _Layers:
        bases = [
            gpu.random(*shape, dtype=model.weight, seed=i, size=0.02) for i, shape in enumerate(model.shapes)
        ]
        adapters = [
            (
                gpu.random(model.rank, shape[1], dtype=model.adapter, seed=1000 + i, size=0.02),
                gpu.random(shape[0], model.rank, dtype=model.adapter, seed=2000 + i, size=0.02),
                _SCALING,
            )
            for i, shape in enumerate(model.shapes)
        ]
        some = range(min(len(_SHAPES), len(bases)))
        wanted = [bases[i].cpu().clone() for i in some] if _is_exact(model) else []
        for weight, (a, b, scaling) in zip(wanted, adapters, strict=False):
            for _ in range(_CALLS):
                lora.merge_weights(weight, a.cpu(), b.cpu(), scaling=scaling)
        return cls(model, [base.clone() for base in bases], bases, adapters, wanted)

    def restore(self) -> None:
        """Forget what was merged."""
        for weight, base in zip(self.weights, self.bases, strict=True):
            weight.copy_(base)

    def require_near(self, _: object) -> None:
        """Require that each weight of each layer is what all calls together make of it, but for their roundings."""
        unit = _UNITS[self.model.weight]
        for weight, base, (a, b, scaling) in zip(self.weights, self.bases, self.adapters, strict=True):
            aim = torch.addmm(base.float(), b.float(), a.float(), alpha=_CALLS * scaling)
            distance = aim.sub(weight.float()).abs_()
            bound = aim.abs_().add_(0.01).mul_(2 * _CALLS * unit)
            require(bool((distance <= bound).all()), "weights are too far off")

    def require_equal(self, _: object) -> None:
        """Require the same of all layers, and of one of each shape the bits of the CPU."""
        self.require_near(_)
        for weight, aim in zip(self.weights, self.wanted, strict=False):
            require(torch.equal(weight.cpu(), aim), "the bits are not those of the CPU")


def _is_exact(model: _Model) -> bool:
    return model.rank <= merging.EXACT_RANK or model.adapter is torch.float32


def _many(bench: Bench, gpu: Gpu, model: _Model) -> Case:
    """Merge all layers in one call."""
    layers = _Layers.random(gpu, model)
    weights, adapters = layers.weights, layers.adapters

    def contender(name: str, call: Callable[[int], object], check: Check | None) -> Contender:
        return gpu.contender(name, call, calls=_CALLS, check=check, prepare=layers.restore)

    def added(_: int) -> None:
        for weight, (a, b, scaling) in zip(weights, adapters, strict=True):
            weight.addmm_(b, a, alpha=scaling)

    def twice_rounded(_: int) -> None:
        for weight, (a, b, scaling) in zip(weights, adapters, strict=True):
            weight.add_((b @ a) * scaling)

    # Rivals round what lies between as well: they are checked with the bound, and may be left out by it.
    near = layers.require_near
    peers = [contender("torch W.add_((B @ A) * s)", twice_rounded, near)]
    if model.weight is model.adapter:  # addmm_ takes one format
        peers.append(contender("torch addmm_", added, near))
    if (peft := bench.rival("peft")) is not None:
        peers.append(contender("PEFT", _by_peft(peft, layers), near))
    moved = 2 * model.weight_bytes + model.adapter_bytes
    return Case(
        name=model.name,
        measure=cost("ms", 1e-3),
        work=1,
        ours=contender(
            "infer-accel",
            lambda _: merging.merge_many(weights, adapters),
            layers.require_equal if _is_exact(model) else near,
        ),
        peers=peers,
        floor=Floor("device copy", moved / gpu.copy_rate(bench.limits)),
    )


def _by_peft(peft: ModuleType, layers: _Layers) -> Callable[[int], None]:
    """Return PEFT's own merge of all layers, in the same memory, with adapters in the format that ours has."""
    model = layers.model
    linear = torch.nn.ModuleDict(
        {
            f"layer{i}": torch.nn.Linear(columns, rows, bias=False, device="meta", dtype=model.weight)
            for i, (rows, columns) in enumerate(model.shapes)
        }
    )
    config = peft.LoraConfig(r=model.rank, lora_alpha=_SCALING * model.rank, target_modules=list(linear))
    wrapped = peft.get_peft_model(torch.nn.ModuleDict({"layers": linear}), config, low_cpu_mem_usage=True)
    modules = list(wrapped.base_model.model["layers"].values())
    for module, weight, (a, b, _) in zip(modules, layers.weights, layers.adapters, strict=True):
        for owner, tensor in (
            (module.base_layer, weight),
            (module.lora_A["default"], a),
            (module.lora_B["default"], b),
        ):
            owner.weight = torch.nn.Parameter(tensor, requires_grad=False)

    def merge(_: int) -> None:
        for module in modules:
            module.merged_adapters.clear()  # it does not merge the same twice
            module.merge()

    return merge


def _eight_bits(bench: Bench, gpu: Gpu, name: str, codes: torch.dtype, rank: int) -> Case:
    """Merge into weights of eight bits with a scale for each block, which stays."""
    lines, width = _code_shape(gpu)
    a = gpu.random(rank, width, dtype=torch.bfloat16, seed=1, size=0.02)
    b = gpu.random(lines, rank, dtype=torch.bfloat16, seed=2, size=0.02)
    blocks = (-(-lines // 128), -(-width // 128))
    scale = gpu.random(*blocks, dtype=torch.float32, seed=3).abs_().add_(0.5).mul_(1e-4)
    wide = scale.repeat_interleave(128, 0)[:lines].repeat_interleave(128, 1)[:, :width].contiguous()
    base = (
        gpu.random(lines, width, dtype=torch.float32, seed=4, size=0.02)
        .div_(wide)
        .clamp_(-400, 400)
        .to(codes)
    )
    sets = _CODE_SETS if gpu.is_real else _REHEARSED_SETS
    weights = [base.clone() for _ in range(sets)]
    limit = float(torch.finfo(codes).max)
    wanted = base.cpu().clone()
    lora.merge_weights(wanted, a.cpu(), b.cpu(), scaling=_SCALING, weight_scale=scale.cpu(), scales="keep")

    def restore() -> None:
        for weight in weights:
            weight.copy_(base)

    def ours(turn: int) -> None:
        merging.merge_weights(weights[turn], a, b, scaling=_SCALING, weight_scale=scale)

    def decoded(turn: int) -> None:
        merged = torch.addmm(weights[turn].float() * wide, b.float(), a.float(), alpha=_SCALING)
        weights[turn].copy_((merged / wide).clamp_(-limit, limit))

    def equal(_: object) -> None:
        for weight in weights:
            same = torch.equal(weight.cpu().view(torch.uint8), wanted.view(torch.uint8))
            require(same, "the codes are not those of the CPU")

    def near(_: object) -> None:
        exact = torch.addmm(base.float() * wide, b.float(), a.float(), alpha=_SCALING) / wide
        exact.clamp_(-limit, limit)
        for weight in weights:
            # One code is an eighth or a quarter of a number, or the smallest step of all.
            bound = exact.abs() / 4 + 0.02
            require(bool(((weight.float() - exact).abs() <= bound).all()), "codes are too far off")

    moved = 2 * lines * width + 2 * rank * (lines + width) + 4 * scale.numel()

    def contender(who: str, call: Callable[[int], object], check: Check) -> Contender:
        return gpu.contender(who, call, sets=sets, calls=sets, check=check, prepare=restore)

    # Tensor cores sum in an order of their own.
    exact_or_near = equal if rank <= merging.EXACT_RANK else near
    return Case(
        name=name,
        measure=cost("µs", 1e-6),
        work=1,
        ours=contender("infer-accel", ours, exact_or_near),
        peers=[contender("torch decode + addmm + encode, scales kept", decoded, near)],
        floor=Floor("device copy", moved / gpu.copy_rate(bench.limits)),
    )
