"""Merging on CUDA tensors: checked, described layer by layer, launched once for each combination of formats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from infer_accel.errors import ArgumentError, LayoutError, ShapeError
from infer_accel.kernels import _triton
from infer_accel.kernels._arguments import require_one_device
from infer_accel.kernels._device import Launch
from infer_accel.kernels._matrices import (
    FORMATS,
    factor_bits,
    matrix,
    refuse_shared,
    require_equal,
    require_unlike_rows,
    steps,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

__all__ = ["EXACT_RANK", "merge_many", "merge_weights"]

#: Up to this rank products are chains of fused multiply-adds, to the bits of the CPU. An H100 has ten of them for each
#: byte of memory it moves, so that rank 32 is about where they begin to take longer than memory.
EXACT_RANK = 32

_BFLOAT16 = FORMATS["bfloat16"]
_CODES = ("float8_e4m3fn", "float8_e5m2")
#: A scale that all rows, or all columns, share.
_EVERY = 1 << 40
#: Sides of a block of codes that share a scale.
_BLOCK = 128

#: Rows and columns of a tile: 32 sums for each of 256 threads. The interpreter does not know threads, and takes as long
#: for what a mask hides as for the rest; what it takes long for are steps of a loop.
_TILE = (64, 128)
_INTERPRETED_TILE = (32, 64)
_RANKS, _INTERPRETED_RANKS, _TENSOR_CORE_RANKS = 16, 4, 64
_WARPS = 8
_PROGRAMS = 4


class _Form(NamedTuple):
    """What a kernel is compiled for: layers of one form share a launch."""

    WEIGHT: int
    OUT: int
    A: int
    B: int
    SCALE: int
    UNIT: int
    ALIGNED: bool
    PAIRED: bool
    TENSOR_CORES: bool


@dataclass(frozen=True, slots=True)
class _Layer:
    """A layer's tensors after all checks, its form and its row of the table."""

    form: _Form
    fields: tuple[int, ...]
    tiles: int
    device: torch.device
    written: tuple[str, torch.Tensor]
    read: tuple[tuple[str, torch.Tensor], ...]
    copied: tuple[torch.Tensor, torch.Tensor] | None


def merge_weights(
    weight: object,
    lora_A: object,
    lora_B: object,
    *,
    scaling: float,
    out: object | None = None,
    weight_scale: object | None = None,
) -> None:
    """Add to a weight the product of an adapter, as :func:`infer_accel.lora.merge_weights` does."""
    layer = _layer(weight, lora_A, lora_B, scaling, out=out, weight_scale=weight_scale)
    refuse_shared([layer.written], layer.read, "overlap.adapter")
    _launch([layer])


def merge_many(weights: Sequence[object], adapters: Sequence[tuple[object, object, float]]) -> None:
    """Add to each weight the product of its adapter, as :func:`infer_accel.lora.merge_many` does."""
    layers = [
        _layer(weight, a, b, scaling, place=f" of layer {index}")
        for index, (weight, (a, b, scaling)) in enumerate(zip(weights, adapters, strict=True))
    ]
    refuse_shared(
        [layer.written for layer in layers],
        [entry for layer in layers for entry in layer.read],
        "overlap.layers",
    )
    _launch(layers)


