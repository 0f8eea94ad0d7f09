"""The specification of merging into weights of eight or four bits with scales."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from infer_accel._reference._floats import (
    dtype_name,
    fma,
    raw_bytes,
    read,
    require_writable,
    round_to,
    stored_bits,
    write_bits,
)
from infer_accel._reference._tensors import require_tensor
from infer_accel._reference.lora._arguments import fit, named, settings
from infer_accel._reference.lora._merge import inner_products
from infer_accel.errors import ArgumentError, DTypeError, IntegrityError, OverlapError, ShapeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from infer_accel._typing import Tensor

    Float32 = NDArray[np.float32]
    Codes = NDArray[np.uint8]

__all__ = ["QuantizationReport", "merge_quantized", "merge_terms"]

#: Sides of a block of codes of eight bits that share a scale.
_BLOCK = 128
_LARGEST_SCALE = 2.0**100
_LARGEST_POWER = 2.0**125


@dataclass(frozen=True, slots=True)
class QuantizationReport:
    """What a merge into codes did, in numbers, not in codes."""

    elements: int
    changed: int
    delta_norm: float
    survived: float | None
    largest_delta: float
    saturated: int
    scales: int
    scales_changed: int
    rms_error: float
    largest_error: float


@dataclass(frozen=True, slots=True)
class _Coding:
    """How codes stand for numbers: the numbers of the codes without a sign, in order."""

    sizes: NDArray[np.float64]
    sign: int
    is_integer: bool = False

    def decode(self, codes: Codes) -> Float32:
        """Return what codes stand for; NaN for those that are not finite numbers."""
        if self.is_integer:
            return codes.view(np.int8).astype(np.float32)
        table = np.full(self.sign, np.nan)
        table[: self.sizes.size] = self.sizes
        numbers: Float32 = np.concatenate([table, -table]).astype(np.float32)[codes]
        return numbers

    def encode(self, numbers: Float32) -> Codes:
        """Return the nearest codes, ties to even; the last one for what is beyond it."""
        if self.is_integer:
            integers: Codes = np.clip(np.rint(numbers), -128, 127).astype(np.int8).view(np.uint8)
            return integers
        size = np.abs(numbers.astype(np.float64))
        between = (self.sizes[1:] + self.sizes[:-1]) / 2
        below = np.searchsorted(between, size, side="left")
        # On the middle between two numbers the search gives the lower one: an odd one loses to its neighbour.
        is_tie = np.isin(size, between)
        code = below + (is_tie & (below % 2 == 1))
        signed: Codes = (code + np.where(np.signbit(numbers), self.sign, 0)).astype(np.uint8)
        return signed

    def is_beyond(self, numbers: Float32) -> NDArray[np.bool_]:
        """Return where rounding would go behind the last code, if there were more."""
        if self.is_integer:
            return np.abs(np.rint(numbers) + 0.5) > 128
        size = np.abs(numbers.astype(np.float64))
        halfway = self.sizes[-1] + (self.sizes[-1] - self.sizes[-2]) / 2
        is_odd = (self.sizes.size - 1) % 2 == 1
        beyond: NDArray[np.bool_] = size >= halfway if is_odd else size > halfway
        return beyond


def _float_sizes(exponent: int, mantissa: int, count: int) -> NDArray[np.float64]:
    """Return the numbers of the first `count` codes of a small float."""
    codes = np.arange(count)
    power, fraction = codes >> mantissa, codes & (1 << mantissa) - 1
    bias = (1 << exponent - 1) - 1
    normal = (1 + fraction / (1 << mantissa)) * np.exp2(power - bias)
    return np.where(power == 0, fraction / (1 << mantissa) * 2.0 ** (1 - bias), normal)


_E4M3 = _Coding(_float_sizes(4, 3, 0x7F), 0x80)
_CODINGS = {
    "float8_e4m3fn": _E4M3,
    "float8_e5m2": _Coding(_float_sizes(5, 2, 0x7C), 0x80),
    "int8": _Coding(np.arange(128.0), 0x80, is_integer=True),
    "uint8": _Coding(_float_sizes(2, 1, 8), 0x08),
}


def merge_quantized(
    weight: Tensor,
    weight_scale: Tensor,
    lora_A: Tensor,
    lora_B: Tensor,
    *,
    scaling: float = 1.0,
    global_scale: float | None = None,
    scales: str = "grow",
    return_report: bool = False,
    num_threads: int | None = None,
) -> QuantizationReport | None:
    """Add ``scaling · lora_B @ lora_A`` to a weight of codes, in place; scales grow where they are too small."""
    settings(scaling, num_threads)
    term = (lora_A, lora_B, scaling)
    report = merge_terms(weight, weight_scale, [term], global_scale=global_scale, scales=scales)
    return report if return_report else None


def merge_terms(
    weight: Tensor,
    weight_scale: Tensor,
    terms: Sequence[tuple[Tensor, Tensor, float]],
    *,
    global_scale: float | None = None,
    scales: str = "grow",
) -> QuantizationReport:
    """Add several products, each ``(lora_A, lora_B, scaling)``; codes are rounded once."""
    if scales not in {"grow", "keep"}:
        raise ArgumentError(f'scales={scales!r} came; allowed: "grow", "keep"', code="argument.scales")
    require_tensor(weight)
    require_tensor(weight_scale)
    coding = _coding(weight)
    codes = _unpacked(weight)
    block = _block(weight, weight_scale, codes.shape, global_scale)
    for lora_A, lora_B, _ in terms:
        a, b = (read(tensor, name) for tensor, name in named(lora_A=lora_A, lora_B=lora_B))
        fit("lora_A and lora_B", "rank", (a.shape[0], b.shape[1]))
        fit("lora_A and weight", "in_features", (a.shape[1], codes.shape[1]))
        fit("lora_B and weight", "out_features", (b.shape[0], codes.shape[0]))
    sources = [matrix for term in terms for matrix in term[:2]]
    require_writable(weight, *sources)
    require_writable(weight_scale, *sources)
    is_small = dtype_name(weight_scale) in {"uint8", "float8_e4m3fn"}
    if np.shares_memory(raw_bytes(weight), (raw_bytes if is_small else stored_bits)(weight_scale)):
        raise OverlapError("weight shares memory with weight_scale", code="overlap.adapter")
    stored = _stored_scales(weight_scale)
    whole = np.float32(1.0 if global_scale is None else global_scale)
    old = stored * whole
    _check_scales(old, dtype_name(weight_scale))
    before = coding.decode(codes) * _wide(old, codes.shape, block)
    added = [(inner_products(a, b), settings(scaling, None)) for a, b, scaling in terms if a.shape[0]]
    if not added:
        return QuantizationReport(codes.size, 0, 0.0, None, 0.0, 0, old.size, 0, 0.0, 0.0)
    values, delta = before, np.zeros_like(before)
    for sums, factor in added:
        values, delta = fma(factor, sums, values), fma(factor, sums, delta)
    _check_values(before, values)
    known = _Scales(stored, whole, dtype_name(weight_scale))
    new = known.grown(coding, values, block) if scales == "grow" else stored
    after_scale = _wide(new * whole, codes.shape, block)
    with np.errstate(all="ignore"):
        quotients = values / after_scale
    merged = coding.encode(quotients)
    _write(weight, merged)
    _write_scales(weight_scale, new)
    after = coding.decode(merged) * after_scale
    lost = after.astype(np.float64) - values
    delta = delta.astype(np.float64)
    squares = float((delta * delta).sum())
    moved = after.astype(np.float64) - before
    return QuantizationReport(
        elements=codes.size,
        changed=int((after.view(np.uint32) != before.view(np.uint32)).sum()),
        delta_norm=math.sqrt(squares),
        survived=float((moved * delta).sum()) / squares if squares else None,
        largest_delta=float(np.abs(delta).max(initial=0.0)),
        saturated=int(coding.is_beyond(quotients).sum()),
        scales=old.size,
        scales_changed=int((new != stored).sum()),
        rms_error=math.sqrt(float((lost * lost).mean())),
        largest_error=float(np.abs(lost).max(initial=0.0)),
    )


def _coding(weight: Tensor) -> _Coding:
    kind = dtype_name(weight)
    if kind not in _CODINGS:
        message = f"weight is of {kind}, but came with a weight_scale; allowed then: {', '.join(_CODINGS)}"
        raise DTypeError(message, code="dtype.quantized")
    if len(weight.shape) != 2:
        message = f"weight has shape {tuple(weight.shape)}; a matrix is needed"
        raise ShapeError(message, code="shape.matrix")
    return _CODINGS[kind]


def _unpacked(weight: Tensor) -> Codes:
    """Return a byte for each code."""
    stored = raw_bytes(weight)
    if dtype_name(weight) != "uint8":
        return stored.copy()
    return np.stack([stored & 0xF, stored >> 4], axis=-1).reshape(stored.shape[0], -1)


def _write(weight: Tensor, codes: Codes) -> None:
    target = raw_bytes(weight)
    target[...] = codes if dtype_name(weight) != "uint8" else codes[:, ::2] | codes[:, 1::2] << 4


def _block(
    weight: Tensor, scale: Tensor, shape: tuple[int, int], global_scale: float | None
) -> tuple[int, int]:
    """Return the rows and columns that share a scale."""
    kind, packed = dtype_name(scale), dtype_name(weight) == "uint8"
    if kind not in ({"uint8", "float8_e4m3fn"} if packed else {"float32", "float16", "bfloat16"}):
        message = f"weight_scale is of {kind} for a weight of {dtype_name(weight)}"
        raise DTypeError(message, code="dtype.scale")
    if (packed and kind == "float8_e4m3fn") != (global_scale is not None):
        message = "a global_scale belongs to NVFP4, and to it alone"
        raise ArgumentError(message, code="argument.global_scale")
    if global_scale is not None:
        with np.errstate(over="ignore", under="ignore"):
            whole = float(np.asarray(global_scale, np.float64).astype(np.float32))
        if not (math.isfinite(whole) and whole >= np.finfo(np.float32).tiny):
            message = f"global_scale={global_scale} came; it must be finite, above zero and not subnormal"
            raise ArgumentError(message, code="argument.global_scale")
    (rows, columns), counts = shape, tuple(scale.shape)
    layouts: dict[tuple[int, ...], tuple[int, int]] = {}
    if packed:
        across = 32 if kind == "uint8" else 16
        if columns % across == 0:
            layouts = {(rows, columns // across): (1, across)}
    elif rows and columns:
        layouts = {
            (-(-rows // _BLOCK), -(-columns // _BLOCK)): (_BLOCK, _BLOCK),
            (rows,): (1, columns),
            (rows, 1): (1, columns),
            counts if all(extent == 1 for extent in counts) else (): (rows, columns),
        }
    if counts not in layouts:
        message = f"weight_scale has shape {counts}, which does not fit a weight of {shape} elements"
        raise ShapeError(message, code="shape.scale")
    return layouts[counts]


def _wide(scales: Float32, shape: tuple[int, ...], block: tuple[int, int]) -> Float32:
    """Return the scale of each element."""
    counts = _counts(shape, block)
    repeated = scales.reshape(counts).repeat(block[0], 0)[: shape[0]].repeat(block[1], 1)
    return repeated[:, : shape[1]]


def _counts(shape: tuple[int, ...], block: tuple[int, int]) -> tuple[int, int]:
    return -(-shape[0] // block[0]), -(-shape[1] // block[1])


def _stored_scales(scale: Tensor) -> Float32:
    """Return scales as numbers, in a row."""
    kind = dtype_name(scale)
    if kind == "uint8":
        codes = raw_bytes(scale).reshape(-1)
        powers = np.exp2(codes.astype(np.float64) - 127)
        return np.where(codes == 255, np.nan, powers).astype(np.float32)
    if kind == "float8_e4m3fn":
        return _E4M3.decode(raw_bytes(scale).reshape(-1))
    return read(scale, "weight_scale").reshape(-1)


def _write_scales(scale: Tensor, stored: Float32) -> None:
    kind, shaped = dtype_name(scale), stored.reshape(tuple(scale.shape))
    if kind == "uint8":
        raw_bytes(scale)[...] = np.frexp(shaped)[1] - 1 + 127
    elif kind == "float8_e4m3fn":
        raw_bytes(scale)[...] = _E4M3.encode(shaped)
    else:
        write_bits(scale, round_to(shaped, kind))


def _check_scales(scales: Float32, kind: str) -> None:
    limit = _LARGEST_POWER if kind == "uint8" else _LARGEST_SCALE
    bad = ~((scales > 0) & (scales <= limit))
    if bad.any():
        message = f"weight_scale holds {scales[bad][0]}; a scale must be above zero and at most 2^100"
        raise IntegrityError(message, code="quantized.scale")


def _check_values(before: Float32, values: Float32) -> None:
    bad = np.argwhere(~np.isfinite(values))
    if not bad.size:
        return
    row, column = bad[0]
    if not np.isfinite(before[row, column]):
        message = f"weight[{row}, {column}] is not a finite number: nothing can be added to it"
        raise IntegrityError(message, code="quantized.not_a_number")
    message = f"weight[{row}, {column}] would become {values[row, column]}, which no code stands for"
    raise ArgumentError(message, code="quantized.not_finite")


@dataclass(frozen=True, slots=True)
class _Scales:
    """Scales as numbers in a row, what all of them are multiplied by, and how they are stored."""

    stored: Float32
    whole: np.float32
    kind: str

    def grown(self, coding: _Coding, values: Float32, block: tuple[int, int]) -> Float32:
        """Return the scales with those grown whose blocks reach beyond the last code."""
        new, across = self.stored.copy(), _counts(values.shape, block)[1]
        for index, scale in enumerate(self.stored):
            row, column = index // across * block[0], index % across * block[1]
            some = values[row : row + block[0], column : column + block[1]]
            new[index] = self._grown_one(coding, some, np.float32(scale))
        return new

    def _grown_one(self, coding: _Coding, values: Float32, scale: np.float32) -> np.float32:
        def reaches(scale: np.float32) -> bool:
            with np.errstate(all="ignore"):
                return not coding.is_beyond(values / (scale * self.whole)).any()

        if reaches(scale):
            return scale
        limit = _LARGEST_POWER if self.kind == "uint8" else _LARGEST_SCALE
        if coding.is_integer:
            wanted = self._nearest(np.float32(np.abs(values).max() / np.float32(127)))
            return wanted if scale < wanted <= limit else scale
        while not reaches(scale):
            doubled = np.float32(2.0) * scale
            if self._nearest(doubled) != doubled or doubled * self.whole > limit:
                break
            scale = doubled
        return scale

    def _nearest(self, scale: np.float32) -> np.float32:
        """Return the nearest number that a scale can be stored as; NaN behind the largest."""
        if self.kind in {"uint8", "float32"}:
            return scale
        one = np.asarray([scale], np.float32)
        if self.kind == "float8_e4m3fn":
            return np.float32(np.nan if scale > 464 else _E4M3.decode(_E4M3.encode(one))[0])
        bits = round_to(one, self.kind)
        if self.kind == "float16":
            return np.float32(bits.view(np.float16)[0])
        return np.float32((bits.astype(np.uint32) << 16).view(np.float32)[0])
