"""Number formats and fused multiply-add in numpy, exact to the bit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from infer_accel._reference._tensors import require_target
from infer_accel.errors import DTypeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from infer_accel._typing import Tensor

    Float32 = NDArray[np.float32]
    Bits = NDArray[np.uint16] | NDArray[np.uint32]

__all__ = [
    "dtype_name",
    "fma",
    "raw_bytes",
    "read",
    "require_writable",
    "round_bfloat16",
    "round_to",
    "stored_bits",
    "widen_bfloat16",
    "write",
    "write_bits",
]

_CANONICAL_NAN = np.uint32(0x7FC00000)


def fma(left: Float32, right: Float32, addend: Float32) -> Float32:
    """Return ``left · right + addend`` with one rounding to float32, as the processor's instruction does.

    The product of two float32 numbers is exact in float64. Its sum with the addend is rounded to odd there:
    cut off, with the last bit set if anything was lost. float64 has more than two bits beyond float32, so
    rounding such a number once more, to nearest, gives what rounding the exact sum would have given.
    """
    with np.errstate(all="ignore"):
        product = left.astype(np.float64) * right.astype(np.float64)
        wide = addend.astype(np.float64)
        total = product + wide
        # What the rounding of `total` lost, exactly (Knuth's TwoSum).
        back = total - product
        lost = (product - (total - back)) + (wide - back)
        is_even = total.view(np.int64) % 2 == 0
        toward = np.where(lost > 0, np.inf, -np.inf)
        inexact = np.isfinite(total) & (lost != 0) & is_even
        odd = np.where(inexact, np.nextafter(total, toward), total)
        return odd.astype(np.float32)


def round_bfloat16(values: Float32) -> NDArray[np.uint16]:
    """Return the bits of the nearest bfloat16 numbers, ties to even; NaN becomes the canonical NaN."""
    bits = np.where(np.isnan(values), _CANONICAL_NAN, values.view(np.uint32))
    bits += (bits >> 16 & 1) + np.uint32(0x7FFF)  # cannot wrap around: only NaN has such bits
    return (bits >> 16).astype(np.uint16)


def widen_bfloat16(bits: NDArray[np.uint16]) -> Float32:
    """Return bfloat16 numbers, given by their bits, as float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def dtype_name(tensor: Tensor) -> str:
    """Return the name of a tensor's number format, "float32" for ``torch.float32``."""
    return str(getattr(tensor, "dtype", type(tensor).__name__)).removeprefix("torch.")


def _array(tensor: Any) -> NDArray[np.generic]:  # noqa: ANN401 - whatever has an array behind it
    """Return a numpy view of a tensor, bfloat16 as the bits in uint16."""
    is_bfloat16 = dtype_name(tensor) == "bfloat16"
    if hasattr(tensor, "numpy"):  # torch: numpy itself would refuse bfloat16
        tensor = tensor.detach()
        if is_bfloat16:
            import torch  # noqa: PLC0415 - it is there if one of its tensors is

            tensor = tensor.view(torch.int16)
        tensor = tensor.numpy()
    array: NDArray[np.generic] = np.asarray(tensor)
    return array.view(np.uint16) if is_bfloat16 else array


def raw_bytes(tensor: Any) -> NDArray[np.uint8]:  # noqa: ANN401 - whatever has an array behind it
    """Return a view of the bytes of a tensor whose elements are bytes."""
    if hasattr(tensor, "numpy"):
        import torch  # noqa: PLC0415 - it is there if one of its tensors is

        tensor = (
            tensor.detach().view(torch.uint8).numpy()
            if tensor.element_size() == 1
            else tensor.detach().numpy()
        )
    array: NDArray[np.generic] = np.asarray(tensor)
    return array.view(np.uint8)


def read(tensor: Tensor, name: str) -> Float32:
    """Return a tensor of float32, float16 or bfloat16 as a new float32 array."""
    kind = dtype_name(tensor)
    if kind == "bfloat16":
        return widen_bfloat16(_array(tensor).astype(np.uint16))
    if kind in {"float32", "float16"}:
        with np.errstate(invalid="ignore"):
            return _array(tensor).astype(np.float32)
    message = f"{name} is of {kind}; allowed: float32, float16, bfloat16: convert it first"
    raise DTypeError(message, code="dtype.unsupported")


def write(tensor: Tensor, values: Float32) -> None:
    """Round float32 numbers to the format of a tensor and store them there; NaN becomes the canonical NaN."""
    require_writable(tensor)
    write_bits(tensor, round_to(values, dtype_name(tensor)))


def round_to(values: Float32, kind: str) -> Bits:
    """Return the bits of the nearest numbers of a format, ties to even; NaN becomes the canonical NaN."""
    if kind == "bfloat16":
        return round_bfloat16(values)
    values = np.where(np.isnan(values), _CANONICAL_NAN.view(np.float32), values)
    if kind == "float32":
        return values.view(np.uint32)
    with np.errstate(over="ignore"):
        return values.astype(np.float16).view(np.uint16)


def stored_bits(tensor: Tensor) -> Bits:
    """Return a view of the bits of a tensor of one of the three formats."""
    array = _array(tensor)
    return array.view(np.uint32) if array.dtype.itemsize == 4 else array.view(np.uint16)


def write_bits(tensor: Tensor, bits: Bits) -> None:
    """Store bits of the tensor's own format."""
    stored_bits(tensor)[...] = bits


def require_writable(tensor: Tensor, *sources: Tensor) -> None:
    """Refuse a target that must not be written, or that shares memory with what is read."""
    require_target(_memory(tensor), *map(_memory, sources))


def _memory(tensor: Tensor) -> NDArray[np.generic]:
    return raw_bytes(tensor) if dtype_name(tensor).startswith("float8") else _array(tensor)