def _layer(
    weight: object,
    lora_A: object,
    lora_B: object,
    scaling: float,
    *,
    out: object | None = None,
    weight_scale: object | None = None,
    place: str = "",
) -> _Layer:
    """Check one layer and describe it."""
    allowed = {} if weight_scale is None else {"allowed": _CODES}
    base, weight_format = matrix(weight, f"weight{place}", written=out is None, **allowed)
    a, a_format = matrix(lora_A, f"lora_A{place}")
    b, b_format = matrix(lora_B, f"lora_B{place}")
    target, out_format = (base, weight_format) if out is None else matrix(out, f"out{place}", written=True)
    rows, columns = base.shape
    require_equal(f"lora_A and lora_B{place}", "rank", a.shape[0], b.shape[1])
    require_equal(f"lora_A and weight{place}", "in_features", a.shape[1], columns)
    require_equal(f"lora_B and weight{place}", "out_features", b.shape[0], rows)
    if target.shape != base.shape:
        message = (
            f"out has the shape {tuple(target.shape)}, and weight {tuple(base.shape)}; both must be the same"
        )
        raise ShapeError(message, code="shape.mismatch")
    require_unlike_rows(target, f"the target{place}")
    factor, rank = factor_bits(scaling), int(a.shape[0])
    scale, scale_fields, scale_format = _scale(weight_scale, (rows, columns), place)
    named = [("weight", base), ("lora_A", a), ("lora_B", b), ("out", target)]
    named += [] if scale is None else [("weight_scale", scale)]
    device = require_one_device((f"{name}{place}", tensor) for name, tensor in named)
    down, across = steps(base)
    out_down, out_across = steps(target)
    if across != 1 and down == 1:  # Wᵀ += s · Aᵀ · Bᵀ: the matrices change places
        base_step, out_step, out_unit = across, out_across, out_down
        left, right, left_format, right_format = a.T, b.T, a_format, b_format
        scale_fields = (scale_fields[0], *scale_fields[2:0:-1], *scale_fields[4:2:-1])
    else:
        base_step, out_step, out_unit = down, out_down, out_across
        left, right, left_format, right_format = b, a, b_format, a_format
    if (base.numel() and 1 not in {across, down}) or out_unit != 1:
        message = (
            f"neither the rows nor the columns of the weight{place} lie one after the other, or those of out lie "
            "otherwise; pass contiguous matrices, or transposed views of such"
        )
        raise LayoutError(message, code="layout.rows")
    lines, width = left.shape[0], right.shape[1]
    b_row, b_rank = steps(left)
    a_rank, a_column = steps(right)
    addresses = base.data_ptr(), target.data_ptr(), right.data_ptr(), left.data_ptr()
    unit = 0 if (a_column, b_rank) == (1, 1) else 1 if (a_rank, b_row) == (1, 1) else 2
    is_half = left_format == right_format in {FORMATS["float16"], _BFLOAT16}
    form = _Form(
        WEIGHT=weight_format,
        OUT=out_format,
        A=right_format,
        B=left_format,
        SCALE=scale_format,
        UNIT=unit,
        ALIGNED=not (any(at % 16 for at in addresses[:3]) or any(n % 8 for n in (width, base_step, out_step)))
        and (unit != 0 or a_rank % 8 == 0),
        PAIRED=left_format == right_format == _BFLOAT16,
        TENSOR_CORES=is_half and rank > EXACT_RANK,
    )
    shape = lines, width, base_step, out_step, a_rank, a_column, b_row, b_rank, rank, factor
    tile = _tile()
    tiles = 0 if rank == 0 else -(-lines // tile[0]) * -(-width // tile[1])
    reads = [entry for entry in named if entry[1] is not target and entry[0] != "out"]
    # `out` may be the weight itself, by another tensor.
    if out is not None and target.data_ptr() == base.data_ptr() and target.stride() == base.stride():
        reads = [entry for entry in reads if entry[1] is not base]
    return _Layer(
        form,
        (*addresses, *shape, *scale_fields),
        tiles,
        device,
        (f"out{place}" if out is not None else f"weight{place}", target),
        tuple((f"{name}{place}", tensor) for name, tensor in reads),
        (target, base) if rank == 0 and out is not None else None,
    )


def _scale(
    weight_scale: object | None, shape: tuple[int, int], place: str
) -> tuple[torch.Tensor | None, tuple[int, int, int, int, int], int]:
    """Return the scales of codes: their tensor, address, steps, rows and columns that share one, and their format."""
    if weight_scale is None:
        return None, (0, 0, 0, 1, 1), 0
    tensor = weight_scale
    if getattr(tensor, "dim", None) is not None and tensor.dim() != 2:  # type: ignore[attr-defined]
        flat = tensor.reshape(-1, 1) if tensor.is_contiguous() else None  # type: ignore[attr-defined]
        tensor = tensor if flat is None else flat
    scale, kind = matrix(tensor, f"weight_scale{place}")
    rows, columns = shape
    found = tuple(scale.shape)
    blocks = (-(-rows // _BLOCK), -(-columns // _BLOCK))
    shared = {(1, 1): (_EVERY, _EVERY), (rows, 1): (1, _EVERY), blocks: (_BLOCK, _BLOCK)}.get(found)
    if shared is None:
        message = (
            f"weight_scale has the shape {found}; for {rows} × {columns} codes: one, ({rows}, 1) or {blocks}"
        )
        raise ShapeError(message, code="shape.scale")
    down, across = (int(stride) for stride in scale.stride())
    return scale, (scale.data_ptr(), down, across, *shared), kind


def _tile() -> tuple[int, int]:
    return _INTERPRETED_TILE if _triton.is_interpreted() else _TILE


def _ranks(form: _Form) -> int:
    """Return how many ranks a step of the product has."""
    if form.TENSOR_CORES:
        return _TENSOR_CORE_RANKS
    return _INTERPRETED_RANKS if _triton.is_interpreted() else _RANKS


def _launch(layers: Sequence[_Layer]) -> None:
    """Launch the kernel once for each form."""
    if not layers:
        return
    device = require_one_device((layer.written[0], layer.written[1]) for layer in layers)
    launch = Launch.on(device)
    if launch.captured:
        message = (
            "a merge came while a graph is captured; a replay would add the adapter once more: merge before"
        )
        raise ArgumentError(message, code="argument.capture")
    forms: dict[_Form, list[_Layer]] = {}
    for layer in layers:
        if layer.tiles:
            forms.setdefault(layer.form, []).append(layer)
    kernel = _triton.device_code("merge_weights_triton").merge_layers
    with launch.entered():
        for layer in layers:
            if layer.copied is not None:
                layer.copied[0].copy_(layer.copied[1])
        for form, group in forms.items():
            tiles = np.array([layer.tiles for layer in group], np.int64)
            total = int(tiles.sum())
            starts = np.cumsum(tiles) - tiles
            # On the device as one table: the starts stand behind the layers' rows.
            fields = np.array([layer.fields for layer in group], np.int64)
            table = launch.upload(np.concatenate([fields.reshape(-1), starts]))
            kernel[(min(total, _PROGRAMS * launch.multiprocessors),)](
                table,
                table[fields.size :],
                len(group),
                len(group).bit_length(),
                total,
                **form._asdict(),
                ROWS=_tile()[0],
                COLUMNS=_tile()[1],
                RANKS=_ranks(form),
                INTERPRETED=_triton.is_interpreted(),
                num_warps=_WARPS,
            )
