"""What a tensor must be before its memory is looked at: the same for every part."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import numpy as np

from infer_accel.errors import (
    DeviceError,
    DTypeError,
    GradientError,
    LayoutError,
    OverlapError,
    ReadOnlyError,
    ShapeError,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["require_target", "require_tensor"]

_MAX_DIMENSIONS = 8
_FORMATS = (
    *("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"),
    *("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool"),
)


def require_tensor(tensor: object) -> None:
    """Refuse what is no tensor, and a tensor whose memory does not hold its values plainly."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(tensor, torch.Tensor):
        if tensor.requires_grad and torch.is_grad_enabled():
            message = "a tensor with requires_grad=True came; call it under torch.no_grad()"
            raise GradientError(message, code="gradient.recorded")
        is_dense = tensor.layout is torch.strided and not (tensor.is_quantized or tensor.is_nested)
        if not is_dense or tensor.device.type == "meta":
            raise LayoutError("a tensor that cannot be exported came; pass a dense one", code="layout.export")
        if tensor.device.type != "cpu":
            message = f"a tensor on {tensor.device} came; .cpu() it first"
            raise DeviceError(message, code="device.not_cpu")
        if tensor.is_neg():
            message = "a tensor came whose memory holds its values negated; pass tensor.resolve_neg()"
            raise LayoutError(message, code="layout.negated")
        _require_plain(str(tensor.dtype).removeprefix("torch."), tensor.ndim)
        return
    if isinstance(tensor, np.generic) or not hasattr(tensor, "__array__"):
        message = f"an object of type {type(tensor).__name__} came; pass an array or a tensor"
        raise DTypeError(message, code="dtype.not_a_tensor")
    array = np.asarray(tensor)
    if not array.dtype.isnative:
        raise LayoutError(
            f"an array of {array.dtype} came, whose bytes are swapped", code="layout.byte_order"
        )
    _require_plain(array.dtype.name, array.ndim)


def _require_plain(number_format: str, dimensions: int) -> None:
    if number_format not in _FORMATS:
        message = f"a tensor of {number_format} came; allowed: {', '.join(_FORMATS)}"
        raise DTypeError(message, code="dtype.unknown")
    if dimensions > _MAX_DIMENSIONS:
        message = f"a tensor of {dimensions} dimensions came; at most {_MAX_DIMENSIONS} are allowed"
        raise ShapeError(message, code="shape.dimensions")


def require_target(target: NDArray[np.generic], *sources: NDArray[np.generic]) -> None:
    """Refuse a target that must not be written, names an element twice, or shares memory with a source."""
    if not target.flags.writeable:
        message = (
            f"a read-only tensor of {target.dtype} came as a target; pass one that may be written, or a copy"
        )
        raise ReadOnlyError(message, code="read_only")
    reach = target.itemsize
    for stride, extent in sorted(
        (abs(stride), extent) for stride, extent in zip(target.strides, target.shape, strict=True)
    ):
        if extent > 1 and target.size > 0:
            if stride < reach:
                message = f"strides {target.strides} name elements more than once; copy the target first"
                raise LayoutError(message, code="layout.self_overlap")
            reach += stride * (extent - 1)
    if any(np.shares_memory(target, source) for source in sources):
        raise OverlapError("a target shares memory with an argument that is read", code="overlap.adapter")
